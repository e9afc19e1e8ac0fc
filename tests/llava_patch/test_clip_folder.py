"""A folder that is given for a CLIP and is none is one line that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_patch.clip import read_text_space


@pytest.mark.parametrize("config", ["[]", "5", "{", '{"model_type": 5}', '{"model_type": NaN}', "[" * 5000, "\xff"])
def test_a_config_that_is_none_of_a_clip_names_its_folder(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_bytes(config.encode("latin-1"))
    with pytest.raises(ValueError) as caught:
        read_text_space(tmp_path, ["a word"])
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
