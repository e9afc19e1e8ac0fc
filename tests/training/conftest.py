"""What all tests of several processes share."""

from __future__ import annotations

import fcntl
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests import patience

ROOT = Path(__file__).parents[2]
BUILD = "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder as Builder; Builder().load(verbose=False)"
"""What DeepSpeed would compile in the first run of two processes."""


@pytest.fixture(scope="session")
def extensions(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DeepSpeed's operator, compiled once. Trap: a killed compilation leaves a lock that all others wait for."""
    built = "_".join(("torch_extensions", *map(version, ("torch", "deepspeed"))))
    folder = Path(pytestconfig.cache.mkdir(built))
    with (folder / "session").open("w") as mine:
        fcntl.flock(mine, fcntl.LOCK_EX)
        for left in folder.glob("*/lock"):
            left.unlink()
        log = tmp_path_factory.mktemp("operator") / "output.txt"
        code, said = patience.run([sys.executable, "-c", BUILD], log, ROOT, TORCH_EXTENSIONS_DIR=str(folder))
    assert code == 0, said
    return folder
