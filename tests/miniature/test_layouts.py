"""The miniature in the layouts of real downloads: the real loaders read it, and a seed is a seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safevlm.data.sources import read_source
from safevlm.data.sources.images import read_images
from safevlm.data.sources.row import SourceSpec
from safevlm.miniature import layouts
from safevlm.miniature.world import BY_NAME
from tests.training.workshop import file_bytes

SPLITS = {"vlguard": ("train", "test"), "rtvlm": ("all",), "spa_vl": ("train", "test")}


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_real_loaders_read_it(tmp_path: Path, layout: str) -> None:
    layouts.write(tmp_path, layout, count=6)
    for split in SPLITS[layout]:
        rows = list(read_source(SourceSpec(name="it", kind=layout, path=tmp_path, split=split, partial="allow")))
        assert rows and all(row.images and row.words and not row.missing for row in rows)
        images = {image for row in rows for image in row.images}
        assert len(list(read_images(images))) == len(images)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_same_seed_same_bytes(tmp_path: Path, layout: str) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        layouts.write(tmp_path / name, layout, count=4, seed=seed)
    first, again, other = (file_bytes(tmp_path / name) for name in "abc")
    assert first == again and first != other


def test_unknown_layout_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vlguard"):
        layouts.write(tmp_path, "blorp")


def test_every_question_of_rtvlm_has_its_truth(tmp_path: Path) -> None:
    layouts.write(tmp_path, "rtvlm", count=6)
    truths = {row["id"]: row for row in map(json.loads, (tmp_path / layouts.TRUTH).read_text().splitlines())}
    spec = SourceSpec(name="it", kind="rtvlm", path=tmp_path, split="all", partial="allow")
    rows = {row.id: row for row in read_source(spec)}
    assert truths.keys() == rows.keys()
    for name, truth in truths.items():
        categories = {BY_NAME[thing].category for thing in truth["things"]} - {"clean"}
        assert categories <= {truth["category"]} and (truth["level"] == "safe") == (not categories), name
        assert (truth["task"] == "use") == any(word in rows[name].turns[0][1] for word in ("use", "steps")), name
    for number in range(6):
        first, second = (truths[f"{subset}-{number:04d}"]["things"] for subset in ("jailbreak", "jailbreak2"))
        assert first == second, "both subsets ask about the same image"
        single = truths[f"visual_misleading_wrong-{number:04d}"]["things"]
        assert rows[f"visual_misleading_wrong-{number:04d}"].turns[1][1].count(" a ") == len(single)
        assert truths[f"visual_orderA-{number:04d}"]["things"][: len(single)] == single


def test_truth_is_that_of_the_answers(tmp_path: Path) -> None:
    layouts.write(tmp_path, "rtvlm", count=6)
    truths = {row["id"]: row for row in map(json.loads, (tmp_path / layouts.TRUTH).read_text().splitlines())}
    for number, line in enumerate((tmp_path / "data/Captcha/captcha.jsonl").read_text().splitlines()):
        assert truths[f"captcha-{number:04d}"]["things"] == [json.loads(line)["answer"]]
