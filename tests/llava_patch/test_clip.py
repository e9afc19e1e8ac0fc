"""Texts in CLIP's space are CLIP's own embeddings, whichever tokenizer and file layout the folder has."""

from __future__ import annotations

import copy
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import AutoTokenizer, CLIPModel, CLIPTokenizer

from llava_patch import clip
from llava_patch.clip import LEGACY_END, read_text_space
from llava_patch.fingerprint import fingerprint, is_same
from safevlm.miniature.build import encode_captions
from tests.defenses import banks
from tests.engine import engines

TEXTS = ["a vork", "everyday life and something harmless", "a word"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return banks.clip_folder(engines.model(), tmp_path_factory.mktemp("clip"))


def _expected(folder: Path) -> torch.Tensor:
    """As the miniature's CLIP was trained: one padded batch."""
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        pooled = model.text_model(**encode_captions(engines.tokenizer(), TEXTS)).pooler_output
        return torch.nn.functional.normalize(model.text_projection(pooled), dim=-1)


def test_embeddings_are_clips_own(folder: Path) -> None:
    space = read_text_space(folder, TEXTS)
    assert torch.allclose(space.texts, _expected(folder), atol=1e-5)
    assert torch.allclose(space.texts.norm(dim=-1), torch.ones(len(TEXTS)))


def test_scale_projection_and_tower_are_the_folders(folder: Path) -> None:
    model, space = CLIPModel.from_pretrained(folder), read_text_space(folder, TEXTS)
    assert space.scale == pytest.approx(model.logit_scale.exp().item())
    assert torch.equal(space.projection, model.visual_projection.weight)
    assert is_same(space.tower, fingerprint(model.vision_model.state_dict()))


def test_tokenizer_that_adds_the_end_itself_gives_the_same(folder: Path, tmp_path: Path) -> None:
    CLIPModel.from_pretrained(folder).save_pretrained(tmp_path)
    tokenizer = copy.deepcopy(engines.tokenizer())
    ends = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=ends
    )
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("a vork")["input_ids"][-1] == tokenizer.eos_token_id
    assert torch.equal(read_text_space(tmp_path, TEXTS).texts, read_text_space(folder, TEXTS).texts), (
        "the end token is missing, or there twice"
    )


@pytest.mark.parametrize("end_in_config", [LEGACY_END, None], ids=["as published", "as corrected"])
def test_clips_own_tokenizer_and_the_published_config_give_clips_own_embeddings(
    tmp_path: Path, end_in_config: int | None
) -> None:
    letters = list(string.ascii_lowercase)
    words = ["!", *letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: at for at, word in enumerate(words)}, merges=[])
    model = banks.clip_of(engines.model(), positions=40)
    model.config.text_config.eos_token_id = tokenizer.eos_token_id if end_in_config is None else end_in_config
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ["a cup", "a longer name of a cup"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    whole = CLIPModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = whole.text_projection(whole.text_model(**batch).pooler_output)
    assert torch.allclose(
        read_text_space(tmp_path, texts).texts, torch.nn.functional.normalize(expected, dim=-1), atol=1e-5
    )


def test_every_text_ends_once(folder: Path) -> None:
    model, tokenizer = clip._load(folder)
    for text in (*TEXTS, "a vork</s>", "</s> a vork"):
        ids = clip._ids(text, tokenizer, model, folder)
        assert ids[-1] == tokenizer.eos_token_id and ids.count(tokenizer.eos_token_id) == 1


def test_pickled_weights_are_read_too(folder: Path, tmp_path: Path) -> None:
    model = CLIPModel.from_pretrained(folder)
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    first, second = read_text_space(folder, TEXTS), read_text_space(tmp_path, TEXTS)
    torch.testing.assert_close(first.texts, second.texts)  # where weights lie in memory moves the last bit
    assert len(second.sha256) == 64 and first.sha256 != second.sha256, "the hash is of the files, not of nothing"


def test_template_that_is_too_long_is_named(folder: Path) -> None:
    long = "something harmless and " * 9
    with pytest.raises(ValueError, match=r"template 'something harmless.*this CLIP reads 16"):
        read_text_space(folder, ["a vork", long])


def _without_weight(place: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(place / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})


def _other_end(place: Path) -> None:
    config = (place / "config.json").read_text(encoding="utf-8")
    (place / "config.json").write_text(config.replace('"eos_token_id": 3', '"eos_token_id": 5'), encoding="utf-8")


def _not_clip(place: Path) -> None:
    (place / "config.json").write_text('{"model_type": "llava"}', encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_weight, "1 weights missing"),
        (_other_end, "the tokenizer ends texts with 3, and CLIP pools at 5"),
        (_not_clip, "model_type 'llava'; give the folder of a whole CLIP"),
        (lambda place: (place / "config.json").unlink(), "no config.json"),
        (lambda place: (place / "model.safetensors").unlink(), "this CLIP cannot be loaded"),
    ],
)
def test_folder_that_is_no_whole_clip_is_an_error(folder: Path, tmp_path: Path, damage: Any, message: str) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_text_space(tmp_path, TEXTS)
