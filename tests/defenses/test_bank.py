"""A bank file holds what was written, says what it was made of, and refuses what it is not of."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from safevlm.__main__ import main
from safevlm.defenses.bank import hash_of, make_bank, read_bank, write_bank
from safevlm.defenses.concepts import DEFAULT_CONCEPTS, Concept
from safevlm.taxonomy import DEFAULT
from tests.defenses import banks
from tests.engine import engines


@pytest.fixture(scope="module")
def model() -> Any:
    return engines.model()


def test_bank_is_read_as_it_was_written(model: Any, tmp_path: Path) -> None:
    bank = banks.bank(model)
    write_bank(bank, tmp_path / "new" / "bank.safetensors")
    again = read_bank(tmp_path / "new" / "bank.safetensors", DEFAULT)
    assert (again.facts, again.concepts) == (bank.facts, bank.concepts)
    for name in ("texts", "projection", "tower"):
        assert torch.equal(getattr(again, name), getattr(bank, name)), name
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["bank.safetensors"], "a partial file was left"


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_tower_in_half_precision_is_the_banks_own(model: Any, kind: torch.dtype) -> None:
    half = {name: weight.to(kind) for name, weight in model.model.vision_tower.state_dict().items()}
    banks.bank(model).check_tower(half, "bank")


def test_cls_of_another_width_is_an_error(model: Any) -> None:
    bank = banks.bank(model)
    width = bank.projection.shape[1]
    with pytest.raises(ValueError, match=f"of width {width}, and the tower gives {2 * width}.*safevlm embed"):
        bank.probabilities(torch.zeros(1, 2 * width))


def _altered(file: Path) -> None:
    tensors = load_file(file)
    with safe_open(file, framework="pt") as stored:
        metadata = stored.metadata()
    tensors["texts"][0, 0] += 1e-3
    save_file(tensors, file, metadata=metadata)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_altered, "its hash differs"),
        (lambda file: file.write_bytes(file.read_bytes()[:-40]), "not a concept bank"),
        (lambda file: save_file({"texts": torch.zeros(1)}, file), "not a concept bank"),
        (lambda file: file.unlink(), "not a concept bank"),
    ],
)
def test_damaged_bank_is_an_error_with_the_fix(model: Any, tmp_path: Path, damage: Any, message: str) -> None:
    file = banks.write(model, tmp_path)
    damage(file)
    with pytest.raises(ValueError, match=f"{message}.*safevlm embed"):
        read_bank(file, DEFAULT)


def test_bank_with_labels_of_another_taxonomy_is_an_error(model: Any, tmp_path: Path) -> None:
    bank = banks.bank(model)
    odd = (*bank.concepts[:-1], Concept("klet", "weather", "careful", bank.concepts[-1].templates))
    write_bank(dataclasses.replace(bank, concepts=odd), tmp_path / "bank.safetensors")
    with pytest.raises(ValueError, match=r"bank.safetensors: .*'klet': category: unknown 'weather'"):
        read_bank(tmp_path / "bank.safetensors", DEFAULT)


# --- safevlm embed ----------------------------------------------------------------------------------------------------


def test_embed_writes_the_bank_and_what_it_was_made_of(model: Any, tmp_path: Path) -> None:
    folder, out = banks.clip_folder(model, tmp_path / "clip", positions=40), tmp_path / "bank.safetensors"
    assert main(["embed", "--clip", str(folder), "--out", str(out), "--feature", "paper", "--tau", ".7"]) == 0
    bank = read_bank(out, DEFAULT)
    assert (bank.facts.feature, bank.facts.tau, bank.facts.foreign) == ("paper", 0.7, False)
    assert bank.facts.file == hash_of(DEFAULT_CONCEPTS)
    assert bank.facts.clip == make_bank(banks.CONCEPTS, folder).facts.clip
    assert (len(bank.concepts), len(bank.texts)) == (8, 40)
    bank.check_tower(model.model.vision_tower.state_dict(), out)


def test_embed_does_not_write_over_another_bank_or_another_file(
    model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = banks.clip_folder(model, tmp_path / "clip", positions=40), tmp_path / "out" / "bank.safetensors"
    words = ["embed", "--clip", str(folder), "--out", str(out)]
    assert main(words) == main(words) == 0, "the same bank again is the same bank"
    before = out.read_bytes()
    assert main([*words, "--tau", "0.7"]) == 1
    said = capsys.readouterr().err
    assert "tau 0.6 -> 0.7" in said and str(out) in said and "--out" in said
    assert out.read_bytes() == before and [file.name for file in out.parent.iterdir()] == [out.name]
    save_file({"a": torch.ones(1)}, out)
    assert main(words) == 1 and "not a concept bank" in capsys.readouterr().err


def test_embed_marks_a_foreign_tower(model: Any, tmp_path: Path) -> None:
    folder, out = banks.clip_folder(model, tmp_path / "clip", positions=40), tmp_path / "bank.safetensors"
    assert main(["embed", "--clip", str(folder), "--out", str(out), "--foreign-tower"]) == 0
    other = {name: weight + 1 for name, weight in model.model.vision_tower.state_dict().items()}
    read_bank(out, DEFAULT).check_tower(other, out)


@pytest.mark.parametrize("tau", ["-1", "1.1", "nan"])
def test_embed_refuses_a_tau_that_is_no_probability(
    model: Any, tmp_path: Path, tau: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["embed", "--clip", str(tmp_path), "--out", str(tmp_path / "bank"), f"--tau={tau}"])
    assert left.value.code == 2 and f"--tau: '{tau}'" in capsys.readouterr().err
    assert not (tmp_path / "bank").exists()
