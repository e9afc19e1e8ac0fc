"""SafeCLIP behind other families: by the tower's own text side where it has one, by a companion everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPImageProcessorPil

from safevlm.__main__ import main
from safevlm.backbones.image_inputs import ImageInputs
from safevlm.backbones.table import BACKBONES
from safevlm.data import chat_messages
from safevlm.data.records import Record
from safevlm.defenses import prompts
from safevlm.defenses.bank import BANK_FILE, read_bank
from safevlm.defenses.safe_clip import SafeClipDetector
from safevlm.engine import Engine
from safevlm.model import loading
from safevlm.taxonomy import DEFAULT
from safevlm.training.relabel import relabel
from safevlm.types import Request
from tests.backbones import families, text_sides
from tests.backbones.features import FEATURES
from tests.backbones.test_contract import SHORT, counted, guarded, requests

WITH_TEXT_SIDE = FEATURES["SafeCLIP by its own tower"]
CONCEPTS = """concepts:
  - {name: plain, category: clean, level: safe, templates: [a plain thing, everyday life]}
  - {name: brax, category: illegal, level: may_refuse, templates: [a brax, something illegal, "a brax, seen"]}
  - {name: klet, category: insults, level: careful, templates: [a klet]}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("safe_clip")
    (place / "concepts.yaml").write_text(CONCEPTS, encoding="utf-8")
    return place


def embed(home: Path, clip: Path, *words: str) -> int:
    return main(["embed", str(home / "concepts.yaml"), "--clip", str(clip), "--tau", "0.3", *words])


def folder(home: Path, family: str, *, has_head: bool = True) -> tuple[Path, Path]:
    """A stock model with a concept bank of its own tower, and the whole CLIP or SigLIP that the tower is from."""
    place = home / f"{family}{'' if has_head else ' without head'}"
    clip = place / "clip"
    if not place.is_dir():
        model, processor = families.stock(family)
        text_sides.saved(text_sides.whole_of(model, processor.tokenizer), processor.tokenizer, clip)
        if not has_head:
            tower = model.get_submodule(BACKBONES[family].tower)
            del tower.head
            tower.use_head = tower.config.vision_use_head = False
        model.save_pretrained(place)
        processor.save_pretrained(place)
        assert embed(home, clip, "--model", str(place)) == 0
    return place, clip


def logits_of_the_whole(clip: Path, family: str, request: Request) -> Tensor:
    """(images, texts), by transformers' own `forward` of the whole CLIP or SigLIP on the first tile of each image."""
    _, processor = families.stock(family)
    bank = read_bank(clip.parent / "defenses" / BANK_FILE, DEFAULT)
    kind = text_sides.CLIPModel if bank.facts.kind == "clip" else text_sides.SiglipModel
    whole, tokenizer = kind.from_pretrained(clip).eval(), processor.tokenizer
    tiles = [image.tensors["pixel_values"] for image in BACKBONES[family].read(processor, list(request.images))]
    pixels = torch.cat([tile.flatten(0, -4)[:1] for tile in tiles])
    rows = []
    for text in [template for concept in bank.concepts for template in concept.templates]:
        if bank.facts.kind == "clip":
            given = {"input_ids": torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])}
        else:
            length = text_sides.POSITIONS
            ids = tokenizer(text, padding="max_length", max_length=length, padding_side="right")["input_ids"]
            given = {"input_ids": torch.tensor([ids])}
        with torch.no_grad():
            rows.append(whole(**given, pixel_values=pixels).logits_per_image)
    return torch.cat(rows, 1)


