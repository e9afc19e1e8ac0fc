"""A recipe in two processes: as a user starts it, by torchrun or DeepSpeed's launcher, or forked, which is quicker."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from safevlm.config import Recipe
from safevlm.model.checkpoint_folder import FINAL
from safevlm.training.provenance import recipe_yaml
from tests import forked, patience

ROOT = Path(__file__).parents[2]
WITHOUT_OPERATOR = Path(__file__).parent / "without_operator"
SETTINGS = ROOT / "safevlm" / "recipes" / "deepspeed"


def launch(launcher: str, recipe: Recipe, folder: Path) -> Path:
    """Runs a recipe in two processes by the launcher's own command; returns its result."""
    words, port = ["safevlm", *_words(launcher, recipe, folder)], forked.free_port()
    if launcher == "torchrun":
        command = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port, "--module", *words]
    else:
        command = ["-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", port, "--module", *words]
    places = os.pathsep.join([str(WITHOUT_OPERATOR), str(ROOT)])
    code, said = patience.run([sys.executable, *command], folder / "output.txt", ROOT, PYTHONPATH=places)
    assert code == 0, f"{launcher} failed:\n{said}"
    return Path(recipe.run.out) / FINAL


def fork(launcher: str, recipe: Recipe, folder: Path) -> Path:
    """`launch`, in two forked processes that were told what the launcher would tell them."""
    forked.together(2, forked.run_command, [_words(launcher, recipe, folder)], folder)
    return Path(recipe.run.out) / FINAL


def _words(launcher: str, recipe: Recipe, folder: Path) -> list[str]:
    file = folder / "recipe.yaml"
    file.write_text(recipe_yaml(recipe), encoding="utf-8")
    settings = [] if launcher == "torchrun" else ["--run.deepspeed", str(SETTINGS / f"{launcher}_cpu.json")]
    return ["train", str(file), *settings]
