"""Merging in the types that are asked for, and as two parts; `test_loading.py` holds what merging itself promises."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from safevlm.__main__ import main
from safevlm.config import SafetyConfig
from safevlm.model import export, loading
from safevlm.model.checkpoint_folder import SAFETY_FILE
from safevlm.model.safety_modules import is_safety_name
from safevlm.training import merge
from safevlm.training.run import train
from tests import tiny
from tests.training import workshop

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage 2 with all of its files."""
    home = tmp_path_factory.mktemp("home")
    workshop.stock_folder(home / "base")
    data = workshop.save_rows(home / "data" / "train.jsonl", workshop.rows(home / "data", 12))
    optim = {"optim": {"lr": 1e-2}}
    train(workshop.recipe(home / "base", data, home / "stage1"))
    train(workshop.recipe(home / "stage1", data, home / "stage2", "stage2", **optim))
    return home / "stage2"


def _dtypes(folder: Path) -> dict[str, torch.dtype]:
    return {name: tensor.dtype for name, tensor in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("stock", [False, True])
@pytest.mark.parametrize(("dtype", "at_most"), [("float32", 0.0), ("bfloat16", 0.1), ("float16", 0.02)])
def test_weights_are_written_in_the_type_asked_for(
    run: Path, tmp_path: Path, dtype: Any, at_most: float, stock: bool
) -> None:
    merged = merge.fold(str(run), tmp_path / "out", dtype=dtype, stock=stock)
    assert merged.difference < 1e-5, "rounding is no part of what merging did"
    assert (0 < merged.rounding <= at_most) if at_most else merged.rounding == 0
    for name, found in _dtypes(tmp_path / "out").items():
        assert found == (torch.float32 if is_safety_name(name) else getattr(torch, dtype)), name
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == dtype, "stock software would load another type than was written"
    assert loading.load(tmp_path / "out").kind == ("guarded" if stock else "full")


def test_guard_is_the_same_in_every_type(run: Path, tmp_path: Path) -> None:
    """Safety weights stay float32, so that only the features that they read are rounded."""
    merge.fold(str(run), tmp_path / "out", dtype="bfloat16", stock=True)
    ours, theirs = (load_file(place / SAFETY_FILE) for place in (tmp_path / "out" / "safety", run / "final"))
    assert workshop.same_tensors(ours, theirs)


def test_weights_beyond_float16_are_an_error(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loading.load

    def with_an_outlier(*rest: Any, **named: Any) -> Any:
        loaded = real(*rest, **named)
        loaded.safe_llava.lm_head.weight.data[0] = 1e5
        return loaded

    monkeypatch.setattr(loading, "load", with_an_outlier)
    with pytest.raises(ValueError, match="--dtype bfloat16"):
        merge.fold(str(run), tmp_path / "out", dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_logits_that_are_no_numbers_are_no_agreement(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = merge._save

    def damaged(model: Any, loaded: Any, folder: Path) -> None:
        model.lm_head.weight.data[0] = float("nan")
        real(model, loaded, folder)

    monkeypatch.setattr(merge, "_save", damaged)
    with pytest.raises(ValueError, match="nothing was written"):
        merge.fold(str(run), tmp_path / "out")


def test_what_is_known_of_the_run_comes_along(run: Path, tmp_path: Path) -> None:
    for stock in (False, True):
        merge.fold(str(run), tmp_path / str(stock), stock=stock)
        for name in ("recipe.yaml", "run.json"):
            assert (tmp_path / str(stock) / name).read_bytes() == (run / "final" / name).read_bytes()


def test_command_says_what_was_written_and_what_is_lost(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    words = ["merge", str(run), "--out", str(tmp_path / "out"), "--stock", "--dtype", "bfloat16"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "bfloat16" in told and str(tmp_path / "out" / export.SIDECAR) in told
    assert f"{SafetyConfig(**tiny.SAFETY).lm_tokens} LM tokens" in told
    assert "GB of memory" in caplog.text
    assert main(["merge", str(run), "--out", str(tmp_path / "full")]) == 0
    assert "LM tokens" not in capsys.readouterr().out
