"""What SafeCLIP looks for: concepts, each a few noun phrases with a place in the taxonomy. A YAML file:

    concepts:
      - name: knife
        category: illegal            # of the taxonomy; clean: a neutral concept, of which there is at least one
        level: may_refuse
        templates: [a knife, the blade of a sharp knife]
        prior: 1                     # how common it is beside the others before anybody looks; 1 where none is given

Concepts may have different numbers of templates: what a concept weighs is its prior, not how often it is paraphrased.
`concepts.yaml` beside this file has the eight concepts of the paper (methods §2.2) in our own words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from safevlm.taxonomy import CLEAN, SAFE, Taxonomy

DEFAULT_CONCEPTS = Path(__file__).with_name("concepts.yaml")


@dataclass(frozen=True)
class Concept:
    name: str
    category: str
    level: str
    templates: tuple[str, ...]
    prior: float = 1.0

    @property
    def is_neutral(self) -> bool:
        return self.category == CLEAN

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_concepts(path: str | Path, taxonomy: Taxonomy) -> tuple[Concept, ...]:
    """The concepts of a file. ValueError names file, concept and key."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{file}: no such file of concepts; {DEFAULT_CONCEPTS} is one to start from")
    try:
        table = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: malformed YAML: {error}") from error
    if not isinstance(table, Mapping) or set(table) != {"concepts"}:
        raise ValueError(f"{file}: must hold the key `concepts` and no other")
    return concepts_from(table["concepts"], taxonomy, file)


def concepts_from(rows: Any, taxonomy: Taxonomy, where: object) -> tuple[Concept, ...]:
    """A list of concepts, checked against the taxonomy. ValueError names `where`, the concept and the key."""
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise ValueError(f"{where}: concepts: {rows!r} is not a list")
    concepts = tuple(_concept(row, taxonomy, f"{where}: concepts[{at}]") for at, row in enumerate(rows))
    names = [concept.name for concept in concepts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{where}: concepts: two are named {twice!r}")
    if len({concept.is_neutral for concept in concepts}) < 2:
        raise ValueError(f"{where}: concepts: there must be a neutral one (category {CLEAN!r}) and one that is not")
    return concepts


def _concept(row: Any, taxonomy: Taxonomy, where: str) -> Concept:
    known = [field.name for field in fields(Concept)]
    if not isinstance(row, Mapping) or not isinstance(row.get("name"), str) or not row["name"]:
        raise ValueError(f"{where}: {row!r} is not a table with a name; its keys are {known}")
    where = f"{where} {row['name']!r}"
    wrong = next((key for key in row if key not in known), None)
    missing = next((key for key in known if key not in row and key != "prior"), None)
    if wrong or missing:
        raise ValueError(f"{where}: {f'unknown key {wrong!r}' if wrong else f'no {missing}'}; its keys are {known}")
    _in_taxonomy(row, taxonomy, where)
    return Concept(row["name"], row["category"], row["level"], _templates(row["templates"], where), _prior(row, where))


def _in_taxonomy(row: Mapping[str, Any], taxonomy: Taxonomy, where: str) -> None:
    for key, names in (("category", taxonomy.category_names), ("level", taxonomy.level_names)):
        if row[key] not in names:
            raise ValueError(f"{where}: {key}: unknown {row[key]!r}; one of {names}")
    if (row["category"] == CLEAN) != (row["level"] == SAFE):
        raise ValueError(f"{where}: level: category {CLEAN!r} goes with level {SAFE!r}, and no other does")


def _templates(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError(f"{where}: templates: {value!r} is not a list of phrases")
    blank = next((each for each in value if not isinstance(each, str) or not each.strip()), None)
    if blank is not None:
        raise ValueError(f"{where}: templates: {blank!r} is not a phrase")
    return tuple(value)


def _prior(row: Mapping[str, Any], where: str) -> float:
    value = row.get("prior", 1.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{where}: prior: {value!r} is not a number above 0")
    return float(value)
