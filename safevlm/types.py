"""The data classes that pass between packages: Request, Generation, Verdict, Reply, Sample. Frozen, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from safevlm.messages import Conversation, Message, read
from safevlm.taxonomy import CLEAN, SAFE

if TYPE_CHECKING:
    from numpy import uint8
    from numpy.typing import NDArray
    from PIL.Image import Image

ImageSource: TypeAlias = "str | Path | Image | bytes | NDArray[uint8]"
"""An image: a file's path, a `data:` URI (base64), an open image, a file's bytes, or pixels (h, w, 3) or (h, w), uint8.

`safevlm.data.images.open_image` opens it when it is needed.
"""
History: TypeAlias = "Sequence[tuple[str, str]] | Sequence[Message]"
"""Earlier turns: (question, answer) pairs, or OpenAI messages."""


@dataclass(frozen=True, init=False)
class Request:
    """One question to the model, with the images it is about."""

    text: str
    images: tuple[ImageSource, ...]
    id: str
    """Stable name of the request; the oracle defense and the evaluation find the truth by it."""
    history: tuple[tuple[str, str], ...]
    """Earlier turns, (question, answer)."""
    system: str
    """System prompt; it stands before everything."""
    images_per_turn: tuple[int, ...]
    """Number of images of each question, those of `history` first, `text` last; empty: the first has them all."""

    def __init__(
        self,
        text: str,
        images: Sequence[ImageSource] = (),
        id: str = "",
        history: History = (),
        system: str = "",
        images_per_turn: Sequence[int] = (),
    ) -> None:
        """`history` is pairs, or OpenAI messages that end with an assistant's (`safevlm.messages`); a system message
        among them becomes `system`. Images of messages stay with their questions. `images` beside pairs belong to the
        first question, beside messages to `text`, unless `images_per_turn` says otherwise.

        TypeError, ValueError: what cannot be understood, by its name and place; images are not opened here.
        """
        for name, said in {"text": text, "id": id, "system": system}.items():
            _check_text(name, said)
        if isinstance(images, str | bytes) or not isinstance(images, Sequence):
            raise TypeError(f"images: {type(images).__name__} is not a list of images; write images=(image,)")
        pairs, spoken = _pairs(history)
        if spoken is not None and spoken.system:
            if system:
                raise ValueError("system: given twice, here and as a message in history; leave one out")
            system = spoken.system
        told = [image for question in spoken.questions for image in question.images] if spoken is not None else []
        if spoken is not None and told:
            if images or images_per_turn:
                raise ValueError(
                    "images: given twice, here and in messages of history; put this question's images into its own "
                    "message too: Request.from_messages"
                )
            images, images_per_turn = told, _counts(spoken, len(pairs) + 1)
        elif spoken is not None and pairs and images and not images_per_turn:  # messages say whose images are whose
            images_per_turn = (*[0] * len(pairs), len(images))
        _check_counts(images_per_turn, len(images), len(pairs) + 1)
        fields = (text, tuple(images), id, pairs, system, tuple(images_per_turn))
        for name, value in zip(self.__dataclass_fields__, fields, strict=True):
            object.__setattr__(self, name, value)

    @classmethod
    def from_messages(cls, messages: Sequence[Message], id: str = "") -> Request:
        """OpenAI messages, the last of them the user's. TypeError, ValueError: as `safevlm.messages.read`."""
        spoken = read(messages)
        if len(spoken.questions) == len(spoken.answers):
            raise ValueError("messages: the last one must be the user's question")
        return cls(
            text=spoken.questions[-1].text,
            images=[image for question in spoken.questions for image in question.images],
            id=id,
            history=[
                (question.text, answer) for question, answer in zip(spoken.questions, spoken.answers, strict=False)
            ],
            system=spoken.system,
            images_per_turn=_counts(spoken, len(spoken.questions)),
        )

    @property
    def turns(self) -> tuple[tuple[str, int], ...]:
        """Every question with its number of images, this request's own last."""
        questions = (*(question for question, _ in self.history), self.text)
        counts = self.images_per_turn or (len(self.images), *[0] * len(self.history))
        return tuple(zip(questions, counts, strict=True))


