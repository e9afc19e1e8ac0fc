"""Files that somebody may take for training records and that are something else: what they are, and what looks at them.

Told by their first row, or by the keys of a YAML. What can be read here is read; all else names the command that does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safevlm.check.findings import Finding
from safevlm.data.conversations import is_record
from safevlm.data.json_rows import RowError
from safevlm.data.record_rows import ENDINGS, record_rows
from safevlm.files import read_yaml
from safevlm.taxonomy import Taxonomy, read_taxonomy

YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class RowKind:
    """Rows that are no records, by keys that all of them have."""

    keys: frozenset[str]
    text: str


def _kind(keys: str, text: str) -> RowKind:
    return RowKind(frozenset(keys.split()), text)


ROW_KINDS = (
    _kind("suite request reply", "answers of an evaluation; `safevlm eval judge` scores them"),
    _kind("judge value label", "scores of an evaluation; `safevlm eval report` shows them"),
    _kind("pic_path input type", "published rows of security tensors; `safevlm pair` makes records of them"),
    _kind("instr-resp", "VLGuard's table; check its folder, or name it in a mix (kind vlguard)"),
    _kind("question chosen rejected", "SPA-VL's preferences; name them in a mix (kind spa_vl)"),
    _kind("prompt chosen rejected", "preferences; records need one answer: `conversations` or `messages`"),
    _kind("question category level", "labelled questions of an evaluation; `safevlm analyze head --data` reads them"),
    _kind("question id", "questions of a suite; `safevlm eval ask --suite` with a YAML beside them reads them"),
    _kind("image group", "images with their truth; `safevlm audit` is measured by them"),
    _kind("images_digest sources stages", "the report of a mix; check its folder"),
    _kind("mix sources stages", "the report of a mix; check its folder"),
    _kind("weight_map metadata", "the index of a model's weights; check its folder"),
)
TABLES = {
    ".csv": "a table (CSV); `safevlm eval ask --suite` reads suites'. Records are JSON, JSONL, parquet or Arrow",
    ".zip": "an archive; unpack it, or check the folder that it lies in",
    ".tar": "an archive; unpack it, or check the folder that it lies in",
    ".txt": "a text, for example a list for data.exclude. Records are JSON, JSONL, parquet or Arrow",
}


def other_file(path: Path, taxonomy: Taxonomy) -> Finding | None:
    """What a file is that holds no records and is no mix; None: it may hold records, or is one."""
    if path.suffix in YAML:
        return _of_yaml(path, taxonomy)
    if path.suffix == ".safetensors":
        return _read_as("a concept bank", path, lambda: _read_bank(path, taxonomy), "--defense safe-clip")
    if path.suffix.lower() in TABLES:
        return Finding(False, f"{path}: no training records: {TABLES[path.suffix.lower()]}")
    if path.suffix.lower() not in ENDINGS:
        return None
    try:
        first = next(record_rows(path), ("", None))[1]
    except (RowError, ImportError):
        return None  # whoever reads the records says what is wrong
    if not isinstance(first, Mapping) or is_record(first):
        return None
    kind = next((kind for kind in ROW_KINDS if kind.keys <= set(first)), None)
    text = kind.text if kind else f"rows of {sorted(map(str, first))}; a record needs `conversations` or `messages`"
    return Finding(False, f"{path}: no training records: {text}")


@dataclass(frozen=True)
class YamlKind:
    """A YAML of ours, by keys of which it must have all of `needs`, and no other than those and `may`."""

    name: str
    needs: frozenset[str]
    read: Callable[[Path, Taxonomy], object] | None
    use: str
    """What it is for; of one that is not read here, what reads it."""
    lists: bool | None = None
    """Whether its first needed key holds a list; None: either."""
    may: frozenset[str] = frozenset()

    def fits(self, table: Mapping[Any, Any]) -> bool:
        is_list = isinstance(table.get(min(self.needs)), list)
        return self.needs <= set(table) <= self.needs | self.may and self.lists in (None, is_list)


POLICY = frozenset(("levels", "categories", "thresholds", "hint", "place", "calibration"))
SUITE_MAY = "fields groups images max_new_tokens repeats temperature note source licence side"


def _yaml(name: str, needs: str, use: str, *, lists: bool | None = None, may: Iterable[str] = ()) -> YamlKind:
    return YamlKind(name, frozenset(needs.split()), READERS.get(name), use, lists, frozenset(may))


READERS: Mapping[str, Callable[[Path, Taxonomy], object]] = {
    "a taxonomy": lambda path, _: read_taxonomy(path),
    "a policy": lambda path, taxonomy: _read_policy(path, taxonomy),
}
TAXONOMY_USE = "model.taxonomy of a recipe, `taxonomy` of a mix"
YAML_KINDS = (
    _yaml("a taxonomy", "categories levels", TAXONOMY_USE, lists=True, may=("policy",)),
    *(_yaml("a policy", key, "--policy", lists=False, may=POLICY) for key in ("levels", "categories", "thresholds")),
    _yaml("concepts of a bank", "concepts", "safevlm embed"),
    _yaml("a suite of one's own", "name file judge", "safevlm eval ask --suite", may=SUITE_MAY.split()),
)


def is_other_yaml(path: Path) -> bool:
    """Whether a YAML is one of these, and neither recipe nor mix."""
    return _yaml_kind(path) is not None


def _of_yaml(path: Path, taxonomy: Taxonomy) -> Finding | None:
    kind = _yaml_kind(path)
    if kind is None:
        return None
    read = kind.read
    if read is None:
        return Finding(False, f"{path}: no training records: {kind.name}; `{kind.use}` reads it")
    return _read_as(kind.name, path, lambda: read(path, taxonomy), kind.use)


def _yaml_kind(path: Path) -> YamlKind | None:
    try:
        table = read_yaml(path)
    except (ValueError, OSError):
        return None  # read again as what it is taken for, which names the fault
    return next((kind for kind in YAML_KINDS if isinstance(table, Mapping) and kind.fits(table)), None)


def _read_as(what: str, path: Path, read: Callable[[], object], use: str) -> Finding:
    try:
        read()
    except (ValueError, OSError) as error:
        return Finding(False, str(error))
    return Finding(True, f"{path}: {what}, no training records; it can be read, for {use}")


def _read_policy(path: Path, taxonomy: Taxonomy) -> object:
    from safevlm.defenses.policy import read_policy

    return read_policy(path, taxonomy)


def _read_bank(path: Path, taxonomy: Taxonomy) -> object:
    from safevlm.defenses.bank import read_bank

    return read_bank(path, taxonomy)
