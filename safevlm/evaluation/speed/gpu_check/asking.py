"""`safevlm eval ask` over JPEG files behind the safety head: images read ahead of the model, and in turn with it.

Both ways are the command's own function from a suite to a run's folder; the one that reads in turn has an engine that
reads nothing ahead. The first batch of a run is never read ahead, so of few batches the ratio is smaller than of many.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from PIL.Image import Resampling

from safevlm.engine import Engine, reading
from safevlm.evaluation.runs import shards
from safevlm.evaluation.runs.ask import ask
from safevlm.evaluation.speed.gpu_check import models, timing
from safevlm.evaluation.speed.gpu_check.session import Session
from safevlm.evaluation.suites.groups import Group
from safevlm.evaluation.suites.question import Question
from safevlm.evaluation.suites.suite import Suite
from safevlm.types import Request

NAME = "photographs"
AHEAD, IN_TURN = "read ahead", "in turn"
SIZE = (1280, 960)
"""Width and height of the files; 290 to 350 kB each."""
READINGS = 3
"""Of one batch, with the model idle."""


class InTurn(Engine):
    """Reads the images of a batch when its turn has come."""

    def read_ahead(self, requests: Any) -> None:
        """Reads nothing."""


def read_ahead(session: Session, *, images: int, batch: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Wall time of a whole run in both ways, the ratio, and on how many requests both say the same.

    On a CPU there are four images in batches of two. ValueError: a request without an answer.
    """
    images, batch = (images, batch) if session.on_gpu else (4, 2)
    loaded = session.once("answering", lambda: models.answering(session))
    engine = models.engine(loaded, "safety-head", session, "allow")
    engines = {AHEAD: engine, IN_TURN: InTurn(loaded, engine.defense, session.device)}
    said: dict[str, list[dict[str, str]]] = {name: [] for name in engines}
    with tempfile.TemporaryDirectory() as folder:
        data, numbers = Path(folder) / "data", itertools.count()
        data.mkdir()
        for seed in range(images):
            models.photo(seed).resize(SIZE, Resampling.BICUBIC).save(data / f"{seed:04}.jpg", quality=90)
        first = [question.request for question in SUITE.load(data)[:batch]]

        def asked(name: str) -> Callable[[], None]:
            def run() -> None:
                out = Path(folder) / f"run{next(numbers)}"
                how: dict[str, Any] = {"batch_size": batch, "max_new_tokens": tokens, "engine": engines[name]}
                ask(REFERENCE, data, "random weights", "safety-head", out, **how)
                rows = shards.read_all(out)
                if any(row["refused_by"] or not row["verdict"]["level"] for row in rows.values()) or len(rows) < images:
                    raise ValueError(f"{name}: what was timed is not {images} answers: {list(rows.values())[:1]}")
                said[name].append({request: row["reply"] for request, row in rows.items()})

            return run

        reading_alone = timing.repeated(_read(first, engine), session.device, READINGS, warm_up=1)
        seconds = timing.in_rounds({name: asked(name) for name in engines}, session.device, rounds)
    truth = said[IN_TURN][0]
    return {
        "images": images,
        "batch": batch,
        "new_tokens": tokens,
        "rounds": rounds,
        "seconds": {name: median(own) for name, own in seconds.items()},
        "times_faster": timing.over(seconds, AHEAD)[IN_TURN]["ratio"],
        "reading_seconds_per_image": median(reading_alone) / batch,
        "same_replies": {
            name: min(sum(one[request] == truth[request] for request in truth) / images for one in runs)
            for name, runs in said.items()
        },
        "memory": session.memory(),
    }


def _read(requests: list[Request], engine: Engine) -> timing.Work:
    return lambda: reading.images_of(requests, engine.processor, engine.defense.detects)


def _questions(folder: Path) -> list[Question]:
    question = models.requests(1)[0].text
    return [Question(file.stem, NAME, question, (file,)) for file in sorted(folder.glob("*.jpg"))]


SUITE = Suite(
    name=NAME,
    questions=_questions,
    groups={NAME: Group("drawn photographs", "benign")},
    source="drawn by this check",
    licence="Apache-2.0",
    published={},
    judge="refusal",
    max_new_tokens=16,
)
REFERENCE = f"{__name__}:SUITE"
"""How `--suite` would name it."""
