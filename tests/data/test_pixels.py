"""A tiny file must not become gigabytes: what an image is padded or scaled to is bounded before it is made."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil

from safevlm.analysis.audit.images import read
from safevlm.analysis.audit.plan import PlacedItem
from safevlm.analysis.audit.sources import Item
from safevlm.data.collate import Collator
from safevlm.data.images import MAX_PIXELS, ImageError
from safevlm.data.pixels import check_fits, open_fitting, pixel_values
from safevlm.data.records import RecordError, read_records
from safevlm.taxonomy import DEFAULT
from safevlm.training.image_passes import image_passes
from safevlm.types import Request
from tests.engine import engines

ROOT = Path(__file__).parents[2]
SIDE = 336
CROPS = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
PADS = LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
NARROW = (60_000, 1)


def _png(size: tuple[int, int]) -> bytes:
    content = BytesIO()
    Image.new("1", size, 1).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("processor", "fits", "does_not"),
    [
        (PADS, (8_000, 1), (8_001, 1)),
        (PADS, (8_000, 8_000), (60_000, 1)),
        (CROPS, (566, 1), (567, 1)),
        (CROPS, (60_000, 200), (60_000, 1)),
    ],
)
def test_the_bound_is_on_what_the_image_becomes(
    processor: Any, fits: tuple[int, int], does_not: tuple[int, int], turned: bool
) -> None:
    def image(size: tuple[int, int]) -> Image.Image:
        return Image.new("RGB", size[::-1] if turned else size)

    check_fits(processor, image(fits), "a.png")
    with pytest.raises(ImageError, match=f"a.png: .*over the limit of {MAX_PIXELS:,}"):
        check_fits(processor, image(does_not), "a.png")


def test_ordinary_images_are_prepared_as_ever() -> None:
    images = [Image.linear_gradient("L").resize(size).convert("RGB") for size in ((40, 30), (300, 20), (64, 64))]
    for processor in (PADS, CROPS):
        assert np.array_equal(pixel_values(processor, images), processor(images, return_tensors="np")["pixel_values"])


def _uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


@pytest.fixture
def narrow(tmp_path: Path) -> Path:
    (tmp_path / "narrow.png").write_bytes(_png(NARROW))
    assert (tmp_path / "narrow.png").stat().st_size < 300
    return tmp_path / "narrow.png"


@pytest.mark.parametrize(
    "given", [Path, str, _uri, Path.read_bytes, Image.open, lambda path: np.zeros((1, 60_000, 3), np.uint8)]
)
@pytest.mark.parametrize("defense", ["none", "safety-head"])
def test_a_request_with_a_narrow_image_is_refused_for_its_shape(
    narrow: Path, given: Callable[[Path], Any], defense: str
) -> None:
    with pytest.raises(ImageError, match="too long and narrow"):
        engines.engine(defense).reply(Request("What is it?", (given(narrow),)), engines.SHORT)


def test_training_on_a_narrow_image_names_the_record(narrow: Path) -> None:
    file = narrow.parent / "x.jsonl"
    turns = '[{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A cup."}]'
    file.write_text(f'{{"id": "a", "image": "narrow.png", "conversations": {turns}}}\n')
    [record] = read_records([file], DEFAULT)
    processor = engines.processor_of(engines.model())
    with pytest.raises(RecordError, match=r"x.jsonl:1: .*narrow.png: .*too long and narrow"):
        Collator(processor)([record])


def test_the_audit_and_passes_over_files_name_a_narrow_image(narrow: Path) -> None:
    for processor in (PADS, CROPS):
        whole = SimpleNamespace(image_processor=processor)
        error = read(PlacedItem(0, 0, Item(0, "narrow.png", file=str(narrow))), whole).error
        assert "too long and narrow" in error
        with pytest.raises(ImageError, match="narrow.png"):
            open_fitting(processor, narrow)
    loaded = engines.loaded(engines.model())
    with pytest.raises(ImageError, match="narrow.png"):
        list(image_passes(loaded, [narrow], engines.CPU, 1))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
def test_a_narrow_image_is_refused_before_its_memory_is_taken(narrow: Path) -> None:
    """In a process whose memory is limited to half a gigabyte more than it has; the padded image alone needs 10 GB."""
    code = f"""
import resource, sys
from tests.data.test_pixels import CROPS, PADS, ImageError, Path, open_fitting
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29,) * 2)
for processor in (PADS, CROPS):
    try:
        processor([open_fitting(processor, {str(narrow)!r})])
    except ImageError:
        continue
    sys.exit("not refused")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
