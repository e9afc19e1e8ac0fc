"""The machine: Python, packages, compiler, GPUs. Imports neither torch nor transformers at the top.

Trap: transformers cannot import LLaVA beside a torchvision that does not fit its torch, and names another module as
the culprit (base facts §3.8). So these checks run first, before anything of ours is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from safevlm import recipes
from safevlm.check.findings import Finding
from safevlm.config import Recipe
from safevlm.training.loggers import check_loggers
from safevlm.training.stages import stage_of
from safevlm.versions import installed

PYTHON = (3, 11)


@dataclass(frozen=True)
class Package:
    name: str
    floor: str = "0"
    """The oldest version that works; as in setup.py (tests/check/test_packages.py)."""
    extra: str = ""
    """Extra of ours that brings it; empty: the package itself does."""
    why: str = ""
    """What goes wrong with an older one."""
    beside: tuple[str, str, str] | None = None
    """Another package, its first version that breaks this one, and how that shows."""


PACKAGES = (
    Package("torch", "2.4"),
    Package(
        "transformers",
        "5.23",
        why="before 5.18 no answer, or another part of the text, is learned; other families than LLaVA need 5.23",
    ),
    Package("safetensors"),
    Package("pillow", "10.1"),
    Package("jsonargparse", "4.40"),
    Package("accelerate", "1.10", "train"),
    Package("peft", "0.19", "train", "older ones put a LoRA on renamed layers, quietly"),
    Package("deepspeed", "0.18", "train"),
    Package("bitsandbytes", "0.48", "quant"),
    Package("flash-attn", extra="flash"),
    Package("lmms-eval", "0.7.3", "utility", beside=("filelock", "4", "it fails, and exits with 0 all the same")),
)
CORE = tuple(package.name for package in PACKAGES if not package.extra)


def python(recipe: Recipe | None) -> Iterator[Finding]:
    ok = sys.version_info[:2] >= PYTHON
    fix = "" if ok else f"; at least {'.'.join(map(str, PYTHON))} is needed"
    yield Finding(ok, f"Python {platform.python_version()}{fix}")


def packages(recipe: Recipe | None) -> Iterator[Finding]:
    """A ✗ for every package that is needed and missing or too old; otherwise one line with all versions."""
    needed = needed_by(recipe)
    known = [package.name for package in PACKAGES]
    problems = {
        each.name: _problem(each) for each in [*PACKAGES, *(Package(name) for name in needed if name not in known)]
    }
    bad = [problems[name] for name in needed if problems[name]] + list(filter(None, map(_clash, PACKAGES)))
    yield from (Finding(False, problem) for problem in bad)
    if not bad:
        found = [f"{package.name} {installed(package.name)}" for package in PACKAGES if installed(package.name)]
        others = [problem for name, problem in problems.items() if problem and name not in needed]
        yield Finding(True, "packages: " + ", ".join(found[:2]), "\n".join([", ".join(found[2:]), *others]))


def needed_by(recipe: Recipe | None) -> list[str]:
    """Distributions that this recipe cannot do without."""
    if recipe is None:
        return list(CORE)
    wanted = {
        "accelerate": True,
        "deepspeed": recipe.run.deepspeed is not None,
        "bitsandbytes": recipe.model.quantize != "none",
        "flash-attn": recipe.model.attention == "flash_attention_2",
    }
    of_stage = stage_of(recipe).packages
    return [*CORE, *dict.fromkeys([*(name for name, is_needed in wanted.items() if is_needed), *of_stage])]


def loggers(recipe: Recipe | None) -> Iterator[Finding]:
    """A logger that is not installed, or that transformers does not know, stops the run."""
    try:
        check_loggers(recipe.run.report_to if recipe else ())
    except ValueError as error:
        yield Finding(False, str(error))


def torchvision(recipe: Recipe | None) -> Iterator[Finding]:
    """Nothing of ours uses it, but a broken one keeps transformers from importing LLaVA."""
    if importlib.util.find_spec("torchvision") is None:
        yield Finding(True, "torchvision: not installed, and not needed")
        return
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        first = str(error).strip().splitlines()[0]
        yield Finding(
            False,
            "torchvision does not fit this torch, so transformers cannot import LLaVA: pip uninstall torchvision",
            f"importing it says: {first}\nor install the build that belongs to torch {installed('torch')}, "
            "from the same index as torch",
        )
        return
    yield Finding(True, f"torchvision {installed('torchvision')}: fits torch, and is not needed")


def gpus(recipe: Recipe | None) -> Iterator[Finding]:
    import torch

    seen = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    if not seen:
        yield _no_gpu(recipe)
        return
    shown = [f"{index}: {one.name}, {one.total_memory / 2**30:.0f} GiB" for index, one in enumerate(seen)]
    if recipe and recipe.run.bf16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        yield Finding(False, "run.bf16: this GPU has no bfloat16; use one of compute capability 8.0 or later")
    yield Finding(True, f"{len(seen)} GPUs, CUDA {torch.version.cuda}", "\n".join(shown))


def _no_gpu(recipe: Recipe | None) -> Finding:
    import torch

    driver = Path("/proc/driver/nvidia/gpus")
    if driver.is_dir() and any(driver.iterdir()) and torch.version.cuda is None:
        return Finding(False, f"there is a GPU, but torch {torch.__version__} is a CPU build; install a CUDA build")
    on_gpu = recipe is not None and recipe.run.device != "cpu"
    note = "no GPU here; the run is reckoned for one elsewhere (--gpus, --gpu-memory)" if on_gpu else "no GPU here"
    return Finding(True, note)


def compiler(recipe: Recipe | None) -> Iterator[Finding]:
    """DeepSpeed builds its CPU operators (Adam, communication) when it first needs them."""
    if recipe is None or recipe.run.deepspeed is None or not _compiles(recipe):
        return
    tools = {"a C++ compiler": ("c++", "g++", "clang++"), "ninja": ("ninja",)}
    missing = [tool for tool, names in tools.items() if not any(map(_command, names))]
    yield Finding(
        not missing,
        "DeepSpeed compiles an operator on its first step: "
        + (f"{' and '.join(missing)} missing; apt install g++, pip install ninja" if missing else "compiler and ninja"),
    )


def hub(recipe: Recipe | None) -> Iterator[Finding]:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    state = "HF_HUB_OFFLINE is set" if offline else "HF_HUB_OFFLINE is not set"
    yield Finding(True, f"Hugging Face Hub: {state}; models and data are read from folders only")


CHECKS = (
    ("Python", python),
    ("packages", packages),
    ("torchvision", torchvision),
    ("loggers", loggers),
    ("GPUs", gpus),
    ("compiler", compiler),
    ("Hugging Face Hub", hub),
)


def _problem(package: Package) -> str:
    """Empty, or what is wrong with it and the fix."""
    install = f"pip install -e '.[{package.extra}]'" if package.extra else f"pip install '{package.name}'"
    found = installed(package.name)
    if found is None:
        return f"{package.name} is not installed; {install}"
    if Version(found) < Version(package.floor):
        why = f" ({package.why})" if package.why else ""
        fix = f"pip install '{package.name}>={package.floor}'"
        return f"{package.name} {found} is older than {package.floor}{why}; {fix}"
    return ""


def _clash(package: Package) -> str:
    """Empty, or which other package breaks this one, which is installed, and the fix."""
    found = installed(package.name)
    if found is None or package.beside is None:
        return ""
    name, limit, how = package.beside
    other = installed(name)
    is_clash = other is not None and Version(other) >= Version(limit)
    return f"{package.name} {found} beside {name} {other}: {how}; pip install '{name}<{limit}'" if is_clash else ""


def _compiles(recipe: Recipe) -> bool:
    from safevlm.check import zero

    try:
        table = zero.read(recipes.find(recipe.run.deepspeed or "", "deepspeed"))
    except ValueError:
        return False  # the check of the file tells
    return recipe.run.device == "cpu" or zero.settings(table).offloads_optimizer


def _command(name: str) -> bool:
    return shutil.which(name) is not None or (Path(sys.executable).parent / name).is_file()