@pytest.mark.parametrize(
    ("family", "has_head"),
    [
        ("llava_next", True),
        ("gemma3", True),
        ("gemma3", False),
        pytest.param("llava_onevision", True, marks=pytest.mark.slow),
        pytest.param("llava_onevision", False, marks=pytest.mark.slow),
    ],
)
def test_the_models_own_tower_gives_the_probabilities_of_the_whole_clip(
    home: Path, family: str, has_head: bool
) -> None:
    """Of a SigLIP: text by text the odds of its sigmoid, which is what makes the softmax its rule too."""
    place, clip = folder(home, family, has_head=has_head)
    engine = Engine.load(place, defense="safe-clip", device="cpu")
    bank = read_bank(place / "defenses" / BANK_FILE, DEFAULT)
    for request in (requests()[1], requests()[3]):
        logits = logits_of_the_whole(clip, family, request)
        fits = logits.double().sigmoid()
        weights = logits.double().exp() if bank.facts.kind == "clip" else fits / (1 - fits)
        counts = [len(concept.templates) for concept in bank.concepts]
        masses = torch.stack([part.mean(-1) for part in weights.split(counts, -1)], -1)
        expected = masses / masses.sum(-1, keepdim=True)
        vision = engine.model.encode_images(ImageInputs(BACKBONES[family].read(engine.processor, request.images)))
        found = SafeClipDetector(bank, DEFAULT).probabilities(vision)
        assert torch.allclose(torch.tensor(found).double(), expected, atol=1e-4)
        assert len({tuple(row) for row in found}) == len(request.images), "images are all alike"


@families.each(WITH_TEXT_SIDE)
def test_safe_clip_by_the_models_own_tower(home: Path, family: str) -> None:
    place, _ = folder(home, family)
    engine = Engine.load(place, defense="safe-clip", device="cpu")
    with counted(engine.model.get_submodule(BACKBONES[family].tower)) as calls:
        together = engine.reply_all(requests(), SHORT, batch_size=8, errors="raise")
    assert len(calls) == 1, "the answer must use what the detector saw"
    check_alone(engine, together, "safe-clip")


def check_alone(engine: Engine, together: list[Any], name: str) -> None:
    """A batch sees what each request shows alone, and something of each request with an image."""
    seen = set()
    for reply, request in zip(together, requests(), strict=True):
        verdict, alone = reply.verdict, engine.look(request)
        assert (verdict.source, verdict.error, verdict.looked) == (name, "", bool(request.images))
        assert (verdict.level, verdict.category) == (alone.level, alone.category)
        assert verdict.category_probabilities == pytest.approx(alone.category_probabilities, abs=1e-5)
        seen.add(tuple(verdict.category_probabilities.values()))
    assert len(seen) > 3, "verdicts are all alike"


@families.each(sorted(set(families.ANSWERING) - set(WITH_TEXT_SIDE)))
def test_a_tower_without_a_text_side_is_refused_with_the_way_out(home: Path, family: str) -> None:
    place = home / family
    if not place.is_dir():
        families.saved(family, place)
    with pytest.raises(ValueError, match=r"safe-clip:companion=DIR"):
        Engine.load(place, defense="safe-clip", device="cpu")


