"""Utility through lmms-eval: the guarded model as one of its models, `python -m lmms_eval --model safevlm`.

    python -m lmms_eval --model safevlm --model_args checkpoint=DIR,defense=safety-head --tasks mme,pope --batch_size 1

This file turns the harness's messages and options into requests to the engine, and imports nothing of lmms-eval but
the manifest that registers the model; the class that lmms-eval loads is in `safevlm.evaluation.lmms.model`. The trap:
after a run the harness deletes every attribute of a model that is a torch module, so the engine is held by a plain
object.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safevlm.config import Quantization
from safevlm.data.images import open_image
from safevlm.data.row_log import append_rows
from safevlm.sharding import share_of
from safevlm.types import Generation, ImageSource, Reply, Request

log = logging.getLogger(__name__)

NAME = "safevlm"
MAX_NEW_TOKENS = 1024  # where a task says nothing, as the harness's own models have it
NO_STOP = "\n\n"
"""A stop that the harness adds where a task names none. Obeyed, it would cut free answers after one paragraph."""
INTERLEAVED = (
    "a request has words before or between its images; LLaVA's prompt has the images first, in their order, then "
    "the words (told once)"
)


def manifests() -> list[Any]:
    """For the entry-point group `lmms_eval.models`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id=NAME, chat_class_path="safevlm.evaluation.lmms.model.SafeVlm")]


@dataclass
class Guarded:
    """An engine as lmms-eval asks it, and how often the defense stepped in."""

    engine: Any
    seed: int = 0
    log_file: Path | None = None
    asked: int = 0
    refused: int = 0
    """Requests that the defense answered in the model's place."""
    changed: int = 0
    """Requests that the defense added words to."""
    told: set[str] = field(default_factory=set)

    def ask(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any], name: str) -> str:
        """The reply to one conversation, through `Engine.reply`."""

        if _is_interleaved(messages) and INTERLEAVED not in self.told:
            self.told.add(INTERLEAVED)
            log.warning("%s: %s", name, INTERLEAVED)
        reply = self.engine.reply(
            request_of(messages, name), Generation(**generation_of(options, name), seed=self.seed)
        )
        self._note(reply)
        return cut(reply.text, stops_of(options))

    def summary(self) -> str:
        return f"{self.asked} asked, {self.refused} refused by the defense, {self.changed} with words added by it"

    def _note(self, reply: Reply) -> None:
        self.asked += 1
        self.refused += bool(reply.refused_by)
        self.changed += bool(reply.trace) and not reply.refused_by
        if self.log_file is None:
            return
        verdict = reply.verdict
        row = {
            "id": reply.request.id,
            "reply": reply.text,
            "refused_by": reply.refused_by,
            "looked": verdict.looked,
            "level": verdict.level if verdict.looked else None,
            "category": verdict.category if verdict.looked else None,
            "error": verdict.error,
            "trace": list(reply.trace),
            "seconds": reply.seconds,
        }
        append_rows(self.log_file, [row])


def load(
    checkpoint: str,
    *,
    defense: str = "auto",
    policy: str | None = None,
    base: str | None = None,
    device: str | None = None,
    quantize: Quantization = "none",
    seed: int = 0,
    log_file: str | None = None,
) -> Guarded:
    """A checkpoint behind a defense. ValueError under several processes, which would each ask everything."""
    if share_of(None).world > 1:
        raise ValueError("lmms-eval with safevlm runs as one process; start it without accelerate or torchrun")
    if log_file and Path(log_file).exists():
        raise ValueError(f"log={log_file}: is there already; choose another file, or remove it")
    from safevlm.engine import Engine

    engine = Engine.load(
        checkpoint, defense=defense, policy=policy, base=base, device=device or "auto", quantize=quantize
    )
    return Guarded(engine, seed, Path(log_file) if log_file else None)


def request_of(messages: Sequence[Mapping[str, Any]], name: str) -> Request:
    """A conversation as a request: all its images in their order, its earlier turns, its last question."""
    systems: list[str] = []
    images: list[ImageSource] = []
    history: list[tuple[str, str]] = []
    question: str | None = None
    for message in messages:
        role, text, shown = message["role"], _text(message, name), _images(message, name)
        if role == "system":
            systems.append(text)
        elif role == "user":
            question = text if question is None else f"{question}\n{text}"
            images += shown
        elif role == "assistant" and question is not None:
            history.append((question, text))
            question = None
        else:
            raise ValueError(f"{name}: a message of role {role!r} has no place here; user and assistant take turns")
    if question is None:
        raise ValueError(f"{name}: the conversation does not end with a question")
    return Request(question, tuple(images), name, tuple(history), "\n".join(systems))


def generation_of(options: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """The task's options in the engine's words; greedy unless both a temperature and sampling are asked for."""
    if (options.get("num_beams") or 1) > 1:
        raise ValueError(
            f"{name}: num_beams {options['num_beams']}: the engine has no beams; it writes greedily or samples"
        )
    temperature = options.get("temperature")
    is_sampling = options.get("do_sample", bool(temperature))
    if is_sampling and temperature is None:
        temperature = 1.0
    return {
        "max_new_tokens": int(options.get("max_new_tokens") or MAX_NEW_TOKENS),
        "temperature": float(temperature or 0) if is_sampling else 0.0,
        "top_p": float(options.get("top_p") or 1.0),
    }


def stops_of(options: Mapping[str, Any]) -> list[str]:
    """Where the task wants an answer cut off."""
    until = options.get("until") or []
    return [stop for stop in ([until] if isinstance(until, str) else until) if stop and stop != NO_STOP]


def cut(text: str, stops: Sequence[str]) -> str:
    """The text up to the first stop."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))].rstrip()


def _parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _text(message: Mapping[str, Any], name: str) -> str:
    for part in _parts(message):
        if part["type"] not in ("text", "image"):
            raise ValueError(f"{name}: LLaVA reads text and images, not {part['type']}; leave this task out")
    return "\n".join(part["text"].strip() for part in _parts(message) if part["type"] == "text").strip()


def _images(message: Mapping[str, Any], name: str) -> list[ImageSource]:
    shown = [part.get("url") for part in _parts(message) if part["type"] == "image"]
    there = [image for image in shown if image is not None]
    if len(there) < len(shown):
        raise ValueError(f"{name}: an image of the request is missing")
    return [open_image(image) for image in there]


def _is_interleaved(messages: Sequence[Mapping[str, Any]]) -> bool:
    kinds = [part["type"] for message in messages if message["role"] == "user" for part in _parts(message)]
    return "text" in kinds and "image" in kinds[kinds.index("text") :]
