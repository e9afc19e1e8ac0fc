"""A source's own words → category and level: a table that a user edits, rule by rule, the first that fits wins.

    vlguard/*/political:                 {category: politics, level: may_refuse}
    rtvlm/celeb/Refuse to Answer:        {category: privacy, level: must_refuse}
    vlguard/safe/unsafe_instruction:     drop          # leave these rows out
    my_chat:                             unlabelled    # trains words, not the head

A pattern is `SOURCE/word/word`; `*` and `?` fit anything, missing words at the end fit all, case, `_` and `-` do not
matter. Rows that no rule fits keep the labels they carry (PSA's, ours); a row with neither is an error, not clean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from safevlm.data.sources.row import SourceRow
from safevlm.taxonomy import CLEAN, SAFE, Taxonomy

DROP = "drop"
UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class Label:
    category: str | None = None
    level: str | None = None

    @property
    def bucket(self) -> str:
        """Under which name the mix counts it."""
        return self.category or UNLABELLED


@dataclass(frozen=True)
class LabelRule:
    pattern: tuple[str, ...]
    label: Label | None
    """None: drop."""

    def fits(self, words: tuple[str, ...]) -> bool:
        pairs = zip(self.pattern, words, strict=False)
        return len(words) >= len(self.pattern) and all(fnmatchcase(word, part) for part, word in pairs)


class LabelTable:
    """The rules, and a memory of what they said."""

    def __init__(self, rules: tuple[LabelRule, ...], taxonomy: Taxonomy) -> None:
        self._rules = rules
        self._taxonomy = taxonomy
        self._known: dict[tuple[str | None, ...], Label | None] = {}

    def label(self, source: str, row: SourceRow) -> Label | None:
        """A row's label, None to drop it. LookupError: no rule fits, and the row has no label of its own."""
        key = (row.safe_type, row.safe_level, source, *row.words)
        if key not in self._known:
            self._known[key] = self._find(source, row)
        return self._known[key]

    def _find(self, source: str, row: SourceRow) -> Label | None:
        words = tuple(map(_plain, (source, *row.words)))
        for rule in self._rules:
            if rule.fits(words):
                return rule.label
        if row.safe_type is None and row.safe_level is None:
            raise LookupError("/".join((source, *row.words)))
        return self._own(row)

    def _own(self, row: SourceRow) -> Label:
        categories, levels = self._taxonomy.category_names, self._taxonomy.level_names
        category = _named(row.safe_type, categories, "safe_type", row.place)
        level = _named(row.safe_level, levels, "safe_level", row.place)
        return Label(category or (CLEAN if level == SAFE else None), level)


def read_labels(table: Mapping[str, Any], taxonomy: Taxonomy, where: str) -> LabelTable:
    """The table of a mix, checked against the taxonomy. ValueError names the rule."""
    return LabelTable(tuple(_rule(name, value, taxonomy, where) for name, value in table.items()), taxonomy)


def _rule(pattern: str, value: Any, taxonomy: Taxonomy, where: str) -> LabelRule:
    words = tuple(map(_plain, str(pattern).split("/")))
    if value in (DROP, UNLABELLED):
        return LabelRule(words, None if value == DROP else Label())
    place = f"{where}: labels: {pattern}"
    if not isinstance(value, dict) or set(value) != {"category", "level"}:
        raise ValueError(f"{place}: {value!r} is neither {{category: …, level: …}} nor {DROP} nor {UNLABELLED}")
    try:
        taxonomy.category_id(value["category"])
        taxonomy.level_id(value["level"])
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    label = Label(_name(value["category"], taxonomy.category_names), _name(value["level"], taxonomy.level_names))
    if label.category == CLEAN and label.level != SAFE:
        raise ValueError(f"{place}: category {CLEAN!r} goes with level {SAFE!r} only, not {label.level!r}")
    return LabelRule(words, label)


def _name(label: int | str, names: list[str]) -> str:
    return names[label] if isinstance(label, int) else label


def _named(label: str | None, names: list[str], field: str, place: str) -> str | None:
    """A label by name; ids come as texts of digits."""
    if label is not None and label.isdecimal() and int(label) < len(names):
        return names[int(label)]
    if label is not None and label not in names:
        raise ValueError(f"{place}: unknown {field} {label!r}; one of {names}, or translate it under `labels`")
    return label


def _plain(word: str) -> str:
    return word.strip().casefold().replace("_", " ").replace("-", " ")