def _pairs(history: History) -> tuple[tuple[tuple[str, str], ...], Conversation | None]:
    """(question, answer) pairs; and the conversation, where messages were given."""
    if isinstance(history, str | bytes) or not isinstance(history, Sequence):
        raise TypeError(f"history: {type(history).__name__} is not a list of (question, answer) pairs or of messages")
    if any(isinstance(turn, Mapping) for turn in history):
        try:
            spoken = read(cast("Sequence[Message]", history))
        except (TypeError, ValueError) as error:
            raise type(error)(f"history: {error}") from error
        if len(spoken.questions) != len(spoken.answers):
            raise ValueError(
                f"history: messages[{len(history) - 1}] is the user's; history ends with an assistant message, and the "
                "question goes into text: Request(question, history=messages[:-1]), or Request.from_messages(messages)"
            )
        texts = [question.text for question in spoken.questions]
        return tuple(zip(texts, spoken.answers, strict=True)), spoken
    for index, turn in enumerate(history):
        is_pair = isinstance(turn, Sequence) and not isinstance(turn, str) and len(turn) == 2
        if not is_pair or not all(isinstance(said, str) for said in turn):
            raise TypeError(f"history[{index}]: {turn!r} is not a (question, answer) pair of texts")
    return tuple((question, answer) for question, answer in cast("Sequence[tuple[str, str]]", history)), None


def _counts(spoken: Conversation, turns: int) -> tuple[int, ...]:
    """Images of each question; empty where the first has them all."""
    counts = [len(question.images) for question in spoken.questions]
    return () if sum(counts) == counts[0] else (*counts, *[0] * (turns - len(counts)))


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name}: {value!r} is not text")


def _check_counts(counts: Sequence[int], images: int, turns: int) -> None:
    if counts and (len(counts) != turns or sum(counts) != images or min(counts) < 0):
        raise ValueError(f"images_per_turn: {tuple(counts)} does not share {images} images among {turns} questions")


ORACLE = "oracle"
"""The detector that knows the truth; it has no probabilities."""
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Generation:
    """How the model writes an answer. TypeError or ValueError names the field that cannot be used."""

    max_new_tokens: int = 256
    """Longest answer, in tokens; 1 or more."""
    temperature: float = 0.0
    """0: greedy decoding. Above 0: logits are divided by it and a token is drawn."""
    top_p: float = 1.0
    """With a temperature above 0: draw among the likeliest tokens whose probabilities sum to this; in (0, 1]."""
    seed: int = 0
    """With a temperature above 0: the same seed gives the same answer; 0 to 2**63 - 1."""
    stop: tuple[str, ...] = ()
    """Texts at which an answer ends, before they are said."""

    def __post_init__(self) -> None:
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise TypeError(f"Generation: stop={self.stop!r} must be a tuple of texts, none of them empty")
        for name in ("max_new_tokens", "seed"):
            _check_type(name, getattr(self, name), int, "a whole number")
        for name in ("temperature", "top_p"):
            _check_type(name, getattr(self, name), int | float, "a number")
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "temperature": (0.0 <= self.temperature < math.inf, "0 (greedy) or more"),
            "top_p": (0.0 < self.top_p <= 1.0, "above 0, and at most 1"),
            "seed": (0 <= self.seed <= MAX_SEED, f"from 0 to {MAX_SEED}"),
        }
        for name, (holds, allowed) in rules.items():
            if not holds:
                raise ValueError(f"Generation: {name}={getattr(self, name)!r} must be {allowed}")


def _check_type(name: str, value: object, kind: type | UnionType, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"Generation: {name}={value!r} must be {what}")


