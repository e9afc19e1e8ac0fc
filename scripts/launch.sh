# Sourced by stage1.sh and stage2.sh: `launch RECIPE MODEL DATA OUT [--key.sub value …]` prints the command and runs it.
#
#   LAUNCHER   deepspeed (default) | torchrun | none (one process)
#   GPUS       processes per node (default 8)
#   NODES      nodes (default 1); then HOSTFILE for deepspeed, or MASTER_ADDR (and NODE_RANK, MASTER_PORT) for torchrun
#   DRY_RUN=1  print only

# shellcheck source=scripts/usage.sh
source "$(dirname "${BASH_SOURCE[0]}")/usage.sh"

launch() {
  local recipe="$1" model="$2" data="$3" out="$4"
  shift 4
  local gpus="${GPUS:-8}" nodes="${NODES:-1}" start
  counts GPUS "$gpus"
  counts NODES "$nodes"
  case "${LAUNCHER:-deepspeed}" in
    deepspeed)
      start=(deepspeed --num_gpus "$gpus")
      if [ "$nodes" -gt 1 ]; then
        [ -n "${HOSTFILE:-}" ] || wrong "several nodes need HOSTFILE: lines of NAME slots=$gpus"
        start=(deepspeed --hostfile "$HOSTFILE" --num_nodes "$nodes" --num_gpus "$gpus")
      fi
      start+=(--module safevlm) ;;
    torchrun)
      start=(torchrun --nproc_per_node "$gpus")
      if [ "$nodes" -gt 1 ]; then
        [ -n "${NODE_RANK:-}" ] || wrong "torchrun needs NODE_RANK on every node"
        [ -n "${MASTER_ADDR:-}" ] || wrong "torchrun needs MASTER_ADDR, the first node"
        start+=(--nnodes "$nodes" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}")
      fi
      start+=(--module safevlm) ;;
    none) start=(safevlm) ;;
    *)
      wrong "LAUNCHER=$LAUNCHER: one of deepspeed, torchrun, none" ;;
  esac
  local command=("${start[@]}" train "$recipe" --model.path "$model" --data.train "[$data]" --run.out "$out" "$@")
  printf '%q ' "${command[@]}"
  echo
  [ -n "${DRY_RUN:-}" ] || exec "${command[@]}"
}
