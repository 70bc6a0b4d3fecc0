#!/usr/bin/env bash
# A Dask scheduler with the suite's settings. Arguments are those of `dask scheduler`, such as --scheduler-file FILE.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" DASK_CONFIG=$PWD/skdcgn/assets/dask.yaml
exec "${SKDCGN_PYTHON:-.venv/bin/python}" -m dask scheduler --no-dashboard "$@"
