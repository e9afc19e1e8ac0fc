"""Writes a mix: what `safevlm.data.mix` planned, as files that training reads.

    OUT/stage1.jsonl, stage2.jsonl     records (LLaVA's layout with `safe_type`, `safe_level`, `source`)
    OUT/head_only.jsonl                stage 1's images without an answer, if allowed; for `loss.lm: 0` only
    OUT/images/SOURCE/…                images out of zips and parquet (`images: copy`: all), named by content
    OUT/taxonomy.yaml                  for `model.taxonomy`: labels mean what the head learns
    OUT/rtvlm_split.json               which rows are held out, for the evaluation
    OUT/mix.json                       seed, what was asked, found and taken, digests

Images that are files stay where they are, and records name them by their absolute path. Nothing depends on the
clock or on OUT: the same YAML, seed and data give the same bytes. Record files are written last, and replaced whole.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safevlm.data import answers, mix, packed_images, used_folder
from safevlm.data.atomic_write import write_text
from safevlm.data.mix import Candidate, MixPlan
from safevlm.data.mix_file import STAGES, Mix, MixError, read_mix
from safevlm.data.mix_report import report_of
from safevlm.data.records import parse_record
from safevlm.data.sources import read_source
from safevlm.data.sources.fingerprints import HeldOut, bytes_digest, file_digest
from safevlm.data.sources.images import read_images
from safevlm.data.sources.row import ImageFile, SourceRow, SourceSpec, Turn, asked
from safevlm.data.threads import in_threads

log = logging.getLogger(__name__)

REPORT = "mix.json"
HEAD_ONLY = "head_only"
RECORD_FILES = tuple(f"{name}.jsonl" for name in (*STAGES, HEAD_ONLY))

MADE_OF = ("mix_sha256", "seed", "taxonomy", "sources", "absent", "stages")
"""Keys of the report that a mix of the same folder must share."""

Raw = dict[str, Any]


@dataclass(frozen=True)
class _Taken:
    """A row of the pool with what it will say."""

    candidate: Candidate
    row: SourceRow
    turns: tuple[Turn, ...]
    id: str


def build(file: Path, out: Path, *, seed: int | None = None, root: Path | None = None) -> Raw:
    """Makes a mix; returns what it wrote into `OUT/mix.json`. MixError before anything is written but a split file."""
    made_mix = read_mix(file, out, seed, root)
    made = mix.plan(made_mix)
    taken = _taken(made)
    compared = _refuse_leaks(made_mix, [image for one in taken for image in one.row.images])
    report = report_of(made)
    used_folder.refuse_other_work(out / REPORT, {name: report[name] for name in MADE_OF})
    out.mkdir(parents=True, exist_ok=True)
    names = _store_images(taken, out, copies_all=made_mix.images == "copy")
    files = {f"{name}.jsonl": rows for name, rows in _stage_rows(made, taken, names, out).items()}
    write_text(out / "taxonomy.yaml", taxonomy_yaml(made_mix))
    for name in set(RECORD_FILES) - set(files):
        (out / name).unlink(missing_ok=True)  # of an earlier mix
    for name, rows in files.items():
        write_text(out / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    report |= {"held_out": compared, "files": _digests(out, files), "splits": _split_files(made_mix)}
    write_text(out / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return report


def check(file: Path, out: Path, *, seed: int | None = None, root: Path | None = None) -> Raw:
    """The same without writing anything: what would be taken, or why not."""
    with TemporaryDirectory() as scratch:
        made = mix.plan(without_writing(read_mix(file, out, seed, root), Path(scratch)))
        return {**report_of(made), "held_out": compare(made)}


def compare(made: MixPlan, more: Collection[ImageFile] = ()) -> Raw:
    """Refuses a pool that shares images with what is held out; else, how many were compared with."""
    return _refuse_leaks(made.mix, [image for _, row in mix.taken_rows(made) for image in row.images], more)


def held_out_images(made_mix: Mix) -> dict[str, set[ImageFile]]:
    """Images of every held-out source that is there."""
    present, _ = mix.split_absent(made_mix.held_out)
    return {spec.name: {image for row in read_source(spec) for image in row.images} for spec in present}


def without_writing(made_mix: Mix, scratch: Path) -> Mix:
    """Splits that are not drawn yet are drawn into a folder that goes away."""

    def moved(spec: SourceSpec) -> SourceSpec:
        file = spec.split_file
        if file is None or file.is_file():
            return spec
        return replace(spec, split_file=scratch / bytes_digest(str(file).encode())[:8] / file.name)

    sources, held_out = (tuple(map(moved, specs)) for specs in (made_mix.sources, made_mix.held_out))
    return replace(made_mix, sources=sources, held_out=held_out)


def taxonomy_yaml(made_mix: Mix) -> str:
    import yaml

    table = made_mix.taxonomy.to_dict() | ({"policy": made_mix.policy} if made_mix.policy else {})
    return yaml.safe_dump(table, sort_keys=False, allow_unicode=True, width=110)


def _taken(made: MixPlan) -> list[_Taken]:
    specs = {one.spec.name: one.spec for one in made.scans}
    ids: Counter[str] = Counter()
    taken = []
    for candidate, row in mix.taken_rows(made):
        name = f"{candidate.source}/{row.id}"
        ids[name] += 1
        unique = name if ids[name] == 1 else f"{name}#{ids[name]}"  # LLaVA's data use some ids twice
        taken.append(_Taken(candidate, row, _turns(made.mix, specs[candidate.source], candidate, row), unique))
    return taken


def _turns(made_mix: Mix, spec: SourceSpec, candidate: Candidate, row: SourceRow) -> tuple[Turn, ...]:
    """The conversation as it stands, or with an answer of ours, or with a question and an answer of ours."""
    if row.has_answer and spec.answers == "source":
        return row.turns
    said = mix.answer_of(made_mix, row, spec, candidate.label) or answers.HEAD_ONLY
    if row.turns:
        return (*_first_question(row.turns), ("gpt", said))
    question = answers.question(spec.question, f"{made_mix.seed}/question/{spec.name}/{row.id}")
    return asked(question, said, len(row.images))


def _first_question(turns: Sequence[Turn]) -> Sequence[Turn]:
    """Up to the first question: those after it lean on answers that are not taken."""
    asked_at = next((index for index, (speaker, _) in enumerate(turns) if speaker == "human"), len(turns) - 1)
    return [turn for turn in turns[: asked_at + 1] if turn[0] != "gpt"]


def _refuse_leaks(made_mix: Mix, images: Sequence[ImageFile], more: Collection[ImageFile] = ()) -> Raw:
    """How many held-out images were compared with. MixError names images of the pool that are held out."""
    held = held_out_images(made_mix)
    everything = {image for found in held.values() for image in found} | set(more)
    leaks = list(HeldOut(everything).leaks(set(images))) if everything else []
    if leaks:
        named = ", ".join(map(str, leaks[: mix.NAMED]))
        raise MixError(
            f"{made_mix.file}: {len(leaks)} images of the training pool are held out: {named}; take their rows out "
            "of the sources, or do not report a score on that held-out set and remove it from `held_out`"
        )
    counts = {name: {"images": len(found)} for name, found in held.items()}
    return {spec.name: counts.get(spec.name) for spec in made_mix.held_out}


# images


def _store_images(taken: Iterable[_Taken], out: Path, copies_all: bool) -> dict[ImageFile, str]:
    """Image → the name that records call it."""
    sources = {image: one.candidate.source for one in reversed(list(taken)) for image in one.row.images}
    stored = [image for image in sources if image.member or copies_all]

    def store(pair: tuple[ImageFile, bytes]) -> tuple[ImageFile, str]:
        image, data = pair
        return image, _store(data, str(image), out, sources[image])

    names = {image: image.path.resolve().as_posix() for image in sources}
    return names | dict(in_threads(store, read_images(stored), "unpacking images", len(stored)))


def _store(data: bytes, name: str, out: Path, source: str) -> str:
    return packed_images.store(data, name, out / "images" / source).relative_to(out).as_posix()


# records


def _stage_rows(
    made: MixPlan, taken: Sequence[_Taken], names: Mapping[ImageFile, str], out: Path
) -> dict[str, list[Raw]]:
    """File → its records, each of them checked as training will check it."""
    raws = {(one.candidate.source, one.candidate.index): _raw(one, names) for one in taken}
    places = {(one.candidate.source, one.candidate.index): one.row.place for one in taken}
    for key, raw in raws.items():
        parse_record(raw, places[key], made.mix.taxonomy, out)
    stages: dict[str, list[Raw]] = {}
    for name, drawn in made.stages.items():
        stages[name] = [raws[one.source, one.index] for one in drawn if not one.is_head_only]
        silent = [raws[one.source, one.index] for one in drawn if one.is_head_only]
        stages |= {HEAD_ONLY: silent} if silent else {}
    return stages


def _raw(one: _Taken, names: Mapping[ImageFile, str]) -> Raw:
    images = [names[image] for image in one.row.images]
    label = one.candidate.label
    raw: Raw = {"id": one.id, "source": one.candidate.source}
    raw |= {"image": images[0] if len(images) == 1 else images} if images else {}
    raw |= {"safe_type": label.category} if label.category else {}
    raw |= {"safe_level": label.level} if label.level else {}
    return {**raw, "conversations": [{"from": speaker, "value": text} for speaker, text in one.turns]}


def _digests(out: Path, files: Mapping[str, Sequence[Raw]]) -> Raw:
    rows = {name: {"rows": len(records), "sha256": file_digest(out / name)} for name, records in files.items()}
    return {**rows, "taxonomy.yaml": {"sha256": file_digest(out / "taxonomy.yaml")}}


def _split_files(made_mix: Mix) -> Raw:
    files = {spec.split_file for spec in (*made_mix.sources, *made_mix.held_out) if spec.split_file is not None}
    return {file.name: file_digest(file) for file in sorted(files) if file.is_file()}
