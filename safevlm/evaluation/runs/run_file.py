"""`run.json`: what was asked of which model, and the refusal to mix two runs in one folder.

Paths alone do not tell two runs apart, since a model trained again lies where the old one lay; digests of the
questions, the weights and the policy do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Required

from typing_extensions import TypedDict

from safevlm.data import made_by
from safevlm.evaluation.runs import earlier
from safevlm.evaluation.runs.files import read_json, write_json
from safevlm.types import Sample

FILE = "run.json"
PATH_FIELDS = ("data", "model", "policy", "base")
SAME_FIELDS = (
    "suite",
    "defense",
    "max_new_tokens",
    "temperature",
    "seed",
    "groups",
    "perturb",
    "attack",
    "effort",
    *PATH_FIELDS,
)
PLACES = "groups_and_images"
"""Key of a digest that runs written before it do not have; they are told apart by their other digests alone."""
PACKAGES = ("torch", "transformers")
DEFENSE_FILES = ("*.safetensors", "*.yaml", "preprocessor_config.json")


class RunRecord(TypedDict, total=False):
    """What is read of a `run.json`; there may be more."""

    suite: Required[str]
    model: Required[str]
    defense: Required[str]
    n: int
    data: str | None
    policy: str | None
    base: str | None
    perturb: str | None
    attack: str
    effort: dict[str, int]
    dtype: str | None
    command: str | None
    started: str
    finished: str | None
    max_new_tokens: int
    groups: list[str] | None
    digests: dict[str, str]
    versions: dict[str, str]
    resumed: list[str]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on, without importing them."""
    return made_by.versions(PACKAGES)


def digests(
    samples: Sequence[Sample],
    model: str,
    policy: str | None,
    defense: str = "none",
    base: str | None = None,
    *,
    data: Path | None = None,
    reads_images: bool = False,
) -> dict[str, str]:
    """Digests of what a path cannot vouch for; empty for a model that is no folder here.

    `data`: the folder that images are named from. `reads_images`: the content of images counts too; for questions of
    the user's own, whose images may be exchanged under their names.
    """
    files = _defense_files(defense, [Path(place) / made_by.DEFENSES for place in (model, base) if place])
    return {
        "samples": made_by.digest_of_blocks(repr(_content(sample)).encode() for sample in samples),
        PLACES: made_by.digest_of_blocks(repr(place).encode() for place in _places(samples, data, reads_images)),
        "model": _digest_of_weights(tuple(map(_stamped, made_by.weight_files(Path(model))))),
        "policy": made_by.digest_of_files([Path(policy)] if policy and Path(policy).is_file() else []),
    } | ({"defense": made_by.digest_of_files(files)} if files else {})


def _stamped(file: Path) -> tuple[Path, int, int]:
    found = file.stat()
    return file, found.st_size, found.st_mtime_ns


@lru_cache(maxsize=4)  # many runs of one process ask one model, of which there may be many gigabytes
def _digest_of_weights(stamped: tuple[tuple[Path, int, int], ...]) -> str:
    return made_by.digest_of_files(file for file, _, _ in stamped)


def check_same_run(path: Path, record: dict[str, Any]) -> None:
    """ValueError when the folder's replies come from another run; it names the fields and the fix."""
    old, differing = read_record(path), []
    for name in SAME_FIELDS:
        if not _is_same(name, old.get(name), record.get(name)):
            differing.append(f"{name} {old.get(name)!r}, not {record.get(name)!r}")
    known = old.get("digests", {})
    for name, digest in record["digests"].items():
        is_younger = name == PLACES and name not in known
        if known.get(name) != digest and not is_younger:
            differing.append(f"{name} (its content) {known.get(name)!r}, not {digest!r}")
    if differing:
        raise ValueError(_refusal(path, differing))


def read(out: Path) -> dict[str, Any]:
    """A run's `run.json`; empty when there is none yet."""
    return read_record(out / FILE) if (out / FILE).exists() else {}


def read_record(path: Path) -> dict[str, Any]:
    """A `run.json`. ValueError: it does not say of what it is the record."""
    return read_json(path, RunRecord)


def begin(out: Path, record: dict[str, Any], rank: int = 0, *, is_going_on: bool = True) -> None:
    """Write `run.json`, or note in the one that is there that the run went on.

    Of several processes the first one writes it; only rank 0 notes, so that one start is noted once.
    """
    path = out / FILE
    if not path.exists():
        write_json(path, record)
        return
    check_same_run(path, record)
    old = read_record(path)
    if "dtype" in old and old["dtype"] != record.get("dtype"):
        raise ValueError(_refusal(path, [f"dtype {old['dtype']!r}, not {record.get('dtype')!r}"]))
    if rank == 0 or old.get("n") != record["n"]:
        resumed = [*old.get("resumed", []), *([record["started"]] if rank == 0 and is_going_on else [])]
        write_json(
            path,
            record | {"started": old.get("started", record["started"])} | ({"resumed": resumed} if resumed else {}),
        )


def _refusal(path: Path, differing: Sequence[str]) -> str:
    return (
        f"{path}: the replies in this folder are of {'; of '.join(differing)}; "
        "choose another --out, or remove this folder"
    )


def _is_same(name: str, old: object, asked: object) -> bool:
    if name in PATH_FIELDS and isinstance(old, str) and isinstance(asked, str):
        return old == asked or Path(old).resolve() == Path(asked).resolve()
    return old == asked


def _content(sample: Sample) -> tuple[object, ...]:
    """What a sample asks and expects. Images by name, so that data may move."""
    images = [Path(str(image)).name for image in sample.request.images]
    return (
        sample.request.id,
        sample.request.text,
        images,
        sample.category,
        sample.level,
        earlier.hashed(sample.expected),
    )


def _places(samples: Sequence[Sample], data: Path | None, reads_images: bool) -> Iterator[tuple[object, ...]]:
    """(id, group, images) of each sample; images by their path below `data` and, where they are read, their digest."""
    content = lru_cache(maxsize=None)(lambda file: made_by.digest_of_files([file]) if reads_images else "")
    for sample in samples:
        files = [Path(str(image)) for image in sample.request.images]
        yield sample.request.id, sample.group, [(_below(data, file), content(file)) for file in files]


def _below(data: Path | None, file: Path) -> str:
    """The path from `data`, so that data may move; the bare name where the file lies elsewhere."""
    return file.relative_to(data).as_posix() if data is not None and file.is_relative_to(data) else file.name


def _defense_files(defense: str, folders: Sequence[Path]) -> list[Path]:
    """Files that a defense's name gives behind `=`, and the checkpoint's own where it may read them."""
    from safevlm.defenses.table import members  # late: whoever only reads a run needs no defense

    try:
        named = members(defense)
    except ValueError:  # whoever builds the defense says what is wrong with its name
        return []
    reads_folder = any(one.file is None and one.row.reads_folder for one in named)
    places = [one.file for one in named if one.file] + (list(folders) if reads_folder else [])
    return [file for place in places for file in ([place] if place.is_file() else made_by.below(place, DEFENSE_FILES))]
