#!/usr/bin/env bash
# Everything from one command: environment, data and weights, experiments, report. Written for bash 3.2 (macOS) and later.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: ./run_all.sh [--profile NAME] [--dataset NAME] [--only NAME...] [--jobs NUMBER] [--scheduler ADDRESS]
                    [--dry-run]
       ./run_all.sh status [--profile NAME] [--dataset NAME] [--only NAME...]
       ./run_all.sh test [PYTEST OPTION...]
       ./run_all.sh --help

Runs every experiment, writes the report, and prints where it is and how to browse the runs.
Finished runs are skipped, interrupted ones are resumed: to continue, start the same command again.

  --profile NAME   smoke (seconds), quick (a first look; the default), full (our best answer), paper (the published
                   setting)
  --dataset NAME   auto (double_colored where everything it needs is available, else digits; the default),
                   double_colored, digits (needs neither network nor data: trains a teacher of its own)
  --only NAME...   run these experiments only, by the names that --dry-run prints; "report" is one of them
  --jobs NUMBER    runs at the same time, one CPU thread each; by default one per core, as far as the memory goes
  --scheduler ADDRESS
                   have the workers of a Dask scheduler make the runs, on any number of machines: tcp://HOST:PORT, or
                   the file that it wrote (docs/clusters.md)
  --dry-run        set up, then say for each run whether it is finished, can be resumed, or would run (again) and
                   why, with an estimate of the time; train nothing
  status           say how far the suite is, wherever it runs, and which process is at which run
  test             set up, then run the linters and the tests

The first call sets up .venv in this folder with Python 3.11 to 3.14, or else with conda, mamba or micromamba; it takes
about 7 GB on Linux. Environment variables:
  SKDCGN_PYTHON     a Python that already has the dependencies: nothing is set up then
  SKDCGN_DATA_DIR   folder with data and weights of your own (python -m skdcgn weights lists what is looked for)
  SKDCGN_CACHE_DIR  where downloads go; by default the user's cache folder
  SKDCGN_OFFLINE=1  never download data or weights
TEXT
}

fail() {  # sentence, exit code
  printf 'error: %s\n' "$1" >&2
  exit "${2:-2}"
}

# Reports mistakes before the setup, which takes minutes. The suite itself checks the names after --only.
check_usage() {
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help)
        usage
        exit
        ;;
      --dry-run) ;;
      --scheduler)
        [ $# -gt 1 ] || fail "$1 needs the address of a Dask scheduler: see ./run_all.sh --help."
        shift
        ;;
      --scheduler=*) ;;
      --profile | --dataset)
        [ $# -gt 1 ] || fail "$1 needs a name: see ./run_all.sh --help."
        check_name "$1" "$2"
        shift
        ;;
      --profile=* | --dataset=*) check_name "${1%%=*}" "${1#*=}" ;;
      --jobs)
        check_number "$1" "${2:-}"
        shift
        ;;
      --jobs=*) check_number --jobs "${1#*=}" ;;
      --only)
        case ${2:-} in "" | -*) fail "--only needs the name of at least one experiment: ./run_all.sh --dry-run lists them." ;; esac
        while [ $# -gt 1 ]; do
          case $2 in -*) break ;; esac
          shift
        done
        ;;
      *) fail "unknown argument '$1': see ./run_all.sh --help." ;;
    esac
    shift
  done
}

check_name() {  # option, value
  case $1=$2 in
    --profile=smoke | --profile=quick | --profile=full | --profile=paper) ;;
    --dataset=auto | --dataset=double_colored | --dataset=digits) ;;
    --profile=*) fail "there is no profile '$2': choose smoke, quick, full or paper." ;;
    *) fail "there is no dataset '$2': choose auto, double_colored or digits." ;;
  esac
}

check_number() {  # option, value
  case $2 in "" | *[!0-9]*) fail "$1 needs a number, not '$2': see ./run_all.sh --help." ;; esac
}

suitable='import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'

first_python() {
  local name
  for name in python3.11 python3.12 python3.13 python3.14 python3 python; do
    if "$name" -c "$suitable" >/dev/null 2>&1; then
      command -v "$name"
      return
    fi
  done
  return 1
}

create_environment() {
  local base
  if base=$(first_python); then
    printf 'setup: creating .venv with %s\n' "$base"
    "$base" -m venv --clear .venv
  elif base=$(command -v mamba || command -v conda || command -v micromamba); then
    printf 'setup: creating .venv with %s, because no Python 3.11 to 3.14 was found\n' "$base"
    "$base" create --yes --prefix "$root/.venv" --channel conda-forge python=3.11 pip
  else
    fail "no Python 3.11 to 3.14 with its venv module was found, and no conda: install Python 3.11 (python.org; on Debian \
and Ubuntu also the package python3-venv) or Miniforge, or set SKDCGN_PYTHON to a Python that has the dependencies."
  fi
}

# An environment is complete only when its stamp says what was installed, and from where (a moved clone is reinstalled).
stamp_content() {
  printf '%s\n' "$root"
  cat pyproject.toml
}

set_up() {  # sets $python
  if [ -n "${SKDCGN_PYTHON:-}" ]; then
    python=$SKDCGN_PYTHON
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 ||
      fail "SKDCGN_PYTHON is $SKDCGN_PYTHON, which is not Python 3.11 or later: correct it, or unset it to set up .venv."
    "$python" -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))' torch mlflow tyro ||
      fail "SKDCGN_PYTHON is $SKDCGN_PYTHON, which lacks dependencies: run '$SKDCGN_PYTHON -m pip install -e .[dev]' in $root, or unset it to set up .venv."
    return
  fi
  python=$root/.venv/bin/python
  local stamp=.venv/installed
  if stamp_content | cmp -s - "$stamp" && "$python" -c '' 2>/dev/null; then
    return
  fi
  "$python" -c "import pip; $suitable" >/dev/null 2>&1 || create_environment
  rm -f "$stamp"
  printf 'setup: installing the dependencies; this takes a few minutes\n'
  "$python" -m pip install --disable-pip-version-check -e ".[dev]" ||
    fail "the dependencies could not be installed (pip's reason is above): fix that and start again, or set SKDCGN_PYTHON to a Python that has them." 1
  stamp_content >"$stamp.part"
  mv "$stamp.part" "$stamp"
}

run_tests() {  # pytest options; exits with pytest's code, or with the linters' if the tests pass
  local style=0 tests=0
  { "$python" -m ruff check . && "$python" -m ruff format --check . && "$python" -m codespell_lib; } || style=$?
  "$python" -m pytest "$@" || tests=$?
  [ "$tests" -eq 0 ] || exit "$tests"
  exit "$style"
}

case ${1:-} in
  test) ;;
  status) check_usage "${@:2}" ;;
  *) check_usage "$@" ;;
esac

# The caller's paths are relative to the caller's folder.
for name in SKDCGN_PYTHON SKDCGN_DATA_DIR SKDCGN_CACHE_DIR; do
  value=${!name:-}
  [ "$name" = SKDCGN_PYTHON ] && [ -n "$value" ] && value=$(command -v "$value" || printf '%s' "$value")
  case $value in
    "" | /* | \~*) ;;
    *) value=$PWD/$value ;;
  esac
  [ -z "$value" ] || export "$name=$value"
done

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" >/dev/null && pwd -P)
cd "$root"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" # the code of this clone, whatever the interpreter has installed
set_up
if [ "${1:-}" = test ]; then
  shift
  run_tests "$@"
fi
exec "$python" -m experiments "$@"
