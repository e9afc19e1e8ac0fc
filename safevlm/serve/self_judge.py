"""The model as the judge of its own answers: it is asked in the wording of the defense `self-check`."""

from __future__ import annotations

import dataclasses

from safevlm.defenses.self_check import VERDICT_TOKENS, SelfCheck, Wording
from safevlm.engine import Engine
from safevlm.serve.batches import Batches, Waiting
from safevlm.serve.output_guard import AnswerVerdict
from safevlm.types import Generation, Reply, Request

HARMFUL = "harmful"


class SelfJudge:
    """Asks in the model's own queue, in front of new requests, since an answer waits for it."""

    def __init__(self, engine: Engine, batches: Batches, wording: Wording, seconds: float) -> None:
        self._bare = engine.behind("none")
        self._batches = batches
        self._wording = wording
        self._seconds = seconds

    async def __call__(self, request: Request, text: str) -> AnswerVerdict:
        asked = dataclasses.replace(request, text=self._wording.tell.format(question=request.text, reply=text))
        waiting = Waiting(self._bare, asked, Generation(VERDICT_TOKENS), is_streamed=False)
        try:
            self._batches.put(waiting, is_first=True)
            async for heard in waiting.heard(self._seconds):
                if isinstance(heard, Reply):
                    is_harmful = self._wording.read(heard.text) == HARMFUL
                    return AnswerVerdict(
                        SelfCheck.name, is_harmful, {HARMFUL: is_harmful}, {HARMFUL: float(is_harmful)}
                    )
        finally:
            waiting.leave()
        raise RuntimeError("the model gave no judgement")


def wording_of(engine: Engine, name: str) -> Wording:
    """Of `self-check` or `self-check=FILE`. ValueError: the file cannot be used."""
    defense = engine.behind(name).defense
    assert isinstance(defense, SelfCheck)
    return defense.wording