@dataclass(frozen=True)
class Verdict:
    """What a detector saw, or that none looked.

    A request that nobody looked at has the level and category of one in which nothing was seen, since no policy may act
    on it; only `looked` tells the two apart.
    """

    level: str = SAFE
    category: str = CLEAN
    level_probabilities: Mapping[str, float] = field(default_factory=dict)
    category_probabilities: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    """Name of the detector."""
    error: str = ""
    """Why the detector failed; a failed detector's request is refused (fail closed). With an error and nothing said of
    the request, `looked` is False."""
    looked: bool = True
    """Whether a detector looked at the request. False: there is none, it reads images and there are none, or it failed;
    `level` and `category` then say nothing about the request."""
    frame: str = ""
    """Of images with several frames or pages, all of which are looked at: which one the verdict is about."""
    view: str = ""
    """Of a detector that looks at an image more than once: which look the verdict is about, where it is not the image
    as it is."""
    radius: float | None = None
    """Of a smoothed detector that is sure: no change of the pixels of smaller l2 norm, in units of 0 to 1 as the tower
    reads them, gives another answer to "risky or not"."""
    images: tuple[Verdict, ...] = ()
    """Of a request with several images: what is said of each alone, in their order. Empty: there are not several, or
    the detector looks at all of them together only."""

    def __post_init__(self) -> None:
        says_something = (self.level, self.category) != (SAFE, CLEAN) or self.source == ORACLE
        if self.error and not (says_something or self.level_probabilities or self.category_probabilities):
            object.__setattr__(self, "looked", False)

    @classmethod
    def not_looked(cls, source: str = "", error: str = "") -> Verdict:
        """The verdict of `source` on a request that it did not look at."""
        return cls(source=source, error=error, looked=False)

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Verdict:
        """Reads `to_dict` back, and what was written before there was `looked`: there a verdict that saw nothing and
        has no probabilities counts as not looked, unless the oracle gave it."""
        level, category = table.get("level") or SAFE, table.get("category") or CLEAN
        said_nothing = (level, category) == (SAFE, CLEAN) and not table.get("level_probabilities")
        return cls(
            level=level,
            category=category,
            level_probabilities=table.get("level_probabilities") or {},
            category_probabilities=table.get("category_probabilities") or {},
            source=table.get("source") or "",
            error=table.get("error") or "",
            looked=table.get("looked", not said_nothing or table.get("source") == ORACLE),
            frame=table.get("frame") or "",
            view=table.get("view") or "",
            radius=table.get("radius"),
            images=tuple(map(cls.from_dict, table.get("images") or ())),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready. `level` and `category` are null where nobody looked; `frame` is there for animations only,
        `images` for several of them, `view` and `radius` for detectors that give them."""
        return {
            "looked": self.looked,
            "level": self.level if self.looked else None,
            "category": self.category if self.looked else None,
            "level_probabilities": {name: float(value) for name, value in self.level_probabilities.items()},
            "category_probabilities": {name: float(value) for name, value in self.category_probabilities.items()},
            "source": self.source,
            "error": self.error,
            **({"frame": self.frame} if self.frame else {}),
            **({"view": self.view} if self.view else {}),
            **({"radius": self.radius} if self.radius is not None else {}),
            **({"images": [own.to_dict() for own in self.images]} if self.images else {}),
        }

    @property
    def is_clean(self) -> bool:
        """SafeVLM's rule: level `safe` or category `clean`, either is enough."""
        return not self.error and (self.level == SAFE or self.category == CLEAN)


Ended = Literal["", "stop", "length"]


@dataclass(frozen=True)
class Reply:
    """What the user gets, and how it came about."""

    text: str
    request: Request
    verdict: Verdict = Verdict.not_looked()
    refused_by: str = ""
    """Name of the defense that answered in the model's place; empty when the model spoke."""
    prompt: str = ""
    """The prompt as the model read it, image slots collapsed to one `<image>`; empty when the model was not asked."""
    seconds: float = 0.0
    """Wall time of the request; in a batch, the batch's time over its size."""
    trace: tuple[str, ...] = ()
    """One line per step that changed something."""
    error: str = ""
    """Why the request could not be used (`Engine.reply_all`); then nobody looked or answered, and `text` is empty."""
    prompt_tokens: int = 0
    """Tokens that the model read, those of images included; 0 when the model was not asked."""
    answer_tokens: int = 0
    """Tokens that the model wrote, the end of the answer included."""
    ended: Ended = ""
    """Why the model stopped: the answer was over, or had its full length; empty when the model was not asked."""


def answered(replies: Sequence[Any]) -> Sequence[Any]:
    """The replies as they are. ValueError: one is none, since its request could not be used."""
    for reply in replies:
        if isinstance(reply, Reply) and reply.error:
            raise ValueError(reply.error)
    return replies


@dataclass(frozen=True)
class Sample:
    """One row of an evaluation suite: a request and what is true of it."""

    request: Request
    suite: str
    group: str
    category: str = CLEAN
    level: str = SAFE
    expected: Mapping[str, Any] = field(default_factory=dict)
    """What an exact judge needs; suites without one leave it empty."""

    @property
    def is_harmful(self) -> bool:
        return self.level != SAFE