def test_the_paper_s_reading_is_llavas_alone(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, clip = folder(home, "llava_next")
    with pytest.raises(ValueError, match="safe-clip:pooled"):
        Engine.load(place, defense="safe-clip:paper", device="cpu")
    out = tmp_path / "bank"
    assert embed(home, clip, "--feature", "paper", "--model", str(place), "--out", str(out)) == 1
    assert "safe-clip:pooled" in capsys.readouterr().err
    siglip = folder(home, "gemma3")[1]
    assert embed(home, siglip, "--feature", "paper", "--out", str(out)) == 2
    assert "--feature" in capsys.readouterr().err and not out.exists()


@pytest.fixture
def other(home: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A SigLIP that gemma3's tower is not from."""
    model, processor = families.stock("gemma3")
    whole = text_sides.whole_of(model, processor.tokenizer)
    if request.param == "a layer more":
        whole.config.vision_config.num_hidden_layers += 1
        whole = type(whole)(whole.config)
    else:
        whole.vision_model.embeddings.patch_embedding.weight.data.mul_(1.1)
    yield text_sides.saved(whole, processor.tokenizer, tmp_path / "other")


@pytest.mark.parametrize(
    ("other", "told"),
    [("other weights", "another vision tower"), ("a layer more", "weights, and not")],
    indirect=["other"],
)
def test_a_bank_of_another_tower_is_refused_and_nothing_is_written(
    home: Path, tmp_path: Path, other: Path, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place, _ = folder(home, "gemma3")
    out = tmp_path / "bank"
    assert embed(home, other, "--model", str(place), "--out", str(out)) == 1
    assert told in capsys.readouterr().err and not out.exists()
    assert embed(home, other, "--model", str(place), "--out", str(out), "--foreign-tower") == 0
    engine = Engine.load(place, defense=f"safe-clip={out}", device="cpu")
    assert not engine.look(requests()[0]).error, "to compare, a head of the tower's width is enough"


def test_a_bank_of_a_clip_is_none_of_a_siglip_even_to_compare(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "bank"
    assert embed(home, folder(home, "llava_next")[1], "--out", str(out), "--foreign-tower") == 0
    with pytest.raises(ValueError, match="made with a clip, and this model's vision tower is a siglip"):
        Engine.load(folder(home, "gemma3")[0], defense=f"safe-clip={out}", device="cpu")


# --- a companion ------------------------------------------------------------------------------------------------------


def companion(home: Path, kind: str) -> Path:
    """A CLIP (of llava_next's tower) or a SigLIP (of gemma3's), with image processor and bank."""
    place = folder(home, {"clip": "llava_next", "siglip": "gemma3"}[kind])[1]
    if not (place / BANK_FILE).exists():
        size = {"height": families.SIDE, "width": families.SIDE}
        CLIPImageProcessorPil(size={"shortest_edge": families.SIDE}, crop_size=size).save_pretrained(place)
        assert embed(home, place, "--out", str(place / BANK_FILE)) == 0
    return place


@families.few(FEATURES["SafeCLIP by a companion"])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_companion_looks_in_front_of_every_family(home: Path, family: str, kind: str) -> None:
    place = home / family
    if not place.is_dir():
        families.saved(family, place)
    engine = Engine.load(place, defense=f"safe-clip:companion={companion(home, kind)}", device="cpu")
    own, detector = engine.model.get_submodule(BACKBONES[family].tower), engine.defense.detector
    with counted(own) as calls, counted(detector.tower) as looks:
        together = engine.reply_all(requests(), SHORT, batch_size=8, errors="raise")
    assert (len(looks), len(calls)) == (1, 1), "one pass of each tower for a batch"
    with counted(own) as calls:
        check_alone(engine, together, "safe-clip:companion")
    assert not calls, "the model's own tower has nothing to do with it"
    images = [image for request in requests() for image in request.images]
    assert len(detector.look_at(iter(images))) == len(images)


def test_a_companion_stacks_with_the_head_in_front_of_a_tower_without_a_text_side(home: Path) -> None:
    engine = guarded(home, "qwen3_vl", f"safety-head+safe-clip:companion={companion(home, 'siglip')}")
    for reply, request in zip(engine.reply_all(requests(), SHORT, errors="raise"), requests(), strict=True):
        assert (reply.verdict.error, reply.verdict.looked) == ("", bool(request.images))
    assert engine.defense.name == "safety-head+safe-clip:companion"


# --- beside the defense -----------------------------------------------------------------------------------------------


def test_training_data_is_relabelled_by_the_familys_own_tower(home: Path, tmp_path: Path) -> None:
    place, _ = folder(home, "gemma3")
    bank = place / "defenses" / BANK_FILE
    images = [tmp_path / f"{seed}.png" for seed in range(6)]
    for seed, file in enumerate(images):
        families.image(seed, 30, 20).save(file)
    asked = (chat_messages.user("What is it?", 1), chat_messages.assistant("A cup."))
    records = [Record(file.stem, file.name, asked, (file,)) for file in images]
    recipe: Any = SimpleNamespace(data=SimpleNamespace(relabel=str(bank)))
    arguments: Any = SimpleNamespace(device=torch.device("cpu"), process_index=0, world_size=1)
    corrected, counts = relabel(records, recipe, loading.load(place), arguments)
    engine = Engine.load(place, defense="safe-clip", device="cpu")
    for record, file in zip(corrected, images, strict=True):
        verdict = engine.look(Request("?", images=(file,)))
        said = record.messages[-1]["content"][-1]["text"]
        assert said == ("A cup." if verdict.is_clean else prompts.refusal(DEFAULT, verdict.category))
    assert 0 < sum(counts.values()) < len(images), "all are alike; this test would see nothing"


def test_readings_of_the_cls_are_compared_on_llava_alone(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, _ = folder(home, "gemma3")
    words = ["--bank", str(place / "defenses" / BANK_FILE), "--data", "x.jsonl", "--out", str(tmp_path / "out.json")]
    assert main(["analyze", "safe-clip", "--model", str(place), "--device", "cpu", *words]) == 2
    assert "LLaVA-v1.5" in capsys.readouterr().err
