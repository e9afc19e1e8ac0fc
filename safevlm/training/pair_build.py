"""Builds the data of security tensors: pairs are drawn, and the bare model answers what is its own to answer.

    OUT/pairs.jsonl      training records with `part`
    OUT/pairs.json       counts, questions, seed, model, what was left out
    OUT/answers.jsonl    own answers as they came; a build that was stopped goes on from them

An own answer that refuses is kept and counted: there the tensor has to leave the model as it is, and without it the
question would be asked more often about risky images than about clean ones. An empty one teaches nothing and goes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from safevlm.data import pairs, published_pairs, used_folder
from safevlm.data.atomic_write import write_text
from safevlm.data.pairs import ContrastiveQuestions, Counts, Drawn, Pair
from safevlm.data.records import PARTS, Record, RecordError, parse_record, read_records, refuse_placeholders
from safevlm.data.sources.fingerprints import file_digest
from safevlm.defenses import prompts
from safevlm.taxonomy import CLEAN, DEFAULT, Taxonomy, read_taxonomy
from safevlm.training import base_model_answers
from safevlm.training.base_model_answers import AnswerOptions
from safevlm.usage import UsageError

PAIRS, REPORT = "pairs.jsonl", "pairs.json"

Raw = dict[str, Any]


@dataclass(frozen=True)
class PairSettings:
    records: Sequence[Path]
    out: Path
    asking: AnswerOptions | None = None
    """None: the answers of published data as they are."""
    counts: Counts | None = None
    """None: the paper's."""
    refusals: Literal["policy", "record"] | None = None
    """policy: the canned refusal of the record's category; record: its own answer. None: policy."""
    taxonomy: Path | None = None
    images: str = ""
    seed: int = 0
    skip_text: bool = False
    questions: ContrastiveQuestions = "malicious"


def build(settings: PairSettings, is_refusal: Callable[[str], bool]) -> Raw:
    """Makes the pairs; returns what it wrote into `OUT/pairs.json`. `is_refusal` reads own answers."""
    taxonomy = read_taxonomy(settings.taxonomy)[0] if settings.taxonomy else DEFAULT
    is_published = _are_published(settings)
    drawn = _from_published(settings) if is_published else _from_records(settings, taxonomy)
    facts = settings.asking.facts() if settings.asking else {}
    made_of = {
        "records": {str(file): file_digest(file) for file in settings.records},
        "seed": settings.seed,
        "refusals": "output_refuse" if is_published else settings.refusals or "policy",
        "counts_asked_for": asdict(settings.counts) if settings.counts else None,
        "taxonomy": file_digest(settings.taxonomy) if settings.taxonomy else None,
        "images": settings.images,
        "skip_text": settings.skip_text,
        **facts,
    }
    used_folder.refuse_other_work(settings.out / REPORT, made_of)
    settings.out.mkdir(parents=True, exist_ok=True)
    asked = [pair for pair in drawn.pairs if pair.answer is None]
    own = base_model_answers.ask(asked, settings.asking, facts, settings.out) if settings.asking else {}
    answered = [replace(pair, answer=own[pair.id].text) if pair.id in own else pair for pair in drawn.pairs]
    made = [pair for pair in answered if pair.answer]
    rows = [pairs.row_of(pair) for pair in made]
    for row in rows:
        parse_record(row, row["id"], taxonomy, settings.out)  # as training will read it
    report = {
        **made_of,
        "model": settings.asking.model if settings.asking else None,
        "counts": _counts(made),
        "own_answers": {
            "asked": _counts(asked),
            "refusals": _counts(pair for pair in asked if is_refusal(own[pair.id].text)),
            "cut": _counts(pair for pair in asked if own[pair.id].is_cut),
        },
        "left_out": {**drawn.left_out, "empty answer": len(answered) - len(made)},
        "questions": {part: _questions(made, part) for part in PARTS},
    }
    write_text(settings.out / PAIRS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_text(settings.out / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return report


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """What a build made, for a person."""
    for part in PARTS:
        asked, refused, cut = (report["own_answers"][what][part] for what in ("asked", "refusals", "cut"))
        own = f"; own answers: {asked}, of them refusals: {refused}, cut off: {cut}" if asked else ""
        yield f"{part}: {report['counts'][part]} records, {len(report['questions'][part])} questions{own}"
    left = ", ".join(f"{why} {count}" for why, count in report["left_out"].items() if count)
    yield f"left out: {left or 'nothing'}"


def _are_published(settings: PairSettings) -> bool:
    kinds = [published_pairs.is_published(file) for file in settings.records]
    if any(kinds) and not all(kinds):
        raise RecordError(f"{settings.records[kinds.index(False)]}: not published pairs as the others; convert apart")
    if any(kinds) and (settings.counts or settings.refusals):
        raise ValueError(f"{settings.records[0]}: published pairs have their counts and refusals; leave the flags away")
    return any(kinds)


def _from_records(settings: PairSettings, taxonomy: Taxonomy) -> Drawn:
    if settings.asking is None:
        raise UsageError("--model: needed, since contrastive and benign records get the bare model's own answers")
    return pairs.draw(
        read_records(settings.records, taxonomy, settings.images),
        taxonomy,
        settings.counts or Counts(),
        seed=settings.seed,
        refusal=_own_answer if settings.refusals == "record" else lambda record: _canned(record, taxonomy),
        skip_text=settings.skip_text,
        questions=settings.questions,
        where=", ".join(map(str, settings.records)),
    )


def _from_published(settings: PairSettings) -> Drawn:
    """All rows; with a model at hand the answers that were another model's are asked for anew."""
    rows = (
        pair for file in settings.records for pair in published_pairs.read(file, Path(settings.images or file.parent))
    )
    stale = settings.asking is not None
    found = [replace(pair, answer=None) if stale and pair.part != "malicious" else pair for pair in rows]
    return Drawn(list(pairs.with_own_ids(found)), {})


def _canned(record: Record, taxonomy: Taxonomy) -> str:
    category = CLEAN if record.safe_type is None else taxonomy.category_names[record.safe_type]
    return prompts.refusal(taxonomy, category)


def _own_answer(record: Record) -> str:
    refuse_placeholders([record])
    return next(message["content"][0]["text"] for message in record.messages if message["role"] == "assistant").strip()


def _counts(some: Iterable[Pair]) -> dict[str, int]:
    counted = Counter(pair.part for pair in some)
    return {part: counted[part] for part in PARTS}


def _questions(made: Iterable[Pair], part: str) -> dict[str, int]:
    return dict(Counter(pair.question for pair in made if pair.part == part).most_common())
