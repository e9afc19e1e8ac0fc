"""What a risk is called: one table of categories, one of levels.

Ids follow SafeVLM (arXiv 2405.13581, README of the release): categories 0-6, levels 0-3. A category's `topic` and a
level's `stance` are all that the mixer's hints are made of (`safevlm.defenses.prompts`), so a taxonomy of one's own
brings its hints along. The wording is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safevlm.files import check_template, read_yaml

CLEAN = "clean"
SAFE = "safe"


@dataclass(frozen=True)
class Category:
    name: str
    topic: str = ""
    """A noun phrase that fits into a hint; empty for the clean category."""
    definition: str = ""


@dataclass(frozen=True)
class Level:
    name: str
    stance: str = ""
    """The hint of this level, with `{topic}` for the category's topic; empty for the safe level."""
    definition: str = ""


@dataclass(frozen=True)
class Taxonomy:
    """Categories and levels in the order of their ids."""

    categories: tuple[Category, ...]
    levels: tuple[Level, ...]

    def __post_init__(self) -> None:
        for kind, entries, neutral in (("category", self.categories, CLEAN), ("level", self.levels, SAFE)):
            names = [entry.name for entry in entries]
            if len(set(names)) != len(names):
                raise ValueError(f"taxonomy: a {kind} is named twice: {names}")
            if neutral not in names:
                raise ValueError(f"taxonomy: no {kind} is named {neutral!r}; the mixer needs one: {names}")
        for level in self.levels:
            try:
                check_template(level.stance, ["topic"])
            except ValueError as error:
                raise ValueError(f"taxonomy: stance of level {level.name!r}: {error}") from error
        if self.levels[0].name != SAFE:
            raise ValueError(f"taxonomy: the first level must be {SAFE!r}, since levels are ordered by severity")

    @property
    def category_names(self) -> list[str]:
        return [category.name for category in self.categories]

    @property
    def level_names(self) -> list[str]:
        return [level.name for level in self.levels]

    def category_id(self, label: int | str) -> int:
        """Id of a category given by id or name; ValueError names the choices."""
        return _id_of(label, self.category_names, "safe_type")

    def level_id(self, label: int | str) -> int:
        """Id of a level given by id or name; ValueError names the choices."""
        return _id_of(label, self.level_names, "safe_level")

    def names_of(self, category: int | None, level: int | None) -> tuple[str | None, str | None]:
        """Names of a category's and a level's id; None stays None."""
        return (
            None if category is None else self.category_names[category],
            None if level is None else self.level_names[level],
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "categories": [asdict(category) for category in self.categories],
            "levels": [asdict(level) for level in self.levels],
        }

    @classmethod
    def from_dict(cls, table: Mapping[str, Sequence[Mapping[str, str]]]) -> Taxonomy:
        """Reads `to_dict` back. ValueError: the table is not one; what a user wrote goes through `read_taxonomy`."""
        try:
            categories = tuple(Category(**entry) for entry in table["categories"])
            levels = tuple(Level(**entry) for entry in table["levels"])
        except (TypeError, KeyError) as error:
            raise ValueError(f"taxonomy: not tables of categories and levels: {error}") from error
        return cls(categories, levels)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Taxonomy:
        """The taxonomy of a file; a policy in it is left to `read_taxonomy`."""
        return read_taxonomy(path)[0]


def read_taxonomy(path: str | Path) -> tuple[Taxonomy, dict[str, Any] | None]:
    """A YAML file with `categories`, `levels` and, if it likes, `policy` → the taxonomy and the policy's table.

    The policy is checked where it acts (`safevlm.defenses.policy`), which knows what its words mean.
    """
    told = read_yaml(path, TaxonomyFile)
    try:
        return Taxonomy(told.categories, told.levels), None if told.policy is None else dict(told.policy)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@dataclass(frozen=True)
class TaxonomyFile:
    """The shape of such a YAML file."""

    categories: tuple[Category, ...]
    levels: tuple[Level, ...]
    policy: Mapping[str, Any] | None = None


def is_clean(category: str | None, level: str | None) -> bool:
    """Labelled as clean; or as safe, when there is a level only."""
    return level == SAFE if category is None else category == CLEAN


def contradiction(category: str | None, level: str | None) -> str:
    """Why a category and a level cannot both be true of one image; empty: they can, or one of them is not known."""
    if category is None or level is None or (category == CLEAN) == (level == SAFE):
        return ""
    return f"category {category!r} with level {level!r}; {CLEAN!r} and {SAFE!r} go together, and only together"


def _id_of(label: int | str, names: Sequence[str], field: str) -> int:
    if isinstance(label, str) and label in names:
        return names.index(label)
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(names):
        return label
    raise ValueError(f"unknown {field} {label!r}; one of {list(enumerate(names))}")


DEFAULT = Taxonomy(
    categories=(
        Category("politics", "politically sensitive content", "Political figures, unrest, propaganda."),
        Category("illegal", "illegal content", "Crime, sexual content, violence, attempts to break rules."),
        Category("insults", "insults or bullying", "Humiliation, harassment, hate against a person."),
        Category("fairness", "prejudice or discrimination", "Bias by origin, sex, faith, age or looks."),
        Category("privacy", "private information about people", "Personal data, private persons, documents."),
        Category("misleading", "false or misleading claims", "Rumours, false facts, unqualified expert advice."),
        Category(CLEAN, "", "Nothing of the above."),
    ),
    levels=(
        Level(SAFE, "", "Answer as asked."),
        Level(
            "careful",
            "Note: the image may touch on {topic}. Answer with care, leave such content out and point the user to "
            "something helpful.",
            "Answer, with care.",
        ),
        Level(
            "may_refuse",
            "Note: the image contains {topic}. Answer with care and leave such content out; you may also decline.",
            "Answer with care, or decline.",
        ),
        Level(
            "must_refuse",
            "Note: the image contains serious {topic}. You must decline: say briefly that you cannot help, and name "
            "the reason.",
            "Decline.",
        ),
    ),
)
