#!/usr/bin/env bash
# The one call on a machine with a card, from the repository's root; OUT is the folder that comes back:
#
#   bash scripts/gpu_check.sh --out "$OUT/gpu"
#
# Nine minutes at most (--seconds 525). Needs python3 with torch, transformers, peft and accelerate, and nothing else:
# no network, no installation. Rows are on the disk after every step; the same call again goes on where it was cut.
# WHEELS=DIR: a folder of wheels that was carried along, such as TRL's, is unpacked and used before the machine's.
# To try the check itself without a card: bash scripts/gpu_check.sh --shape tiny --device cpu --out runs/gpu_check
# All flags: --help; the steps with their estimates: --plan --out DIR
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if [ -n "${WHEELS:-}" ]; then
  carried="$(mktemp -d)"
  python3 -m pip install --quiet --no-index --no-deps --no-compile --target "$carried" "$WHEELS"/*.whl
  export PYTHONPATH="$carried:$PYTHONPATH"  # in front of an older one that the machine has
fi
exec python3 -m safevlm.evaluation.speed.gpu_check "$@"
