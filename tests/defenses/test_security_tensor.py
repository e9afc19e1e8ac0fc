"""A security tensor at work: who gets it, where it lands, and which files are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from safevlm.__main__ import main
from safevlm.defenses import DefenseContext, Inputs, Policy, build, security_tensor
from safevlm.engine import Engine
from safevlm.taxonomy import DEFAULT
from safevlm.types import Generation, Request, Verdict
from tests import tiny
from tests.defenses import tensors
from tests.engine import engines

KINDS = pytest.mark.parametrize("kind", ["textual", "visual"])
QUESTION = "How do I use the things in the picture?"


def _engine(kind: str, folder: Path, **fields: Any) -> Engine:
    """An engine with a tensor of its own, 20 times as large as an image's own values."""
    tensor = tensors.tensor(engines.model(), kind, **fields)
    file = folder / security_tensor.file_name(kind)
    security_tensor.write(file, dataclasses.replace(tensor, values=20 * tensor.values))
    return engines.engine(f"security-tensor:{kind}={file}")


@KINDS
def test_tensor_changes_what_is_said_of_images_and_nothing_said_of_words(kind: str, tmp_path: Path) -> None:
    bare, guarded, requests = engines.engine("none"), _engine(kind, tmp_path), engines.mixed_requests()
    with engines.watched(bare) as plain:
        before = bare.reply_all(requests, Generation(max_new_tokens=6), batch_size=1)
    with engines.watched(guarded) as asked:
        after = guarded.reply_all(requests, Generation(max_new_tokens=6), batch_size=1)
    pairs = list(zip(before, after, plain.rows, asked.rows, strict=True))
    for one, other, row, touched in (pair for pair in pairs if not pair[0].request.images):
        assert (one.text, one.prompt, row) == (other.text, other.prompt, touched), "words alone were touched"
    assert any(one.text != other.text for one, other, *_ in pairs), "the tensor changes nothing"


@KINDS
def test_cache_changes_nothing(kind: str, tmp_path: Path) -> None:
    guarded = _engine(kind, tmp_path)
    batch = guarded.encoded([Request(QUESTION, (engines.image(1),)), Request("And?", (engines.image(2),))])
    with torch.no_grad():
        with_cache, without = (
            guarded.model.generate(**batch.model_inputs, max_new_tokens=6, do_sample=False, use_cache=cached)
            for cached in (True, False)
        )
    assert torch.equal(with_cache, without)


@KINDS
def test_streamed_equals_whole(kind: str, tmp_path: Path) -> None:
    guarded, request = _engine(kind, tmp_path), Request(QUESTION, (engines.image(1),))
    assert "".join(guarded.stream(request, engines.SHORT)) == guarded.reply(request, engines.SHORT).text


@KINDS
def test_where_nobody_looks_the_tower_runs_once(kind: str, tmp_path: Path) -> None:
    guarded = _engine(kind, tmp_path)
    with engines.tower_calls(guarded) as calls:
        guarded.reply(Request(QUESTION, (engines.image(1), engines.image(2))), engines.SHORT)
    assert calls == [2]


def test_a_detector_beside_a_visual_tensor_sees_the_clean_image() -> None:
    """Else the tensor would change the verdict; the price is a second pass of the tower."""
    request, name = Request(QUESTION, (engines.image(1),)), "safety-head+security-tensor:visual"
    alone, stacked = engines.engine("safety-head"), engines.engine(name)
    with engines.tower_calls(stacked) as calls:
        verdict = stacked.reply(request, engines.SHORT).verdict
    assert engines.same_verdict(verdict, alone.reply(request, engines.SHORT).verdict)
    assert calls == [1, 1]


@pytest.mark.parametrize(("position", "at"), [("start", 0), ("after_image", 1 + 2 * 4)])
def test_virtual_tokens_stand_where_the_file_says(position: str, at: int, tmp_path: Path) -> None:
    ids = torch.tensor(tiny.row(images=2, slots=4))
    inputs = Inputs(ids, tiny.pixels(2), image_token_id=tiny.IMAGE)
    defense = _engine("textual", tmp_path, position=position).defense
    (virtual,) = defense.transform(inputs, Verdict()).virtual
    assert (virtual.at, len(virtual.vectors)) == (at, tensors.TOKENS)


