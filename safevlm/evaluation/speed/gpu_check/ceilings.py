"""What the machine is, and how fast it copies and multiplies: the two numbers that all others are held against."""

from __future__ import annotations

import os
import platform
import subprocess
from statistics import median
from typing import Any

import torch

from safevlm.evaluation.speed.gpu_check import timing
from safevlm.evaluation.speed.gpu_check.session import Session
from safevlm.versions import commit, installed, is_changed

PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "trl", "numpy", "safetensors")
COPIED = {True: 4 * 2**30, False: 2**26}
"""Bytes of the tensor that is copied, on a GPU and elsewhere: many times any cache."""
SIDE = {True: 8192, False: 512}
"""Of the square matrices."""


def machine(session: Session) -> dict[str, Any]:
    """Card, driver and versions."""
    about = {
        "device": f"cpu, {torch.get_num_threads()} threads",
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "shape": session.name,
        "commit": commit(),
        "changed since": is_changed(),
        "versions": {package: installed(package) for package in PACKAGES},
    }
    if not session.on_gpu:
        return about
    properties = torch.cuda.get_device_properties(session.device)
    return about | {
        "device": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def ceilings(session: Session) -> dict[str, Any]:
    """Copy bandwidth (bytes read and written) and matrix products by type, on random numbers: zeros multiply faster."""
    side = SIDE[session.on_gpu]
    result: dict[str, Any] = {"copy_gb_per_s": _copy(session) / 1e9, "side": side}
    found = {"bf16": _product(session, torch.bfloat16), "float32": _product(session, torch.float32)}
    if session.on_gpu:
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            found["tf32"] = _product(session, torch.float32)
        finally:
            torch.set_float32_matmul_precision(precision)
    return result | {f"{name}_tflops": 2 * side**3 / seconds / 1e12 for name, seconds in found.items()}


def _copy(session: Session) -> float:
    """Bytes a second."""
    source = torch.randn(COPIED[session.on_gpu] // 4, device=session.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median(timing.repeated(lambda: target.copy_(source), session.device, rounds=10))


def _product(session: Session, dtype: torch.dtype) -> float:
    side = SIDE[session.on_gpu]
    left, right = (torch.randn(side, side, device=session.device, dtype=dtype) for _ in range(2))
    return median(timing.repeated(lambda: left @ right, session.device, rounds=10))


def _driver() -> str | None:
    """None: nobody says."""
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        said = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip().splitlines()[0]
