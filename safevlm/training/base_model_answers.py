"""What the bare model says by itself, greedily, on disk after every batch: `OUT/answers.jsonl`.

Its first line tells the model and the longest answer; a build that goes on with others is refused, since two models'
answers would look like one model's. An answer is used again only for the same id, question and images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from safevlm.data.json_rows import json_rows
from safevlm.data.pairs import Pair
from safevlm.data.row_log import append_rows, drop_half_written_line
from safevlm.data.sources.fingerprints import bytes_digest, file_digest
from safevlm.engine import Engine
from safevlm.files import checked
from safevlm.model import checkpoint_folder
from safevlm.types import Generation, Request, answered
from safevlm.usage import UsageError

FILE = "answers.jsonl"
ROUND = 1
"""Tokens that a text may lose when it is read again: its leading space."""
WEIGHTS = ("*.safetensors", "config.json", "adapter_config.json")


@dataclass(frozen=True)
class BaseModelAnswer:
    text: str
    is_cut: bool
    """It fills `max_new_tokens`, so where it stops the model did not."""


@dataclass(frozen=True)
class AnswerOptions:
    """Which model is asked, and how."""

    model: str
    base: str | None = None
    device: str = "auto"
    batch_size: int = 64
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')}: {getattr(self, name)} is too small; at least 1")

    def facts(self) -> dict[str, Any]:
        """What answers hang on; a path alone does not tell a model from the one trained again in its place."""
        folder = checkpoint_folder.resolve(self.model)
        files = sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))
        digests = "".join(f"{file.name} {file_digest(file)}\n" for file in files)
        return {"weights": bytes_digest(digests.encode()), "max_new_tokens": self.max_new_tokens}


def ask(pairs: Sequence[Pair], asking: AnswerOptions, facts: dict[str, Any], out: Path) -> dict[str, BaseModelAnswer]:
    """Answers by id of the pair. ValueError: `out` holds answers of other `facts`."""
    file = out / FILE
    known = _known(file, facts)
    left = [pair for pair in pairs if _key(pair) not in known]
    if left:
        engine = Engine.load(asking.model, defense="none", base=asking.base, device=asking.device)
        if not file.exists():
            append_rows(file, [facts])
        with tqdm(desc="the base model's answers", total=len(pairs), initial=len(pairs) - len(left)) as bar:
            for start in range(0, len(left), asking.batch_size):
                batch = left[start : start + asking.batch_size]
                answers = dict(zip(map(_key, batch), _answers(engine, batch, asking), strict=True))
                append_rows(file, (_row(key, answer) for key, answer in answers.items()))
                known |= answers
                bar.update(len(batch))
    return {pair.id: known[_key(pair)] for pair in pairs}


def _answers(engine: Engine, pairs: Sequence[Pair], asking: AnswerOptions) -> list[BaseModelAnswer]:
    requests = [Request(pair.question, pair.images, pair.id) for pair in pairs]
    how = Generation(max_new_tokens=asking.max_new_tokens)
    replies = answered(engine.reply_all(requests, how, batch_size=asking.batch_size))
    tokens = [engine.processor.tokenizer(reply.text, add_special_tokens=False)["input_ids"] for reply in replies]
    return [
        BaseModelAnswer(reply.text, len(ids) >= asking.max_new_tokens - ROUND)
        for reply, ids in zip(replies, tokens, strict=True)
    ]


_Key = tuple[str, str, tuple[str, ...]]


def _key(pair: Pair) -> _Key:
    return pair.id, pair.question, tuple(path.resolve().as_posix() for path in pair.images)


def _row(key: _Key, answer: BaseModelAnswer) -> dict[str, Any]:
    return {"id": key[0], "question": key[1], "images": key[2], "text": answer.text, "is_cut": answer.is_cut}


def _known(file: Path, facts: dict[str, Any]) -> dict[_Key, BaseModelAnswer]:
    """The answers of a build that was stopped; a line that it did not finish is cut off."""
    if not file.exists():
        return {}
    drop_half_written_line(file)
    rows = list(json_rows(file))
    if not rows:
        file.unlink()
        return {}
    if rows[0][1] != facts:
        raise ValueError(f"{file}: answers of another model or --max-new-tokens; remove it, or choose another --out")
    known = [checked(KeptAnswer, row, place) for place, row in rows[1:]]
    return {(row.id, row.question, row.images): BaseModelAnswer(row.text, row.is_cut) for row in known}


@dataclass(frozen=True)
class KeptAnswer:
    """A line of the file behind the first."""

    id: str
    question: str
    images: tuple[str, ...]
    text: str
    is_cut: bool
