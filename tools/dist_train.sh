#!/usr/bin/env bash
# Run the toolkit's own tools/dist_train.sh with the same arguments and environment variables (PORT, NNODES, ...).
set -eo pipefail
if [[ " $* " == *' -h '* || " $* " == *' --help '* ]]; then
    echo "dist_train.sh CONFIG GPUS [OPTIONS], with the options of train.py:"
    exec python "$(dirname "$0")/train.py" "$@"
fi
script=$(python -m mmws.cli.run_toolkit dist_train.sh "$@")
# Keep the path of this script in $0: dist_train.sh starts the tools/train.py in the folder of $0.
exec bash -c 'script=$1; shift; source "$script"' "$0" "$script" "$@"
