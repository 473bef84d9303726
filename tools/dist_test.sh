#!/usr/bin/env bash
# Run the toolkit's own tools/dist_test.sh with the same arguments and environment variables (PORT, NNODES, ...).
set -eo pipefail
if [[ " $* " == *' -h '* || " $* " == *' --help '* ]]; then
    echo "dist_test.sh CONFIG CHECKPOINT GPUS [OPTIONS], with the options of test.py:"
    exec python "$(dirname "$0")/test.py" "$@"
fi
script=$(python -m mmws.cli.run_toolkit dist_test.sh "$@")
# Keep the path of this script in $0: dist_test.sh starts the tools/test.py in the folder of $0.
exec bash -c 'script=$1; shift; source "$script"' "$0" "$script" "$@"
