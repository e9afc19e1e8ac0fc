"""The base out of what a build learned: a CLIP, two LoRAs and a projector. Small to pass on; the LLM is fetched apart.

MADE/clip                 as `build` wrote it
MADE/aligned/adapter      the LoRA of the LLM in words
MADE/base/adapter         the LoRA of seeing, and the projector
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from llava_patch import parts
from safevlm.data.atomic_write import atomic_folder
from safevlm.pictograms.base import clip_step, llm, see_step, steps, talk

LEARNED = {"clip": "clip", "aligned": f"aligned/{talk.ADAPTER}", "base": f"base/{talk.ADAPTER}"}
"""Folder of what each step of a build learned."""


def check_there(made: Path, names: Iterable[str], flag: str) -> None:
    """FileNotFoundError: a build lacks what one of these steps learned; `flag` is how it was given."""
    if missing := [LEARNED[name] for name in names if not (made / LEARNED[name]).is_dir()]:
        raise FileNotFoundError(f"{made / missing[0]} is missing; give a folder of `safevlm pictograms build`: {flag}")


def assemble(made: Path, source: Path, out: Path) -> None:
    """Writes the base to `out`, a stock LLaVA in bfloat16; `source` is the LLM that the build started from.

    An older `out` is replaced. FileNotFoundError: a folder of the build is missing. ValueError: another LLM.
    """
    check_there(made, LEARNED, "--made")
    tokenizer = llm.load_tokenizer(source)
    aligned = talk.with_learned_lora(llm.load_llm(source, tokenizer), made / "aligned" / talk.ADAPTER)
    language_model = aligned.merge_and_unload()
    processor = llm.processor_of(language_model.config, tokenizer)
    adapter = made / "base" / talk.ADAPTER
    blind = see_step.assembled(clip_step.load_clip(made / "clip"), language_model, tokenizer)
    model: Any = talk.with_learned_lora(blind, adapter, see_step.LLM).merge_and_unload()
    parts.projector(model).load_state_dict(load_file(adapter / see_step.PROJECTOR))
    with atomic_folder(out) as partial:
        model.to(torch.bfloat16).save_pretrained(partial)
        processor.save_pretrained(partial)
        if (record := made / "base" / steps.RUN).is_file():
            shutil.copy(record, partial / steps.RUN)
    print(f"{out}: a LLaVA of {source.name} and {made}")
