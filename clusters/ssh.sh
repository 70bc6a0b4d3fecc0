#!/usr/bin/env bash
# Workers on other machines, for as long as this script runs; the clone has the same path on all of them:
#     clusters/ssh.sh tcp://HEAD:8786 8 node-a node-b
# They get this shell's SKDCGN_ variables.
set -euo pipefail
scheduler=$1 workers=$2
shift 2
command=(env)
for name in $(compgen -e SKDCGN_); do command+=("$name=${!name}"); done
command+=("$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" >/dev/null && pwd)/worker.sh" "$scheduler" --nworkers "$workers")
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
trap exit INT TERM
for host in "$@"; do
  ssh -tt "$host" "$(printf '%q ' "${command[@]}")" </dev/null &
done
wait
