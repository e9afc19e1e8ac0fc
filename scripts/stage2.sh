#!/usr/bin/env bash
# scripts/stage2.sh MODEL DATA OUT [--key.sub value …]
# GPUS (default 8) per node; NODES (default 1) with HOSTFILE; RECIPE (default scripts/recipes/llava7b_stage2.yaml).
set -euo pipefail
model="${1:?MODEL}" data="${2:?DATA}" out="${3:?OUT}"
shift 3
recipe="${RECIPE:-scripts/recipes/llava7b_stage2.yaml}"

launch=(deepspeed --num_gpus "${GPUS:-8}")
[ "${NODES:-1}" -gt 1 ] && launch=(deepspeed --hostfile "${HOSTFILE:?a hostfile for several nodes}" --num_gpus "${GPUS:-8}")
command=("${launch[@]}" --module safevlm train "$recipe" --model.path "$model" --data.train "[$data]" --run.out "$out" "$@")
printf '%q ' "${command[@]}"
echo
exec "${command[@]}"
