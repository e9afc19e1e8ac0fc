#!/usr/bin/env bash
# scripts/stage2.sh MODEL DATA OUT [--key.sub value …]
# RECIPE (default llava7b_stage2): a shipped one by name, or a file; LAUNCHER, GPUS, NODES, HOSTFILE, DRY_RUN: see scripts/launch.sh.
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
source "$here/launch.sh"
model="${1:?MODEL}" data="${2:?DATA}" out="${3:?OUT}"
shift 3
launch "${RECIPE:-llava7b_stage2}" "$model" "$data" "$out" "$@"
