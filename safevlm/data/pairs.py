"""The data of security tensors (arXiv 2507.20994): images with questions, in three parts.

    malicious     risky images, their own questions; answered with a refusal                     (paper: SA)
    contrastive   clean images, questions of risky records; answered as the bare model does           (TCB)
    benign        other clean images, their own questions; likewise                                    (GB)

The trap is a question that tells its part: what learns from that refuses by the question and never looks. So each
malicious question is asked about clean images as often as about risky ones. The paper's contrastive questions are of
the same kind, but none is a malicious one: `questions="other"` takes those of risky records that are in no part.
No image, by its pixels, occurs twice.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from safevlm.data.images import ImageError
from safevlm.data.records import IMAGE, Record, RecordError, is_clean
from safevlm.data.sources.fingerprints import pixel_digest
from safevlm.taxonomy import SAFE, Taxonomy
from safevlm.usage import UsageError

NO_IMAGE = "without an image"
SAME_IMAGE = "image taken already"
NOT_NEEDED = "not needed"
RISKY, CLEAN = "risky", "clean"

Refusal = Callable[[Record], str]
ContrastiveQuestions = Literal["malicious", "other"]
"""What contrastive images are asked: the malicious questions, or those of other risky records."""


@dataclass(frozen=True)
class Pair:
    id: str
    part: str
    """One of `records.PARTS`."""
    question: str
    images: tuple[Path, ...]
    answer: str | None = None
    """None: the bare model's own, yet to be asked for."""
    category: str | None = None
    level: str | None = None


