# Sourced by stage1.sh and stage2.sh: `launch RECIPE MODEL DATA OUT [--key.sub value …]` prints the command and runs it.
#
#   LAUNCHER   deepspeed (default) | torchrun | none (one process)
#   GPUS       processes per node (default 8)
#   NODES      nodes (default 1); then HOSTFILE for deepspeed, or MASTER_ADDR (and NODE_RANK, MASTER_PORT) for torchrun
#   DRY_RUN=1  print only

launch() {
  local recipe="$1" model="$2" data="$3" out="$4"
  shift 4
  local gpus="${GPUS:-8}" nodes="${NODES:-1}" start
  case "${LAUNCHER:-deepspeed}" in
    deepspeed)
      start=(deepspeed --num_gpus "$gpus")
      [ "$nodes" -eq 1 ] || start=(deepspeed --hostfile "${HOSTFILE:?several nodes need HOSTFILE: lines of NAME slots=$gpus}"
        --num_nodes "$nodes" --num_gpus "$gpus")
      start+=(--module safevlm) ;;
    torchrun)
      start=(torchrun --nproc_per_node "$gpus")
      [ "$nodes" -eq 1 ] || start+=(--nnodes "$nodes" --node_rank "${NODE_RANK:?torchrun needs NODE_RANK on every node}"
        --master_addr "${MASTER_ADDR:?torchrun needs MASTER_ADDR, the first node}" --master_port "${MASTER_PORT:-29500}")
      start+=(--module safevlm) ;;
    none) start=(safevlm) ;;
    *)
      echo "LAUNCHER=$LAUNCHER: one of deepspeed, torchrun, none" >&2
      return 2 ;;
  esac
  local command=("${start[@]}" train "$recipe" --model.path "$model" --data.train "[$data]" --run.out "$out" "$@")
  printf '%q ' "${command[@]}"
  echo
  [ -n "${DRY_RUN:-}" ] || exec "${command[@]}"
}
