"""Writes a mix: what `safevlm.data.mix` planned, as files that training reads.

    OUT/stage1.jsonl, stage2.jsonl     records (LLaVA's layout with `safe_type`, `safe_level`, `source`)
    OUT/head_only.jsonl                stage 1's images without an answer, if allowed; for `loss.lm: 0` only
    OUT/images/SOURCE/…                images out of zips and parquet (`images: copy`: all), named by content
    OUT/taxonomy.yaml                  for `model.taxonomy`: labels mean what the head learns
    OUT/rtvlm_split.json               which rows are held out, for the evaluation
    OUT/mix.json                       seed, what was asked, found and taken, digests

Images that are files stay where they are, and records name them by their absolute path. Nothing depends on the
clock or on OUT: the same YAML, seed and data give the same bytes. Rows pass through in blocks, so that a million need
hardly more memory than some thousands; record files get their names last, whole, when every row of them is right.
"""

from __future__ import annotations

import functools
import json
import os
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from json.encoder import encode_basestring as _quoted
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from safevlm.data import answers, mix, packed_images, used_folder
from safevlm.data.atomic_write import atomic_file, write_text
from safevlm.data.labels import Label
from safevlm.data.mix import MixPlan
from safevlm.data.mix_file import STAGES, Mix, MixError, read_mix
from safevlm.data.mix_report import report_of
from safevlm.data.records import parse_record
from safevlm.data.sources import read_source
from safevlm.data.sources.fingerprints import HeldOut, Leak, bytes_digest, file_digest
from safevlm.data.sources.images import read_images
from safevlm.data.sources.row import IMAGE, ImageFile, SourceRow, SourceSpec, Turn, asked
from safevlm.data.threads import in_threads

REPORT = "mix.json"
HEAD_ONLY = "head_only"
RECORD_FILES = tuple(f"{name}.jsonl" for name in (*STAGES, HEAD_ONLY))

MADE_OF = ("mix_sha256", "seed", "taxonomy", "sources", "absent", "stages")
"""Keys of the report that a mix of the same folder must share."""

ROWS_AT_ONCE = 4_096
"""Rows of a mix that are in memory with their texts."""
IMAGES_AT_ONCE = 65_536
"""Images that are compared at once; an archive is opened once for all of them."""

BUFFER = 1 << 20
"""Bytes that are written at once."""

Raw = dict[str, Any]


class _Taken(NamedTuple):
    """A row of the pool with what it will say."""

    number: int
    """In the pool."""
    source: str
    label: Label
    row: SourceRow
    turns: tuple[Turn, ...]
    id: str


