"""The judge's model: one behind an OpenAI-compatible endpoint, or one in a folder of this machine.

Both take a call and give an outcome. A local model is loaded without remote code; torch is imported only then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_patch.pretrained import from_folder
from safevlm.evaluation import endpoint
from safevlm.evaluation.endpoint import CallOutcome, Endpoint
from safevlm.evaluation.judges.base import Call, Judge
from safevlm.evaluation.runs import run_file
from safevlm.usage import UsageError

IMAGES = {"image_side": endpoint.IMAGE_SIDE, "jpeg_quality": endpoint.JPEG_QUALITY}


@dataclass(frozen=True)
class JudgeClient:
    model: str
    """Its id in results; for a folder its name and a digest of its weights."""
    place: str
    """Address or folder."""
    decoding: Mapping[str, Any]
    say: Callable[[Call, int], CallOutcome]
    """A call and the number of the vote."""
    concurrency: int = 1
    is_repeatable: bool = False
    """Saying it again says the same, so that more votes are no more than one."""


def served(judge: Judge, server: Endpoint, concurrency: int, max_tokens: int) -> JudgeClient:
    """A judge behind an endpoint. The number of the vote is its seed."""
    if not server.model:
        raise UsageError("--judge-model: name the model as its server does, or give a folder with --judge-local")
    client = endpoint.connect(server)
    decoding = endpoint.greedy(server.model, max_tokens)

    def say(call: Call, vote: int) -> CallOutcome:
        seeded = {**decoding, "seed": vote} if "seed" in decoding else decoding
        asked = Endpoint(server.model, server.base_url, server.timeout, server.max_retries, seeded)
        if judge.is_completion:
            return endpoint.complete(client, asked, call[0].text)
        return endpoint.say(client, asked, call)

    images = IMAGES if judge.sees_image else {}
    kind = {"api": "completions"} if judge.is_completion else {}
    return JudgeClient(server.model, endpoint.address(server), {**decoding, **kind, **images}, say, concurrency)


def local(judge: Judge, folder: Path, device: str, max_tokens: int) -> JudgeClient:
    """A judge from a folder: any image-text-to-text model of transformers, or a text model for text-only judges."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"--judge-local {folder}: no config.json here; give the folder of a model")
    model, processor = _load(folder, device)
    digest = run_file.digests([], str(folder), None)["model"]

    def say(call: Call, vote: int) -> CallOutcome:
        return _generate(model, processor, call, judge.is_completion, max_tokens)

    decoding = {"do_sample": False, "max_new_tokens": max_tokens, "dtype": str(model.dtype)}
    return JudgeClient(f"{folder.resolve().name}#{digest}", str(folder), decoding, say, is_repeatable=True)


def _load(folder: Path, device: str) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    from safevlm.model.loading import default_device, default_dtype

    kinds: dict[bool, tuple[Any, Any]] = {
        True: (AutoModelForImageTextToText, AutoProcessor),
        False: (AutoModelForCausalLM, AutoTokenizer),
    }
    place = default_device(device)
    try:
        config = from_folder(AutoConfig, folder)
        sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        kind, reader = kinds[sees]
        model = from_folder(kind, folder, dtype=default_dtype(place)).to(place).eval()
        return model, from_folder(reader, folder)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"--judge-local {folder}: cannot be loaded without remote code: {first}") from error


def _generate(model: Any, processor: Any, call: Call, is_completion: bool, max_tokens: int) -> CallOutcome:
    import torch

    tokenizer = getattr(processor, "tokenizer", processor)
    if is_completion:
        inputs = tokenizer(call[0].text, return_tensors="pt")
    else:
        inputs = processor.apply_chat_template(
            [_message(turn, takes_parts=tokenizer is not processor) for turn in call],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
    inputs = {
        name: tensor.to(model.device, model.dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in inputs.items()
    }
    length = inputs["input_ids"].shape[1]
    with torch.inference_mode():
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=max_tokens)[0, length:]
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    is_cut = len(tokens) >= max_tokens and int(tokens[-1]) not in ends
    return CallOutcome("said", text, is_cut, tokens_in=length, tokens_out=len(tokens))


def _message(turn: endpoint.Turn, takes_parts: bool) -> dict[str, Any]:
    from safevlm.data.images import open_image

    if not takes_parts:
        return {"role": turn.role, "content": turn.text}
    images = [{"type": "image", "image": open_image(path)} for path in turn.images]
    return {"role": turn.role, "content": [*images, {"type": "text", "text": turn.text}]}
