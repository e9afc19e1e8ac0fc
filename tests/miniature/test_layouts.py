"""The miniature in the layouts of real downloads: the real loaders read it, and a seed is a seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from safevlm.data.sources import read_source
from safevlm.data.sources.pictures import read_pictures
from safevlm.data.sources.row import SourceSpec
from safevlm.miniature import layouts
from tests.training.workshop import file_bytes

SPLITS = {"vlguard": ("train", "test"), "rtvlm": ("all",), "spa_vl": ("train", "test")}


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_real_loaders_read_it(tmp_path: Path, layout: str) -> None:
    layouts.write(tmp_path, layout, count=6)
    for split in SPLITS[layout]:
        rows = list(read_source(SourceSpec(name="it", kind=layout, path=tmp_path, split=split, partial="allow")))
        assert rows and all(row.pictures and row.words and not row.missing for row in rows)
        pictures = {picture for row in rows for picture in row.pictures}
        assert len(list(read_pictures(pictures))) == len(pictures)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_same_seed_same_bytes(tmp_path: Path, layout: str) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        layouts.write(tmp_path / name, layout, count=4, seed=seed)
    first, again, other = (file_bytes(tmp_path / name) for name in "abc")
    assert first == again and first != other


def test_unknown_layout_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vlguard"):
        layouts.write(tmp_path, "blorp")
