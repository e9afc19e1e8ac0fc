"""A companion: SafeCLIP by a CLIP beside the model, which sees the very images of a request and all of each."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from safevlm.data.images import ImageError, open_frames
from safevlm.defenses.bank import BANK_FILE, make_bank, read_bank, write_bank
from safevlm.engine import Engine
from safevlm.miniature import drawing
from safevlm.miniature.world import sample_scene
from safevlm.taxonomy import DEFAULT
from safevlm.types import Request, Verdict
from tests.defenses import banks
from tests.engine import engines

NAME = "safe-clip:companion"
QUESTION = "What is in the picture?"
MINIATURE = Path("checkpoints/miniature")


@pytest.fixture(scope="module")
def model() -> Any:
    return engines.model()


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return banks.write_companion(model, tmp_path_factory.mktemp("companion"))


@pytest.fixture(scope="module")
def guarded(model: Any, folder: Path) -> Engine:
    return engines.engine(f"{NAME}={folder}", own=model)


def same(one: Verdict, other: Verdict) -> bool:
    """But for who said it."""
    return all(
        getattr(one, table) == pytest.approx(getattr(other, table), abs=1e-5)
        for table in ("level_probabilities", "category_probabilities")
    ) and (one.level, one.category) == (other.level, other.category)


def test_the_miniatures_own_clip_says_as_a_companion_what_its_tower_says(tmp_path: Path) -> None:
    place = shutil.copytree(MINIATURE / "clip", tmp_path / "clip")
    shutil.copy(MINIATURE / "defenses" / BANK_FILE, place)
    engine = Engine.load(MINIATURE, defense="safe-clip:pooled", device="cpu")
    companion = engine.behind(f"{NAME}={place}")
    images = [drawing.draw(sample_scene(random.Random(seed), "any")) for seed in range(24)]
    seen = set()
    for image in images:
        request = Request(QUESTION, (image,))
        pooled, own = engine.look(request), companion.look(request)
        assert same(own, pooled) and own.source == NAME
        seen.add(pooled.category)
    assert len(seen) > 2, "verdicts are all alike; this test would see nothing"


def test_a_model_s_own_tower_as_companion_says_what_it_says_itself(model: Any, guarded: Engine, tmp_path: Path) -> None:
    pooled = engines.engine(f"safe-clip:pooled={banks.write(model, tmp_path)}", own=model)
    for request in engines.mixed_requests():
        assert same(guarded.look(request), pooled.look(request))


def with_stripe(left: int) -> Image.Image:
    """Four times as wide as high, with a stripe from `left` on."""
    image = Image.new("RGB", (256, 64), "white")
    image.paste((200, 30, 30), (left, 0, left + 40, 64))
    return image


def test_the_margin_of_an_image_is_seen(model: Any, guarded: Engine, tmp_path: Path) -> None:
    pooled = engines.engine(f"safe-clip:pooled={banks.write(model, tmp_path)}", own=model)
    plain, edge = (Request(QUESTION, (image,)) for image in (Image.new("RGB", (256, 64), "white"), with_stripe(0)))
    assert same(pooled.look(plain), pooled.look(edge)), "CLIP's processor cuts the margins off; here is the trap"
    assert not same(guarded.look(plain), guarded.look(edge))


def pages(*seeds: int) -> bytes:
    images = [engines.image(seed) for seed in seeds]
    content = BytesIO()
    images[0].save(content, "TIFF", save_all=True, append_images=images[1:])
    return content.getvalue()


def as_bytes(image: Image.Image) -> bytes:
    content = BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def test_every_page_is_looked_at_as_itself(guarded: Engine) -> None:
    """More pages than a vision pass takes at once."""
    request = Request(QUESTION, (engines.image(50), pages(*range(20))))
    (features,) = guarded._encoder.features([request], every_frame=True)

    def kept(images: Iterator[Image.Image]) -> list[bytes]:
        return [image.tobytes() for image in images]

    assert features.per_opened(kept) == [engines.image(seed).tobytes() for seed in (50, 0)]
    seen = [frame.features.per_opened(kept)[0] for frame in features.frames]
    assert seen == [frame.tobytes() for frame in open_frames(request.images[1])][1:]


def test_the_gravest_page_decides(guarded: Engine) -> None:
    alone = [guarded.look(Request(QUESTION, (as_bytes(engines.image(seed)),))) for seed in range(6)]
    levels = [DEFAULT.level_id(verdict.level) for verdict in alone]
    mild, grave = levels.index(min(levels)), levels.index(max(levels))
    assert levels[mild] < levels[grave], "images are all alike; this test would see nothing"
    verdict = guarded.look(Request(QUESTION, (pages(mild, mild, grave),)))
    assert same(verdict, alone[grave]) and verdict.frame.startswith("frame 3 of 3")


def test_an_image_that_is_gone_refuses_its_own_request_alone(
    guarded: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safevlm.model import image_features

    (tmp_path / "gone.png").write_bytes(as_bytes(engines.image(1)))
    open_image = image_features.open_image

    def gone(source: Any) -> Image.Image:
        if isinstance(source, Path):
            raise ImageError(f"{source}: no such image file")
        return open_image(source)

    monkeypatch.setattr(image_features, "open_image", gone)
    requests = [Request(QUESTION, (image,)) for image in (engines.image(0), tmp_path / "gone.png", engines.image(2))]
    replies = guarded.reply_all(requests, engines.SHORT)
    assert [reply.refused_by for reply in replies if reply.verdict.error] == [NAME]
    assert "gone.png" in replies[1].verdict.error and not replies[1].prompt


def test_a_checkpoint_s_own_companion_is_found_by_itself(model: Any) -> None:
    assert engines.engine(NAME, own=model).look(Request(QUESTION, (engines.image(),))).source == NAME


def _no_bank(place: Path, model: Any) -> None:
    (place / BANK_FILE).unlink()


def _no_processor(place: Path, model: Any) -> None:
    (place / "preprocessor_config.json").unlink()


def _no_tower(place: Path, model: Any) -> None:
    (place / "model.safetensors").unlink()


def _other_tower(place: Path, model: Any) -> None:
    other = banks.clip_of(model)
    with torch.no_grad():
        other.vision_model.embeddings.patch_embedding.weight.mul_(1.1)
    other.save_pretrained(place)


def _bank_of_the_paper(place: Path, model: Any) -> None:
    (place / BANK_FILE).unlink()
    engines.tokenizer().save_pretrained(place)
    write_bank(make_bank(banks.CONCEPTS, place, feature="paper"), place / BANK_FILE)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_no_bank, "safevlm embed --clip DIR --out DIR/safe_clip.safetensors"),
        (_no_processor, "preprocessor_config.json"),
        (_no_tower, "cannot be loaded"),
        (_other_tower, "another vision tower"),
        (_bank_of_the_paper, "--feature pooled"),
    ],
)
def test_a_companion_that_does_not_fit_is_an_error_before_anything_is_answered(
    model: Any, folder: Path, tmp_path: Path, damage: Any, told: str
) -> None:
    place = shutil.copytree(folder, tmp_path / "companion")
    damage(place, model)
    with pytest.raises(ValueError, match=told):
        engines.engine(f"{NAME}={place}", own=model)


def test_a_companion_belongs_to_a_runs_identity(folder: Path) -> None:
    from safevlm.evaluation.runs.run_file import _defense_files

    files = {file.name for file in _defense_files(f"{NAME}={folder}", [])}
    assert files == {"model.safetensors", BANK_FILE, "preprocessor_config.json"}
    assert read_bank(folder / BANK_FILE, DEFAULT).head is None
