"""What an answer is worth: the pluggable half of `eta`. Higher is safer; only the order and one threshold count.

    phrases        anchored sentences of refusal and care: free, needs no model, and knows nothing but manners
    self-check     the model's own word about its answer (`safevlm.defenses.self_check`), one more pass
    hf:DIR         a reward model on disk: transformers' sequence classification, one label
    hf:DIR#LABEL   a classifier on disk: the probability of this label

The trap of `phrases`: it cannot tell a helpful harmless answer from harmful help, so with it best-of-n looks for the
candidate that declines. The trap of reward models with code of their own (ArmoRM's gating is one): without that code
transformers fills what it does not know with random numbers and only warns; here this is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from llava_patch.pretrained import from_folder
from safevlm.defenses.base import Ask
from safevlm.defenses.self_check import Wording, tell
from safevlm.paths import expanded_path
from safevlm.refusals import carefulness
from safevlm.types import Request

Reward: TypeAlias = "Callable[[Ask, Request, Sequence[str]], list[float]]"
"""The bare model, a request, answers to it → a number each."""

FROM_DISK = "hf:"


def phrases(ask: Ask, request: Request, replies: Sequence[str]) -> list[float]:
    """1 where a sentence declines, 0.5 where one asks for care, else 0; where numbered steps follow, 0."""
    return [carefulness(reply) for reply in replies]


def self_check(ask: Ask, request: Request, replies: Sequence[str]) -> list[float]:
    """1 where the model calls its answer harmless, else 0."""
    wording = Wording()
    return [float(wording.read(said) == "harmless") for said in tell(ask, wording, request, replies)]


REWARDS: dict[str, Reward] = {"phrases": phrases, "self-check": self_check}


def reward_of(name: str, device: Any = "cpu") -> Reward:
    """A reward by name. ValueError: unknown, or a folder that is none."""
    if name.startswith(FROM_DISK):
        folder, _, label = name.removeprefix(FROM_DISK).partition("#")
        return RewardModel(expanded_path(folder), label, device)
    if name not in REWARDS:
        raise ValueError(f"unknown reward {name!r}; one of {[*REWARDS, 'hf:DIR', 'hf:DIR#LABEL']}")
    return REWARDS[name]


class RewardModel:
    """A sequence classifier from a folder; loaded when it is first asked, on the device of the model it judges, or by
    `load`, so that what cannot be loaded is an error before anything is answered."""

    def __init__(self, folder: Path, label: str, device: Any) -> None:
        if not (folder / "config.json").is_file():
            raise ValueError(f"reward {FROM_DISK}{folder}: no config.json there; name the folder of a reward model")
        self.folder, self.label, self.device = folder, label, device

    def load(self) -> None:
        """ValueError: the folder holds no reward model that can be loaded, or not the label."""
        _ = self._label_id if self.label else self._loaded

    def __call__(self, ask: Ask, request: Request, replies: Sequence[str]) -> list[float]:
        # one by one: not every reward model has a padding token, and there are n of them
        return [self._score(request, reply) for reply in replies]

    def _score(self, request: Request, reply: str) -> float:
        import torch

        model, tokenizer = self._loaded
        with torch.inference_mode():
            logits = model(**_encoded(tokenizer, request, reply).to(self.device)).logits[0].float()
        score = logits.softmax(-1)[self._label_id] if self.label else logits[0]
        return score.item()

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            model, report = from_folder(
                AutoModelForSequenceClassification, self.folder, dtype="auto", output_loading_info=True
            )
            tokenizer = from_folder(AutoTokenizer, self.folder)
        except Exception as error:  # loaders raise what they like, of several lines
            why = str(error).strip().partition("\n")[0]
            raise ValueError(f"reward {FROM_DISK}{self.folder}: cannot be loaded: {why}") from error
        if report["missing_keys"] or report["unexpected_keys"]:
            raise ValueError(
                f"reward {FROM_DISK}{self.folder}: no plain sequence classifier; its weights lack "
                f"{sorted(report['missing_keys'])} and hold {sorted(report['unexpected_keys'])} besides"
            )
        if not self.label and model.config.num_labels != 1:
            raise ValueError(
                f"reward {FROM_DISK}{self.folder}: has {model.config.num_labels} labels; name the harmless one: "
                f"{FROM_DISK}DIR#LABEL, one of {list(model.config.label2id)}"
            )
        return model.to(self.device).eval(), tokenizer

    @cached_property
    def _label_id(self) -> int:
        labels = self._loaded[0].config.label2id
        if self.label not in labels:
            raise ValueError(f"reward {FROM_DISK}{self.folder}: no label {self.label!r}; one of {list(labels)}")
        return labels[self.label]


def rewarded(reward: Reward, ask: Ask, request: Request, replies: Sequence[str]) -> list[float]:
    """The rewards, checked: nan is neither above nor below a threshold."""
    scores = reward(ask, request, replies)
    if len(scores) != len(replies) or not all(map(math.isfinite, scores)):
        raise ValueError(f"the reward gave {scores} for {len(replies)} answers; a finite number each is needed")
    return scores


def _encoded(tokenizer: Any, request: Request, reply: str) -> Any:
    """The dialogue in the reward model's own template, or question and answer as a pair."""
    if tokenizer.chat_template is None:
        return tokenizer(request.text, reply, truncation=True, return_tensors="pt")
    turns = [*((role, text) for pair in request.history for role, text in zip(_ROLES, pair, strict=True))]
    turns += [("user", request.text), ("assistant", reply)]
    messages = [{"role": role, "content": text} for role, text in turns]
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")


_ROLES = ("user", "assistant")
