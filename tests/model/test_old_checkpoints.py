"""Folders written before `eval` moved into the package still load, and compute what they computed then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from safevlm.data import chat
from safevlm.engine import Engine
from safevlm.model import loading
from safevlm.training import recipe, run
from safevlm.types import Request

ROOT = Path(__file__).parents[2]
FOLDERS = ROOT / "tests" / "fixtures" / "before_the_move" / "checkpoints"
EXPECTED: dict[str, dict[str, Any]] = json.loads((FOLDERS / "expected.json").read_text(encoding="utf-8"))
PLACES = {"base": "base", "safety": "run", "adapter": "adapter", "full": "full", "guarded": "guarded"}
"""Name in expected.json → folder."""
QUESTION = "What is in the picture?"
TOLERANCE = 1e-4
"""Other CPUs sum in another order; what was written is rounded to 5 digits."""


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bases and records of the fixture are named by paths relative to the repository's root."""
    monkeypatch.chdir(ROOT)


def _image() -> Image.Image:
    return Image.open(FOLDERS / "data" / "train" / "00000.png").convert("RGB")


@pytest.mark.parametrize("name", PLACES)
@torch.no_grad()
def test_old_checkpoint_gives_the_logits_it_gave(name: str) -> None:
    expected = EXPECTED[name]
    loaded = loading.load(FOLDERS / PLACES[name])
    model, processor = loaded.safe_llava, loaded.processor
    ids = torch.tensor([chat.prompt_ids(processor, Request(QUESTION, ("",)), model.slots)])
    pixels = processor.image_processor([_image()], return_tensors="pt")["pixel_values"]
    assert (loaded.kind, model.slots, ids.shape[1]) == (expected["kind"], expected["slots"], expected["prompt_tokens"])
    logits = loaded.model(input_ids=ids, pixel_values=pixels).logits[0, -1]
    _same(logits[: len(expected["logits"])], expected["logits"])
    _same(logits.norm(), expected["logits_norm"])
    assert int(logits.argmax()) == expected["next"]
    if "level_logits" in expected:
        verdict = model.judge(model.encode_images(pixels).patches, [1])
        _same(verdict.level[0], expected["level_logits"])
        _same(verdict.category[0], expected["category_logits"])


@pytest.mark.parametrize("name", [name for name in PLACES if "level" in EXPECTED[name]])
def test_old_checkpoint_gives_the_verdict_it_gave(name: str) -> None:
    engine = Engine.load(FOLDERS / PLACES[name], defense="safety-head", device="cpu")
    verdict = engine.look(Request(QUESTION, (_image(),)))
    assert (verdict.level, verdict.category) == (EXPECTED[name]["level"], EXPECTED[name]["category"])


def test_old_run_goes_on_and_ends_as_it_ended(tmp_path: Path) -> None:
    """One step is left; the last weights are those of the run that the earlier code did not interrupt."""
    out = tmp_path / "run"
    shutil.copytree(FOLDERS / "run" / "checkpoint-2", out / "checkpoint-2")
    made = recipe.parse([str(out / "checkpoint-2" / "recipe.yaml"), "--run.out", str(out)])
    final = run.train(made)
    ended, before = (load_file(folder / "safety.safetensors") for folder in (final, FOLDERS / "run" / "final"))
    stopped = load_file(FOLDERS / "run" / "checkpoint-2" / "safety.safetensors")
    assert set(ended) == set(before)
    for name, weight in before.items():
        pair = (_without_key_bias(name, each) for each in (ended[name], weight))
        torch.testing.assert_close(*pair, atol=TOLERANCE, rtol=0, msg=lambda text, n=name: f"{n}: {text}")
    assert any((stopped[name] - weight).abs().max() > 10 * TOLERANCE for name, weight in before.items())


def _without_key_bias(name: str, weight: torch.Tensor) -> torch.Tensor:
    """What is added to all keys changes no attention: its gradient is rounding, of which Adam makes whole steps."""
    if not name.endswith("in_proj_bias"):
        return weight
    queries, _, values = weight.chunk(3)
    return torch.cat([queries, values])


def _same(found: torch.Tensor, expected: float | list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), atol=TOLERANCE, rtol=TOLERANCE)
