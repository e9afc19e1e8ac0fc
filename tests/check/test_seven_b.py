"""LLaVA-v1.5-7B is checked by its shapes: in under a minute, in less than 2 GB, without reading its weights."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from safevlm.check import checkpoint, model
from safevlm.check.lazy_parts import run
from tests.check import seven_b
from tests.training import workshop

ROOT = Path(__file__).parents[2]
SECONDS, GIGABYTES = 60, 2.0
MEASURED = """
import resource, sys
from safevlm.__main__ import main
code = main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, file=sys.stderr)
sys.exit(code)
"""
"""The command, and its seconds of a processor and largest memory as the last line of stderr."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("seven_b")
    seven_b.write(place / "model")
    workshop.save_rows(place / "train.jsonl", workshop.mixed_rows(place, 12))
    return place


@pytest.mark.slow
def test_the_weights_take_no_room_and_are_complete(folder: Path) -> None:
    file = folder / "model" / "model.safetensors"
    assert file.stat().st_size > 14e9 and file.stat().st_blocks * 512 < 1e6, "the file must be a hole"
    began = time.process_time()
    found = list(run(model.CHECKS, model.Subject(folder / "model")))
    assert all(one.ok for one in found), [one.title for one in found if not one.ok]
    assert time.process_time() - began < SECONDS
    assert any("7,063,427,072 parameters" in one.title for one in found), [one.title for one in found]


def test_one_missing_weight_of_686_is_named(tmp_path: Path) -> None:
    missing = "language_model.model.layers.17.mlp.up_proj.weight"
    seven_b.write(tmp_path / "model", without=missing)
    (told,) = checkpoint.incomplete(checkpoint.of_folder(tmp_path / "model"))
    assert "1 weights missing: model.language_model.layers.17.mlp.up_proj.weight" in told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "trained"),
    [
        pytest.param("stage1", "107,814,619 parameters in 96", marks=pytest.mark.thorough),
        ("stage2", "639,631,360 parameters in 448"),
    ],
)
def test_a_7b_recipe_is_checked_quickly_and_in_little_memory(folder: Path, stage: str, trained: str) -> None:
    words: list[Any] = [
        "check",
        f"safevlm/recipes/llava7b_{stage}.yaml",
        "--model.path",
        folder / "model",
        "--data.train",
        f"[{folder / 'train.jsonl'}]",
        "--run.out",
        folder / "out",
        "--optim.warmup_steps",
        "0",  # a few records make a short run
        "--gpus",
        "8",
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    seconds, memory = map(float, done.stderr.splitlines()[-1].split())
    table = json.loads(done.stdout)
    assert done.returncode == 0 and not table["failed"], [one for one in table["findings"] if not one["ok"]]
    assert any(trained in one["title"] for one in table["findings"])
    assert seconds < SECONDS and memory < GIGABYTES * 1e9, f"{seconds:.0f} s, {memory / 1e9:.2f} GB"
    assert {path.name for path in folder.iterdir() if path.name.startswith((".safevlm", "out"))} == set()
