#!/usr/bin/env bash
# Run the toolkit's own tools/dist_test.sh with its arguments and environment variables (PORT, NNODES, ...).
set -e
script=$(python -m mmws.launch dist_test.sh "$@")
exec bash "$script" "$@"
