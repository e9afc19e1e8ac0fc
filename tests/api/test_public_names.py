"""`import safevlm`: its names, its weight, and what it teaches transformers."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import safevlm
from safevlm.defenses import Defense
from safevlm.engine import Engine
from safevlm.types import Generation, Reply, Request, Verdict
from tests.engine import engines

ROOT = Path(__file__).parents[2]
LIGHT = ["safevlm", "safevlm.types", "safevlm.taxonomy", "safevlm.evaluation.judges"]
HEAVY = "torch", "transformers"
FIRST = {
    "safevlm": "import safevlm; from transformers import LlavaForConditionalGeneration, {names}",
    "transformers": "import transformers.models.auto.modeling_auto; import safevlm; from transformers import {names}",
}
"""The first also brings in the auto module by way of the user's own model, half way through that import."""
LOADS = """
{imports}
model = AutoModelForImageTextToText.from_pretrained({folder!r})
processor = AutoProcessor.from_pretrained({folder!r})
assert type(AutoConfig.from_pretrained({folder!r})).__module__ == "safevlm.model.safe_llava"
inputs = processor(text="USER: <image>\\nWhat is in the picture? ASSISTANT:", images=image, return_tensors="pt")
print(type(model).__name__, processor.tokenizer.decode(model.generate(**inputs, max_new_tokens=8)[0]))
"""
PIPELINE = """
from transformers import pipeline
ask = pipeline("image-text-to-text", model={folder!r})
said = [{{"role": "user", "content": [{{"type": "image", "image": image}}, {{"type": "text", "text": "What is it?"}}]}}]
print(type(ask.model).__name__, ask(text=said, max_new_tokens=8, return_full_text=False)[0]["generated_text"])
"""
IMAGE = "from PIL import Image\nimage = Image.new('RGB', (64, 64), 'red')\n"


@pytest.fixture(scope="module")
def guarded_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete checkpoint of `model_type` safe_llava, as merging writes it."""
    folder, model = tmp_path_factory.mktemp("checkpoint"), engines.model()
    model.save_pretrained(folder)
    engines.processor_of(model).save_pretrained(folder)
    return folder


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_public_name_is_the_one_it_should_be() -> None:
    assert safevlm.Engine is Engine and safevlm.Defense is Defense
    assert [safevlm.Request, safevlm.Reply, safevlm.Verdict, safevlm.Generation] == [
        Request,
        Reply,
        Verdict,
        Generation,
    ]
    assert all(hasattr(safevlm, name) and name in dir(safevlm) for name in safevlm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'magic'"):
        safevlm.magic  # noqa: B018


def test_there_is_one_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", safevlm.__version__)
    assert version("safevlm") == safevlm.__version__


@pytest.mark.parametrize("module", LIGHT)
def test_importing_is_light(module: str) -> None:
    loaded = _run(f"import sys, {module}; print(*sys.modules)").split()
    assert not set(HEAVY) & set(loaded)


@pytest.mark.slow
@pytest.mark.parametrize("first", FIRST)
def test_transformers_reads_our_folders_whichever_is_imported_first(guarded_folder: Path, first: str) -> None:
    imports = FIRST[first].format(names="AutoConfig, AutoModelForImageTextToText, AutoProcessor")
    said = _run(
        IMAGE + LOADS.format(imports=imports, folder=str(guarded_folder)) + PIPELINE.format(folder=str(guarded_folder))
    )
    assert sum(line.startswith("SafeLlava ") for line in said.splitlines()) == 2  # the model, and the pipeline's
