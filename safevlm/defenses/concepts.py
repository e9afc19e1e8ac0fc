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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safevlm.files import checked, read_yaml
from safevlm.taxonomy import CLEAN, SAFE, Taxonomy

DEFAULT_CONCEPTS = Path(__file__).with_name("concepts.yaml")


@dataclass(frozen=True)
class Concept:
    name: str
    category: str
    level: str
    templates: tuple[str, ...]
    prior: float = 1.0

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError("name: must not be empty")
        if not self.templates or not all(template.strip() for template in self.templates):
            raise ValueError(f"templates: {list(self.templates)} is not a list of phrases")
        if not 0 < self.prior < math.inf:
            raise ValueError(f"prior: {self.prior!r} is not a number above 0")

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
    return _checked(read_yaml(file, ConceptFile), taxonomy, file)


def concepts_from(rows: Any, taxonomy: Taxonomy, where: object) -> tuple[Concept, ...]:
    """A list of concepts, checked against the taxonomy. ValueError names `where`, the concept and the key."""
    return _checked(checked(ConceptFile, {"concepts": rows}, str(where)), taxonomy, where)


@dataclass(frozen=True)
class ConceptFile:
    """The shape of such a YAML file."""

    concepts: tuple[Concept, ...]


def _checked(told: ConceptFile, taxonomy: Taxonomy, where: object) -> tuple[Concept, ...]:
    names = [concept.name for concept in told.concepts]
    for at, concept in enumerate(told.concepts):
        _in_taxonomy(concept, taxonomy, f"{where}: concepts[{at}] {concept.name!r}")
        if names.count(concept.name) > 1:
            raise ValueError(f"{where}: concepts: two are named {concept.name!r}")
    if len({concept.is_neutral for concept in told.concepts}) < 2:
        raise ValueError(f"{where}: concepts: there must be a neutral one (category {CLEAN!r}) and one that is not")
    return told.concepts


def _in_taxonomy(concept: Concept, taxonomy: Taxonomy, where: str) -> None:
    for key, name, names in (
        ("category", concept.category, taxonomy.category_names),
        ("level", concept.level, taxonomy.level_names),
    ):
        if name not in names:
            raise ValueError(f"{where}: {key}: unknown {name!r}; one of {names}")
    if (concept.category == CLEAN) != (concept.level == SAFE):
        raise ValueError(f"{where}: level: category {CLEAN!r} goes with level {SAFE!r}, and no other does")
