"""A checkpoint that may not be read says so; the libraries that read weights say that there is none."""

from __future__ import annotations

import errno
import io
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from safevlm.model import loading
from safevlm.model.checkpoint_folder import CheckpointError
from tests.training import workshop


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workshop.stock_folder(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_that_may_not_be_read_is_named_with_the_cause(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Root reads everything, so the system's refusal is played."""
    shutil.copytree(base, tmp_path / "model")
    real, closed = io.open, tmp_path / "model" / name
    closed.chmod(0o000)

    def refuse(file: Any, *given: Any, **options: Any) -> Any:
        if os.fspath(file) == str(closed):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(closed))
        return real(file, *given, **options)

    monkeypatch.setattr(io, "open", refuse)
    with pytest.raises(CheckpointError) as error:
        loading.load(tmp_path / "model")
    assert str(closed) in str(error.value) and "permission denied" in str(error.value)
    assert "no such" not in str(error.value).lower()