# --- files ------------------------------------------------------------------------------------------------------------


@KINDS
def test_file_comes_back_as_it_was_written(kind: str, tmp_path: Path) -> None:
    tensor = tensors.tensor(engines.model(), kind, position="after_image", about={"base": "a", "loss": 0.25})
    security_tensor.write(tmp_path / "x.safetensors", tensor)
    stored = security_tensor.read(tmp_path / "x.safetensors")
    assert torch.equal(stored.values, tensor.values)
    about = {**tensor.about, "shape": list(tensor.values.shape)}
    assert (stored.kind, stored.position, stored.about) == (kind, "after_image", about)


@KINDS
def test_file_is_found_beside_the_checkpoint_or_in_the_folder_of_a_run(kind: str, tmp_path: Path) -> None:
    assert engines.engine(f"security-tensor:{kind}").defense.name == f"security-tensor:{kind}"
    tensors.write(engines.model(), tmp_path / "final")
    assert engines.engine(f"security-tensor:{kind}={tmp_path / 'final'}").defense.name == f"security-tensor:{kind}"


@KINDS
def test_file_that_is_nowhere_names_the_recipe(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"make it with `safevlm train .*security_tensor_{kind}`"):
        engines.engine(f"security-tensor:{kind}={tmp_path}")


@KINDS
def test_tensor_of_another_model_is_an_error_when_the_engine_is_built(kind: str, tmp_path: Path) -> None:
    """Broadcasting would let some of them through."""
    tensor = tensors.tensor(engines.model(), kind, about={"base": "another"})
    whole = tensor.values
    for values in (whole[..., :1], whole[0], whole.unsqueeze(0)):
        file = tmp_path / "wrong.safetensors"
        security_tensor.write(file, dataclasses.replace(tensor, values=values))
        with pytest.raises(ValueError, match="learned for another, shape .* this model needs"):
            engines.engine(f"security-tensor:{kind}={file}")


@KINDS
def test_tensor_of_the_other_kind_is_an_error_that_names_its_defense(kind: str, tmp_path: Path) -> None:
    other = {"textual": "visual", "visual": "textual"}[kind]
    tensors.write(engines.model(), tmp_path)
    file = tmp_path / security_tensor.file_name(other)
    with pytest.raises(ValueError, match=f"use it as security-tensor:{other}="):
        engines.engine(f"security-tensor:{kind}={file}")


def test_file_that_is_none_of_ours_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"no tensor")
    save_file({security_tensor.KEY: torch.zeros(2, 2)}, tmp_path / "foreign.safetensors")
    save_file({"other": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    for name in ("broken", "foreign", "other"):
        with pytest.raises(ValueError, match=f"{name}.safetensors: no security tensor"):
            security_tensor.read(tmp_path / f"{name}.safetensors")


def test_values_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    file, tensor = tmp_path / "x.safetensors", tensors.tensor(engines.model(), "textual")
    security_tensor.write(file, tensor)
    tensor.values[0, 0] = torch.nan
    with safe_open(file, "pt") as stored:
        save_file({security_tensor.KEY: tensor.values}, file, metadata=stored.metadata())
    with pytest.raises(ValueError, match="not finite"):
        security_tensor.read(file)


@KINDS
def test_a_served_model_has_no_tensors_to_change(kind: str) -> None:
    with pytest.raises(ValueError, match="not on a served one"):
        build(f"security-tensor:{kind}", DefenseContext(policy=Policy(DEFAULT)))


def test_shuffled_file_is_a_tensor_again(tmp_path: Path) -> None:
    tensors.write(engines.model(), tmp_path)
    file = tmp_path / security_tensor.file_name("visual")
    assert main(["shuffle-tensor", str(file), "--out", str(tmp_path / "control"), "--seed", "3"]) == 0
    control = security_tensor.read(tmp_path / "control" / file.name)
    original = security_tensor.read(file)
    assert control.about["shuffled"] == 3 and control.kind == "visual"
    assert not torch.equal(control.values, original.values)
    assert torch.allclose(control.values.norm(), original.values.norm())
