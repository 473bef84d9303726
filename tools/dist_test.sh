#!/usr/bin/env bash
# Run the toolkit's own tools/dist_test.sh with its arguments and environment variables (PORT, NNODES, ...).
set -eo pipefail
script=$(python -m mmws.cli.run_toolkit dist_test.sh "$@" | tail -n 1)  # the toolkits print on being imported
# Under this script's name, so that each process runs the tools/test.py beside it.
exec bash -c 'script=$1; shift; source "$script"' "$0" "$script" "$@"
