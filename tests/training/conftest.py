"""What all tests of several processes share."""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from tests import patience

ROOT = Path(__file__).parents[2]
BUILD = "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder as Builder; Builder().load(verbose=False)"
"""What DeepSpeed would compile in the first run of two processes."""


SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="session")
def extensions(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """DeepSpeed's operator, compiled once.

    Traps: a killed compilation leaves a lock that all others wait for; on a CPU every process of DeepSpeed leaves 67 MB
    of shared memory.
    """
    before = set(SHARED_MEMORY.glob("deepspeed_*"))
    built = "_".join(("torch_extensions", *map(version, ("torch", "deepspeed"))))
    folder = Path(pytestconfig.cache.mkdir(built))
    with (folder / "session").open("w") as mine:
        fcntl.flock(mine, fcntl.LOCK_EX)
        for left in folder.glob("*/lock"):
            left.unlink()
        log = tmp_path_factory.mktemp("operator") / "output.txt"
        code, said = patience.run([sys.executable, "-c", BUILD], log, ROOT, TORCH_EXTENSIONS_DIR=str(folder))
    assert code == 0, said
    yield folder
    for left in set(SHARED_MEMORY.glob("deepspeed_*")) - before:
        left.unlink(missing_ok=True)
