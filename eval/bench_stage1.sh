#!/usr/bin/env bash
# eval/bench_stage1.sh OUT [STEPS]: head-only stage 1 beside the full one, on the miniature, in one run.
# The same records and the same number of updates; head-only runs a second time at the end, which shows how steady the
# machine was. OUT/bench_stage1.json receives samples per second and the head's accuracy on held-out scenes.
set -euo pipefail
source "$(dirname "$0")/../scripts/env.sh"
out="${1:?OUT}" steps="${2:-450}"

[ -f "$out/data/train.jsonl" ] || python -m safevlm.miniature data --out "$out/data"
for row in head_only:miniature_stage1 full:miniature_stage1_lm_tokens head_only_again:miniature_stage1; do
  name="${row%%:*}"
  safevlm train "${row#*:}" --model.path checkpoints/miniature --optim.max_steps "$steps" \
    --data.train "[$out/data/train.jsonl]" --run.out "$out/$name" --run.resume false --run.save_steps 100000
  safevlm analyze head --model "$out/$name" --data "held-out=$out/data/eval.jsonl" --out "$out/$name/analysis"
done

python - "$out" "$steps" <<'PYTHON'
import json
import sys
from pathlib import Path

out, steps = Path(sys.argv[1]), int(sys.argv[2])
table = {"command": f"bash eval/bench_stage1.sh OUT {steps}", "updates": steps, "batch": 32, "rows": {}}
for name in ("head_only", "full", "head_only_again"):
    end = json.loads((out / name / "final" / "trainer_state.json").read_text())["log_history"][-1]
    table["rows"][name] = {
        "samples_per_second": end["train_samples_per_second"],
        "seconds": end["train_runtime"],
        "head": json.loads((out / name / "analysis" / "summary.json").read_text())["sets"]["held-out"],
    }
rows = table["rows"]
table["times_faster"] = rows["head_only"]["samples_per_second"] / rows["full"]["samples_per_second"]
(out / "bench_stage1.json").write_text(json.dumps(table, indent=1) + "\n")
for name, row in rows.items():
    print(f"{name:16} {row['samples_per_second']:8.1f} samples/s  {row['seconds']:7.1f} s")
print(f"head-only is {table['times_faster']:.1f} times faster; {out / 'bench_stage1.json'}")
PYTHON
