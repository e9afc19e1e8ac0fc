#!/usr/bin/env bash
# scripts/stage1.sh MODEL DATA OUT [--key.sub value …]
# RECIPE (default llava7b_stage1): a shipped one by name, or a file; LAUNCHER, GPUS, NODES, HOSTFILE, DRY_RUN: see scripts/launch.sh.
set -euo pipefail
source "$(dirname "$0")/usage.sh"
needs "MODEL DATA OUT" "$@"
here="$(dirname "${BASH_SOURCE[0]}")"
source "$here/launch.sh"
model="$1" data="$2" out="$3"
shift 3
launch "${RECIPE:-llava7b_stage1}" "$model" "$data" "$out" "$@"
