"""A file of tensors has one digest, whenever and wherever it is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors import safe_open

from llava_patch.tensor_file import save_tensors

METADATA = {"sha256": "y", "bank": 'a "quoted" word, ü and 猫', "about": "x\n/z"}
TENSORS = {"b": torch.ones(3), "a": torch.zeros(2, 2)}
WRITE = """
import sys, torch
from llava_patch.tensor_file import save_tensors
save_tensors({"b": torch.ones(3), "a": torch.zeros(2, 2)}, sys.argv[1], %r)
"""


def test_every_write_and_every_process_gives_the_same_bytes(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.safetensors" for number in range(5)]
    for file in files[1:]:
        save_tensors(TENSORS, file, METADATA)
    subprocess.run([sys.executable, "-c", WRITE % METADATA, str(files[0])], check=True)
    assert len({file.read_bytes() for file in files}) == 1


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(3.0), "a": torch.zeros(2, 2)}
    save_tensors(tensors, tmp_path / "x.safetensors", METADATA)
    with safe_open(tmp_path / "x.safetensors", framework="pt") as stored:
        assert stored.metadata() == METADATA
        assert all(torch.equal(stored.get_tensor(name), tensor) for name, tensor in tensors.items())
