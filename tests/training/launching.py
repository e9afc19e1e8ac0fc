"""A recipe in two processes, as a user starts it: by torchrun or DeepSpeed's launcher."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from safevlm.config import Recipe
from safevlm.model.checkpoint_folder import FINAL
from safevlm.training.provenance import recipe_yaml
from tests import patience

ROOT = Path(__file__).parents[2]
SETTINGS = ROOT / "safevlm" / "recipes" / "deepspeed"


def _free_port() -> str:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return str(opened.getsockname()[1])


def launch(launcher: str, recipe: Recipe, folder: Path, extensions: Path) -> Path:
    """Runs a recipe in two processes; returns its result."""
    file = folder / "recipe.yaml"
    file.write_text(recipe_yaml(recipe), encoding="utf-8")
    port, words = _free_port(), ["safevlm", "train", str(file)]
    if launcher == "torchrun":
        command = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port, "--module", *words]
    else:
        settings = ["--run.deepspeed", str(SETTINGS / f"{launcher}_cpu.json")]
        start = ["-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", port, "--module"]
        command = [*start, *words, *settings]
    environment = {"PYTHONPATH": str(ROOT), "TORCH_EXTENSIONS_DIR": str(extensions)}
    code, said = patience.run([sys.executable, *command], folder / "output.txt", ROOT, **environment)
    assert code == 0, f"{launcher} failed:\n{said}"
    return Path(recipe.run.out) / FINAL
