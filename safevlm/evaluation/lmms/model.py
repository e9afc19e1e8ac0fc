"""The class that lmms-eval loads for `--model safevlm`; lmms-eval is optional, so nothing of ours imports this file.

`model_args`: checkpoint=DIR, and as needed defense=NAME, policy=FILE, base=DIR, quantize=int8, seed=N, log=FILE (one
row per request: what the defense saw and did). `safevlm.evaluation.lmms.adapter` does the work.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

try:
    from lmms_eval.api.model import lmms
except ImportError as error:
    raise ImportError("utility benchmarks need lmms-eval: pip install -e '.[utility]'") from error
from tqdm import tqdm

from safevlm.config import Quantization
from safevlm.evaluation.lmms import adapter

logger = logging.getLogger(__name__)


class SafeVlm(lmms):
    """A guarded model, one request at a time."""

    is_simple = False  # the chat protocol: messages with their images

    def __init__(
        self,
        checkpoint: str,
        defense: str = "auto",
        policy: str | None = None,
        base: str | None = None,
        quantize: Quantization = "none",
        seed: int = 0,
        log: str | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
    ) -> None:
        super().__init__()
        if str(batch_size) != "1":
            logger.warning("batch_size %s: requests are answered one by one, as a user would ask", batch_size)
        self.guarded = adapter.load(
            str(checkpoint),
            defense=defense,
            policy=policy,
            base=base,
            device=device,
            quantize=quantize,
            seed=int(seed),
            log_file=log,
        )

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """One reply per request, in order."""
        replies = []
        for request in tqdm(requests, desc="safevlm", unit="request"):
            _, to_messages, options, row, task, split = request.args
            messages = to_messages(self.task_dict[task][split][row])
            replies.append(self.guarded.ask(messages, options, f"{task}:{split}:{row}"))
        print(f"safevlm: {self.guarded.summary()}", file=sys.stderr)
        return replies

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("safevlm writes answers and scores none: choose the task's generating variant")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("safevlm answers single-round tasks only")
