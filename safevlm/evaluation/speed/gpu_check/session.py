"""What the steps of one process share: the device, the shape, the model, and what other steps have measured."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from safevlm.evaluation.speed.gpu_check import rows
from safevlm.model import loading
from safevlm.training.bench import SHAPES, BenchShape

Thing = TypeVar("Thing")
BF16_DENSE = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12}
"""bf16 operations a second without sparsity, by the data sheets, by what the card's name holds; the first that fits."""


@dataclass
class Session:
    """Made once per worker. `kept` holds what is built once; a step that changes it says so by its own key."""

    name: str
    """Key of `SHAPES`."""
    device: torch.device
    out: Path
    kept: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, shape: str, device: str, out: Path) -> Session:
        """ValueError: a GPU is asked for and there is none, or the folder's rows are of another one."""
        place = loading.default_device(device)
        was = rows.result(rows.read(out / rows.FILE), "machine").get("device")
        if was and place.type == "cuda" and was != torch.cuda.get_device_name(place):
            raise ValueError(f"{out}: holds rows of {was}; this is {torch.cuda.get_device_name(place)}")
        torch.manual_seed(0)
        torch.zeros(1, device=place)  # CUDA's context, which is nobody's measurement
        return cls(shape, place, out)

    @property
    def shape(self) -> BenchShape:
        return SHAPES[self.name]

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def once(self, key: str, make: Callable[[], Thing]) -> Thing:
        """What `make` made when this key was first asked for."""
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def clear(self) -> None:
        """Forgets all that is kept, and gives the memory back to the card."""
        self.kept.clear()
        self.tidy()

    def tidy(self) -> None:
        """Between two steps: nothing unreachable is left on the card, and the peak starts anew."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def memory(self) -> dict[str, int]:
        """Bytes at the peak since the last step.

        On a GPU: what torch had allocated and reserved, and what the card had in use with CUDA's context and kernels;
        on a CPU: the process's largest resident size, libraries included, since its start (Linux).
        """
        if not self.on_gpu:
            # getrusage would start from what the parent held when it made this process
            lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
            return {"process": next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))}
        free, total = torch.cuda.mem_get_info(self.device)
        return {
            "allocated": torch.cuda.max_memory_allocated(self.device),
            "reserved": torch.cuda.max_memory_reserved(self.device),
            "in_use": total - free,
        }

    def peaks(self) -> dict[str, float]:
        """bf16 operations a second: `measured` by the step of ceilings, and `data sheet`; what is known of them."""
        known: dict[str, float] = {}
        measured = rows.result(rows.read(self.out / rows.FILE), "ceilings").get("bf16_tflops")
        if measured:
            known["measured"] = measured * 1e12
        if self.on_gpu:
            card = torch.cuda.get_device_name(self.device)
            rate = next((rate for name, rate in BF16_DENSE.items() if name in card), None)
            known |= {"data sheet": rate} if rate else {}
        return known
