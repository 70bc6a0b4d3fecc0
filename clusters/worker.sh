#!/usr/bin/env bash
# Dask workers on this machine, with the suite's settings and this clone's code: one thread each, no web page, no limit
# of memory. Arguments are those of `dask worker`, such as --scheduler-file FILE --nworkers 8.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" DASK_CONFIG=$PWD/skdcgn/assets/dask.yaml
exec "${SKDCGN_PYTHON:-.venv/bin/python}" -m dask worker --nthreads 1 --no-dashboard --memory-limit 0 "$@"
