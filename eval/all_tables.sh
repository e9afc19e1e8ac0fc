#!/usr/bin/env bash
# eval/all_tables.sh OUT: every table of the miniature again, after the base or the data changed; a night on two cores.
# OUT/results receives the files in the layout of eval/results, OUT/logs a log per step, OUT/seconds.tsv how long each took.
# A step that was done is not done again; one that failed is told, and those after it that need it fail, too.
#   STEPS    only these, by name
#   SEEDS    of the trained defenses (default "256 257")
#   DRY_RUN=1 print the steps and their commands
# The table of refusal rules hangs on no base: `safevlm eval refusals`.
set -euo pipefail
out="${1:?OUT}" base=checkpoints/miniature
[ -n "${DRY_RUN:-}" ] || mkdir -p "$out/logs" "$out/done" "$out/results/"{miniature,grid,analysis}
demo="$out/demo" results="$out/results" failed=0
[ -n "${DRY_RUN:-}" ] || source "$(dirname "$0")/../scripts/env.sh"

# step NAME COMMAND: a line of shell, with its own log and seconds
step() {
  local name="$1" start status=0
  [ -z "${STEPS:-}" ] || [[ " $STEPS " == *" $name "* ]] || return 0
  if [ -n "${DRY_RUN:-}" ]; then
    printf '== %s\n%s\n' "$name" "$2" | sed -E 's/ *&& */\n/g; s/^ +//' | sed '/^ *$/d'
    return
  fi
  [ ! -f "$out/done/$name" ] || return 0
  echo "== $name"
  start=$(date +%s)
  bash -euo pipefail -c "$2" >"$out/logs/$name.log" 2>&1 || status=$?
  printf '%s\t%d\t%d\n' "$name" $(($(date +%s) - start)) "$status" >>"$out/seconds.tsv"
  if [ "$status" -eq 0 ]; then touch "$out/done/$name"; else
    echo "failed ($status); see $out/logs/$name.log" >&2
    failed=1
  fi
}

# variant FILE [flags]: stage 1 trained otherwise, in the demo's data
variant() {
  local run="$out/$1"
  step "$1" "safevlm train miniature_stage1_lm_tokens --model.path $base --data.train '[$demo/data/train.jsonl]' --run.out $run/model ${*:2} &&
    safevlm eval ask --data $demo/data --model $run/model --defense safety-head --out $run/eval --batch-size 100 &&
    safevlm eval judge --out $run/eval &&
    safevlm eval report --run none=$demo/eval/none --run stage1+safety-head=$run/eval --head stage1+safety-head --out $run &&
    cp $run/summary.json $results/miniature/$1.json"
}

step demo "DEMO_OUT=$demo bash scripts/demo.sh && cp $demo/summary.json $demo/table.md $results/miniature/"
variant stage1_lm_tokens
variant stage1_without_hints --data.hints false
seeds=""
for seed in ${SEEDS:-256 257}; do
  step "defenses_$seed" "SEED=$seed bash scripts/train_defenses.sh $base $demo/data/train.jsonl $out/seed$seed"
  seeds+="$out/seed$seed "
done
step grid "SEEDS='$seeds' bash eval/compare_defenses.sh $base $demo/data $out/grid && cp $out/grid/grid.{json,md,png} $results/grid/"
step ablations "BATCH_SIZE=100 LIMIT=900 bash eval/ablations/safevlm.sh $base $demo/data $out/ablations && cp $out/ablations/ablations.{json,md} $results/"
step safe_clip "bash eval/ablations/safe_clip.sh $base $base/clip $demo/data $out/safe_clip && cp $out/safe_clip/safe_clip.json $results/"
step relabel "bash eval/ablations/relabel_safe_clip.sh $out/relabel $demo && cp $out/relabel/summary.json $results/safe_clip_relabel.json"
step analysis "bash eval/analysis.sh $out/analysis $demo && cp $out/analysis/results/*.json $results/analysis/ && cp $out/analysis/{tsne/tsne,head/performance,layers_stage1/layers,calibration_stage1/trials}.png $results/analysis/"
step audit "bash eval/audit.sh $out/audit $demo && cp $out/audit/results/* $results/analysis/"
step bench_stage1 "bash eval/bench_stage1.sh $out/bench_stage1 450 && cp $out/bench_stage1/bench_stage1.json $results/analysis/stage1_speed.json"
step agreement "bash eval/agreement.sh $out/agreement && cp $out/agreement/agreement.json $results/"
step throughput "safevlm bench ask --data $demo/data --model $base --batch-size 64 --block-size 320 --blocks 5 --processes 1 --out $out/throughput && cp $out/throughput/throughput.json $results/"
step second_base "bash eval/second_base.sh $out/second_base && cp $out/second_base/{base.json,summary.json,table.md} $results/backbones/"
step guard "safevlm bench guard --model $demo/stage1 --base $base --data $demo/data --n 100 --out $out/speed && cp $out/speed/guard.json $results/speed/"
step serve_cost "safevlm bench serve-cost --model $demo/stage1 --base $base --data $demo/data --defense safety-head --n 120 --out $out/speed && cp $out/speed/serve_cost.json $results/speed/"
step serve_load "safevlm bench serve --model $demo/stage1 --base $base --data $demo/data --defense safety-head --clients 64 --blocks 4 --block-size 320 --batch 64 --out $out/speed && cp $out/speed/serve_load.json $results/speed/"
for part in images "records --records 1000000" "mix --records 1000000" "duplicates --fingerprints 1000000 --starts 5"; do
  name="${part%% *}"
  step "$name" "safevlm bench data --only $part --out $out/bench_$name && cp $out/bench_$name/data.json $results/speed/$name.json"
done
step train "safevlm bench train --model $base --data $demo/data/train.jsonl --rounds 5 --out $out/bench_train && cp $out/bench_train/train.json $results/speed/"
step robust_stack "bash eval/robust_stack.sh $base $demo/data/train.jsonl $out/robust"
step robustness "ANSWERS=$demo/eval/none bash eval/robustness.sh $demo/data $out/robustness head=$demo/stage1=safety-head stage2=$demo/merged=safety-head robust=$out/robust/merged=safety-head"
exit "$failed"
