"""A source's own words → category and level: a table that a user edits, rule by rule, the first that fits wins.

    vlguard/*/political:                 {category: politics, level: may_refuse}
    rtvlm/celeb/Refuse to Answer:        {category: privacy, level: must_refuse}
    vlguard/safe/unsafe_instruction:     drop          # leave these rows out
    my_chat:                             unlabelled    # trains words, not the head

A pattern is `SOURCE/word/word`; `*` and `?` fit anything, missing words at the end fit all, case, `_` and `-` do not
matter. Rows that no rule fits keep the labels they carry (PSA's, ours); a row with neither is an error, not clean.

A rule may complete the label that a row carries, and translate one that the taxonomy does not have, but not say
something else, unless it has `relabel: true` (or the mix has, for all its rules). Otherwise a source of labelled
records (`Source.keeps_labels`) keeps its own, and any other source is refused. All of it is counted by rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final, Literal, NamedTuple

from safevlm.data.sources.row import SourceRow
from safevlm.taxonomy import CLEAN, SAFE, Taxonomy, contradiction

DROP = "drop"
UNLABELLED = "unlabelled"
KEPT: Final = "kept"
OVERRULED: Final = "overruled"
REFUSED: Final = "refused"
OwnLabel = Literal["", "kept", "overruled", "refused"]
"""What became of a row's own label where a rule says something else; refused: the mix must not go on."""


class Label(NamedTuple):
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
    name: str = ""
    """As the mix has it."""
    relabel: bool = False
    """It goes before the label that a row carries itself."""

    def fits(self, words: tuple[str, ...]) -> bool:
        pairs = zip(self.pattern, words, strict=False)
        return len(words) >= len(self.pattern) and all(fnmatchcase(word, part) for part, word in pairs)


@dataclass(frozen=True)
class Ruling:
    """What becomes of a row's label, and why."""

    label: Label | None
    """None: drop."""
    rule: str = ""
    """The rule that fits; empty: none does."""
    own: OwnLabel = ""


class LabelTable:
    """The rules, and a memory of what they said."""

    def __init__(self, rules: tuple[LabelRule, ...], taxonomy: Taxonomy, relabel: bool = False) -> None:
        self._rules = rules
        self._taxonomy = taxonomy
        self._relabel = relabel
        self._known: dict[tuple[str | bool | None, ...], Ruling] = {}

    def ruling(self, source: str, row: SourceRow, keeps: bool = False) -> Ruling:
        """A row's label. `keeps`: the source's own labels go before the rules that would say something else.

        LookupError: no rule fits, and the row has no label of its own. ValueError: its own label is unknown, or
        contradicts itself.
        """
        key = (row.safe_type, row.safe_level, keeps, source, *row.words)
        if key not in self._known:
            self._known[key] = self._find(source, row, keeps)
        return self._known[key]

    def label(self, source: str, row: SourceRow) -> Label | None:
        """The same, the label alone."""
        return self.ruling(source, row).label

    def _find(self, source: str, row: SourceRow, keeps: bool) -> Ruling:
        words = tuple(map(_plain, (source, *row.words)))
        rule = next((rule for rule in self._rules if rule.fits(words)), None)
        if rule is None:
            if row.safe_type is None and row.safe_level is None:
                raise LookupError("/".join((source, *row.words)))
            return Ruling(self._own(row))
        if rule.label is None or not self._differs(rule.label, row):
            return Ruling(rule.label, rule.name)
        if rule.relabel or self._relabel:
            return Ruling(rule.label, rule.name, OVERRULED)
        return Ruling(self._own(row), rule.name, KEPT) if keeps else Ruling(rule.label, rule.name, REFUSED)

    def _differs(self, label: Label, row: SourceRow) -> bool:
        """Whether the row's own label says something else. One that the taxonomy does not know says nothing here."""
        own = (
            _named_if_known(row.safe_type, self._taxonomy.category_names),
            _named_if_known(row.safe_level, self._taxonomy.level_names),
        )
        pairs = zip(own, (label.category, label.level), strict=True)
        return any(mine is not None and mine != told for mine, told in pairs)

    def _own(self, row: SourceRow) -> Label:
        categories, levels = self._taxonomy.category_names, self._taxonomy.level_names
        category = _named(row.safe_type, categories, "safe_type", row.place)
        level = _named(row.safe_level, levels, "safe_level", row.place)
        label = Label(category or (CLEAN if level == SAFE else None), level)
        wrong = contradiction(label.category, label.level)
        if wrong:
            raise ValueError(f"{row.place}: {wrong}; mend it, or translate it under `labels` with `relabel: true`")
        return label


def read_labels(table: Mapping[str, Any], taxonomy: Taxonomy, where: str, relabel: bool = False) -> LabelTable:
    """The table of a mix, checked against the taxonomy. ValueError names the rule."""
    rules = tuple(_rule(str(name), value, taxonomy, where) for name, value in table.items())
    return LabelTable(rules, taxonomy, relabel)


def _rule(pattern: str, value: Any, taxonomy: Taxonomy, where: str) -> LabelRule:
    words = tuple(map(_plain, pattern.split("/")))
    if value in (DROP, UNLABELLED):
        return LabelRule(words, None if value == DROP else Label(), pattern)
    place = f"{where}: labels: {pattern}"
    if not isinstance(value, dict) or set(value) - {"relabel"} != {"category", "level"}:
        raise ValueError(f"{place}: {value!r} is neither {{category: …, level: …}} nor {DROP} nor {UNLABELLED}")
    relabel = value.get("relabel", False)
    if not isinstance(relabel, bool):
        raise ValueError(f"{place}: relabel: {relabel!r} is neither true nor false")
    try:
        taxonomy.category_id(value["category"])
        taxonomy.level_id(value["level"])
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    label = Label(_name(value["category"], taxonomy.category_names), _name(value["level"], taxonomy.level_names))
    wrong = contradiction(label.category, label.level)
    if wrong:
        raise ValueError(f"{place}: {wrong}")
    return LabelRule(words, label, pattern, relabel)


def _name(label: int | str, names: list[str]) -> str:
    return names[label] if isinstance(label, int) else label


def _named(label: str | None, names: list[str], field: str, place: str) -> str | None:
    """A label by name; ids come as texts of digits."""
    if label is not None and label.isdecimal() and int(label) < len(names):
        return names[int(label)]
    if label is not None and label not in names:
        raise ValueError(f"{place}: unknown {field} {label!r}; one of {names}, or translate it under `labels`")
    return label


def _named_if_known(label: str | None, names: list[str]) -> str | None:
    try:
        return _named(label, names, "", "")
    except ValueError:
        return None


def _plain(word: str) -> str:
    return word.strip().casefold().replace("_", " ").replace("-", " ")
