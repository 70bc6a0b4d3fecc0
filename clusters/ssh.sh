#!/usr/bin/env bash
# Workers on other machines, for as long as this script runs; the clone has the same path on all of them:
#     clusters/ssh.sh tcp://HEAD:8786 8 node-a node-b
set -euo pipefail
scheduler=$1 workers=$2
shift 2
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" >/dev/null && pwd)
for host in "$@"; do
  ssh -tt "$host" "$(printf '%q ' "$here/worker.sh" "$scheduler" --nworkers "$workers")" </dev/null &
done
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
trap exit INT TERM
wait