@dataclass(frozen=True)
class Counts:
    """How many of each part; the defaults are the paper's (methods §3.3)."""

    malicious: int = 400
    contrastive: int = 400
    benign: int = 200

    def __post_init__(self) -> None:
        for name, least in (("malicious", 1), ("contrastive", 0), ("benign", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name}: {getattr(self, name)} is too small; at least {least}")


@dataclass(frozen=True)
class Drawn:
    pairs: list[Pair]
    left_out: Mapping[str, int]
    """Why records are in no part, and how many."""


def draw(
    records: Sequence[Record],
    taxonomy: Taxonomy,
    counts: Counts,
    *,
    seed: int,
    refusal: Refusal,
    skip_text: bool,
    where: str,
    questions: ContrastiveQuestions = "malicious",
) -> Drawn:
    """Records → pairs of all three parts; the same seed draws the same. `where` names their files in errors.

    RecordError: a record without an image, unless `skip_text`; an image that cannot be read; too few records.
    """
    ordered = [(_kind(record, taxonomy, skip_text), record) for record in records]
    kinds = random.Random(seed).sample(ordered, len(ordered))
    images = _Images(where)
    risky = images.take(kinds, RISKY, counts.malicious)
    clean = images.take(kinds, CLEAN, counts.contrastive + counts.benign)
    asked = [_asked(record)[0] for record in risky]
    if questions == "other" and counts.contrastive:
        asked = _other_questions([record for kind, record in kinds if kind == RISKY], asked, where)
    mirrored = random.Random(seed).sample(_spread(asked, counts.contrastive), counts.contrastive)
    contrastive, benign = clean[: counts.contrastive], clean[counts.contrastive :]
    pairs = [
        *(replace(_pair("malicious", record, taxonomy), answer=refusal(record)) for record in risky),
        *(
            replace(_pair("contrastive", record, taxonomy), question=question)
            for record, question in zip(contrastive, mirrored, strict=True)
        ),
        *(_pair("benign", record, taxonomy) for record in benign),
    ]
    left_out = Counter(kind for kind, _ in kinds if kind not in (RISKY, CLEAN)) + images.left_out
    return Drawn(list(with_own_ids(pairs)), dict(left_out))


def with_own_ids(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """Ids that stand twice get a number: LLaVA's data use some for several records."""
    seen: Counter[str] = Counter()
    for pair in pairs:
        seen[pair.id] += 1
        yield pair if seen[pair.id] == 1 else replace(pair, id=f"{pair.id}#{seen[pair.id]}")


def row_of(pair: Pair) -> dict[str, Any]:
    """A pair as a training record in LLaVA's layout; images by absolute path."""
    images = [path.resolve().as_posix() for path in pair.images]
    labels = {"safe_type": pair.category, "safe_level": pair.level}
    return {
        "id": pair.id,
        "part": pair.part,
        "image": images[0] if len(images) == 1 else images,
        **{name: label for name, label in labels.items() if label is not None},
        "conversations": [
            {"from": "human", "value": f"{IMAGE}\n" * len(images) + pair.question},
            {"from": "gpt", "value": pair.answer},
        ],
    }


def _kind(record: Record, taxonomy: Taxonomy, skip_text: bool) -> str:
    """RISKY, CLEAN, or why it is neither."""
    if not record.images:
        if not skip_text:
            raise RecordError(f"{record.place}: no image to ask about; take it out, or leave such out: --skip-text")
        return NO_IMAGE
    if record.safe_type is None and record.safe_level is None:
        return "unlabelled"
    if is_clean(record, taxonomy):
        return CLEAN
    return f"risky category at level {SAFE}" if _level(record, taxonomy) == SAFE else RISKY


class _Images:
    """Which images have been taken; the first record that has one keeps it."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.digests: set[str] = set()
        self.left_out: Counter[str] = Counter()

    def take(self, kinds: Sequence[tuple[str, Record]], kind: str, count: int) -> list[Record]:
        """The first `count` records of a kind whose images are all new."""
        records = [record for its_kind, record in kinds if its_kind == kind]
        found: list[Record] = []
        for index, record in enumerate(records):
            if len(found) == count:
                self.left_out[NOT_NEEDED] += len(records) - index
                break
            digests = {_digest(record, path) for path in record.images}
            if digests.isdisjoint(self.digests):
                found.append(record)
            else:
                self.left_out[SAME_IMAGE] += 1
            self.digests |= digests
        if len(found) < count:
            flags = "--malicious" if kind == RISKY else "--contrastive or --benign"
            raise RecordError(
                f"{self.where}: {len(found)} records labelled {kind} have an image of their own, and {count} are "
                f"needed; lower {flags}, or give more records"
            )
        return found


def _digest(record: Record, path: Path) -> str:
    try:
        return pixel_digest(path.read_bytes(), str(path))
    except (ImageError, OSError) as error:
        raise RecordError(f"{record.place}: {error}") from error


def _other_questions(risky: Sequence[Record], malicious: Sequence[str], where: str) -> list[str]:
    """Questions of risky records that no malicious pair asks. RecordError: there are none."""
    found = [question for question in (_asked(record)[0] for record in risky) if question not in set(malicious)]
    if not found:
        raise RecordError(
            f"{where}: every question of a risky record is asked in a malicious pair, so that there are no other ones; "
            "lower --malicious, give more records, or leave out --contrastive-questions other"
        )
    return found


def _spread(questions: Sequence[str], count: int) -> list[str]:
    """`count` of the questions, each as often as its share of them, to within one."""
    ordered = sorted(questions)
    return [ordered[index * len(ordered) // count] for index in range(count)]


def _pair(part: str, record: Record, taxonomy: Taxonomy) -> Pair:
    """A record as it stands: its images, its own question, no answer yet."""
    question, images = _asked(record)
    return Pair(
        id=f"{part}/{record.id}",
        part=part,
        question=question,
        images=record.images[:images],
        category=None if record.safe_type is None else taxonomy.category_names[record.safe_type],
        level=_level(record, taxonomy),
    )


def _asked(record: Record) -> tuple[str, int]:
    """The first question that shows images, and how many; later ones lean on answers that are not the model's."""
    for message in record.messages:
        images = sum(part["type"] == "image" for part in message["content"])
        if images:
            break
    return message["content"][-1]["text"], images


def _level(record: Record, taxonomy: Taxonomy) -> str | None:
    return None if record.safe_level is None else taxonomy.level_names[record.safe_level]
