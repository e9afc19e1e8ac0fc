"""One row of the table of attacks, and an attack as it is asked for: `NAME`, `NAME:STRENGTH`, or several with `+`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from safevlm.evaluation.attacks.job import AttackJob
from safevlm.types import Sample

WHITE_BOX = frozenset({"gradient", "queries"})
"""Kinds of attacks that need the guarded model's insides."""


@dataclass(frozen=True)
class AttackRow:
    """What an attack is called, what its strength means, and how requests are changed by it."""

    name: str
    text: str
    """What its strength is, in a few words; of an attack without one, what it does."""
    make: Callable[[AttackJob], list[Sample]]
    """The job's samples, in order, each with a changed request of the same id."""
    strength: float = 0.0
    """Where none is given."""
    least: float = 0.0
    most: float = 0.0
    """Equal to `least`: the attack has no strength."""
    is_sized: bool = False
    """Its strength is the largest change of a value, in steps of 255, of each image on its own."""
    kind: str = "blind"
    """`blind`: changes images and knows nothing of the model; `words`: changes words; `gradient`: goes by the gradient
    of detectors and model; `queries`: asks them for their scores."""


@dataclass(frozen=True)
class Attack:
    row: AttackRow
    strength: float
    before: Attack | None = None
    """What is done first: this one then attacks what came of it."""

    def make(self, job: AttackJob) -> list[Sample]:
        """The job's samples, in order, each with a changed request of the same id."""
        if self.before is not None:
            earlier = replace(job, folder=job.folder / self.before.folder)
            job = replace(job, samples=self.before.make(earlier))
        return self.row.make(replace(job, strength=self.strength))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of it and of all before it."""
        return (*(self.before.kinds if self.before else ()), self.row.kind)

    @property
    def needs_white_box(self) -> bool:
        return not WHITE_BOX.isdisjoint(self.kinds)

    @property
    def size(self) -> float | None:
        """Largest change of a value, in steps of 255; None: that is not what it does."""
        return self.strength if self.row.is_sized and self.before is None else None

    def __str__(self) -> str:
        own = f"{self.row.name}:{self.strength:g}" if self.row.most > self.row.least else self.row.name
        return f"{self.before}+{own}" if self.before else own

    @property
    def folder(self) -> str:
        """Name of its run's folder."""
        return str(self).replace(":", "-")