def build(file: Path, out: Path, *, seed: int | None = None, root: Path | None = None) -> Raw:
    """Makes a mix; returns what it wrote into `OUT/mix.json`. MixError before anything is written but a split file."""
    made_mix = read_mix(file, out, seed, root)
    made = mix.plan(made_mix)
    compared = compare(made)
    report = report_of(made)
    used_folder.refuse_other_work(out / REPORT, {name: report[name] for name in MADE_OF})
    out.mkdir(parents=True, exist_ok=True)
    rows = _rows_of_files(made)
    with ExitStack() as files:
        opened = {name: files.enter_context(_written_at_last(out / name)) for name in rows}
        for number, line in _lines(made, out):
            for name, is_in in rows.items():
                if is_in[number]:
                    opened[name].write(line)
        write_text(out / "taxonomy.yaml", taxonomy_yaml(made_mix))
        for name in set(RECORD_FILES) - set(rows):
            (out / name).unlink(missing_ok=True)  # of an earlier mix
    report |= {"held_out": compared, "files": _digests(out, rows), "splits": _split_files(made_mix)}
    write_text(out / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return report


def check(file: Path, out: Path, *, seed: int | None = None, root: Path | None = None) -> Raw:
    """The same without writing anything: what would be taken, or why not."""
    with TemporaryDirectory() as scratch:
        made = mix.plan(without_writing(read_mix(file, out, seed, root), Path(scratch)))
        return {**report_of(made), "held_out": compare(made)}


def compare(made: MixPlan, more: Collection[ImageFile] = ()) -> Raw:
    """Refuses a pool that shares images with what is held out; else, how many were compared with."""
    return _refuse_leaks(made.mix, (image for _, row in mix.taken_rows(made) for image in row.images), more)


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


def _taken(made: MixPlan) -> Iterator[_Taken]:
    twice = _ids_twice(made)
    ids: Counter[str] = Counter()
    pool = made.pool.rows
    sources, labels, hashes = pool["source"], pool["label"], pool["id"]
    for number, row in mix.taken_rows(made):
        source, label = sources[number], made.pool.labels[labels[number]]
        spec = made.scans[source].spec
        name = f"{spec.name}/{row.id}"
        if twice[source] and int(hashes[number]) in twice[source]:  # LLaVA's data use some ids twice
            ids[name] += 1
            name += f"#{ids[name]}" if ids[name] > 1 else ""
        yield _Taken(number, spec.name, label, row, _turns(made.mix, spec, label, row), name)


def _ids_twice(made: MixPlan) -> list[set[int]]:
    """Of each source, hashes of ids that several rows of the pool may share."""
    pool = made.pool.rows
    found = []
    for source in range(len(made.scans)):
        hashes, counts = np.unique(pool["id"][pool["source"] == source], return_counts=True)
        found.append(set(hashes[counts > 1].tolist()))
    return found


def _turns(made_mix: Mix, spec: SourceSpec, label: Label, row: SourceRow) -> tuple[Turn, ...]:
    """The conversation as it stands, or with an answer of ours, or with a question and an answer of ours."""
    if row.has_answer and spec.answers == "source":
        return row.turns
    said = mix.answer_of(made_mix, row, spec, label) or answers.HEAD_ONLY
    if row.turns:
        return (*_first_question(row.turns), ("gpt", said))
    question = answers.question(spec.question, f"{made_mix.seed}/question/{spec.name}/{row.id}")
    return asked(question, said, len(row.images))


def _first_question(turns: Sequence[Turn]) -> Sequence[Turn]:
    """Up to the first question: those after it lean on answers that are not taken."""
    asked_at = next((index for index, (speaker, _) in enumerate(turns) if speaker == "human"), len(turns) - 1)
    return [turn for turn in turns[: asked_at + 1] if turn[0] != "gpt"]


def _refuse_leaks(made_mix: Mix, images: Iterable[ImageFile], more: Collection[ImageFile] = ()) -> Raw:
    """How many held-out images were compared with. MixError names images of the pool that are held out."""
    held = held_out_images(made_mix)
    everything = {image for found in held.values() for image in found} | set(more)
    leaks = _leaks(HeldOut(everything), images) if everything else []
    if leaks:
        named = ", ".join(map(str, leaks[: mix.NAMED]))
        raise MixError(
            f"{made_mix.file}: {len(leaks)} images of the training pool are held out: {named}; take their rows out "
            "of the sources, or do not report a score on that held-out set and remove it from `held_out`"
        )
    counts = {name: {"images": len(found)} for name, found in held.items()}
    return {spec.name: counts.get(spec.name) for spec in made_mix.held_out}


def _leaks(held_out: HeldOut, images: Iterable[ImageFile]) -> list[Leak]:
    """One of each image that is held out, sorted by file."""
    left = iter(images)
    found: dict[ImageFile, Leak] = {}
    while block := set(islice(left, IMAGES_AT_ONCE)):
        found |= {leak.image: leak for leak in held_out.leaks(block)}
    return sorted(found.values(), key=lambda leak: (leak.image.path, leak.image.member))


# images


class _ImageNames:
    """What records call the images; those of archives, or all, are copied on the way."""

    def __init__(self, out: Path, copies_all: bool) -> None:
        self._out, self._copies_all = out, copies_all
        self._first: list[tuple[str, NDArray[Any]]] = []
        self._source, self._now = "", array("q")

    def of(self, taken: Iterable[_Taken]) -> dict[ImageFile, str]:
        """Image → name."""
        names: dict[ImageFile, str] = {}
        sources: dict[ImageFile, str] = {}
        for one in taken:
            for image in one.row.images:
                if image in names or image in sources:
                    continue
                if image.member or self._copies_all:
                    sources[image] = self._first_source(image, one.source)
                else:
                    names[image] = _real_path(image.file)

        def store(pair: tuple[ImageFile, bytes]) -> tuple[ImageFile, str]:
            image, data = pair
            place = packed_images.store(data, str(image), self._out / "images" / sources[image])
            return image, place.relative_to(self._out).as_posix()

        if sources:
            names |= dict(in_threads(store, read_images(sources), "unpacking images", len(sources)))
        return names

    def _first_source(self, image: ImageFile, source: str) -> str:
        """The source that an image was first taken from, which come one after the other; it lies in that one's folder.

        Of an image 8 bytes are remembered.
        """
        if source != self._source:
            self._first.append((self._source, np.unique(np.array(self._now, "i8"))))
            self._source, self._now = source, array("q")
        key = hash(image)
        for earlier, keys in self._first:
            at = np.searchsorted(keys, key)
            if at < len(keys) and keys[at] == key:
                return earlier
        self._now.append(key)
        return source


def _real_path(file: str) -> str:
    """`Path.resolve`, for many files of a folder."""
    folder, name = os.path.split(file)
    name = os.path.join(_real_folder(folder), name)
    return os.path.realpath(name) if os.path.islink(name) else name


@functools.lru_cache(maxsize=1024)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


# records


def _rows_of_files(made: MixPlan) -> dict[str, NDArray[np.bool_]]:
    """File → which rows of the pool it holds."""
    is_silent = made.pool.rows["head_only"]
    files: dict[str, NDArray[np.bool_]] = {}
    for name, drawn in made.stages.items():
        is_in = np.zeros(len(made.pool), bool)
        is_in[drawn] = True
        files[f"{name}.jsonl"] = is_in & ~is_silent
        files |= {f"{HEAD_ONLY}.jsonl": is_in & is_silent} if (is_in & is_silent).any() else {}
    return files


@contextmanager
def _written_at_last(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its name only when the block ends well."""
    with atomic_file(path) as partial, partial.open("wb", BUFFER) as file:
        yield file


def _lines(made: MixPlan, out: Path) -> Iterator[tuple[int, bytes]]:
    """(number in the pool, record) of every row of the pool, each checked as training will check it."""
    names = _ImageNames(out, copies_all=made.mix.images == "copy")
    taken = _taken(made)
    while block := list(islice(taken, ROWS_AT_ONCE)):
        of_block = names.of(block)
        for one in block:
            line = _line(one, of_block)
            if not _is_usual(one):
                parse_record(json.loads(line), one.row.place, made.mix.taxonomy, out)
            yield one.number, line


def _is_usual(one: _Taken) -> bool:
    """Whether training finds nothing wrong; labels and images were looked at when the source was read."""
    slots = 0
    for speaker, text in one.turns:
        count = text.count(IMAGE)
        if count and speaker != "human":
            return False
        slots += count
    return slots == len(one.row.images) and mix.are_usual(one.turns)


def _line(one: _Taken, names: Mapping[ImageFile, str]) -> bytes:
    """A record as `json.dumps` with `ensure_ascii=False` writes it, in half the time; with its newline."""
    images = [_quoted(names[image]) for image in one.row.images]
    category, level = one.label
    told = f'{{"id": {_quoted(one.id)}, "source": {_quoted(one.source)}'
    if images:
        told += f', "image": {images[0]}' if len(images) == 1 else f', "image": [{", ".join(images)}]'
    if category:
        told += f', "safe_type": {_quoted(category)}'
    if level:
        told += f', "safe_level": {_quoted(level)}'
    said = ", ".join([f'{{"from": {_quoted(speaker)}, "value": {_quoted(text)}}}' for speaker, text in one.turns])
    return f'{told}, "conversations": [{said}]}}\n'.encode()


def _digests(out: Path, files: Mapping[str, NDArray[np.bool_]]) -> Raw:
    rows = {name: {"rows": int(is_in.sum()), "sha256": file_digest(out / name)} for name, is_in in files.items()}
    return {**rows, "taxonomy.yaml": {"sha256": file_digest(out / "taxonomy.yaml")}}


def _split_files(made_mix: Mix) -> Raw:
    files = {spec.split_file for spec in (*made_mix.sources, *made_mix.held_out) if spec.split_file is not None}
    return {file.name: file_digest(file) for file in sorted(files) if file.is_file()}
