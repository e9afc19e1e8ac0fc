"""One row of the table of sources: everything that a mix needs to know about one kind of download."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safevlm.data.sources.row import PublishedCount, Rows, SourceSpec


@dataclass(frozen=True)
class Source:
    """A published layout, or one of a user's own; a mix names it by `kind`."""

    name: str
    text: str
    """What it reads, in one line."""
    read: Callable[[SourceSpec], Rows]
    """Generator of `SourceRow`, always in the same order; returns the counts by part (`SourceTally.close`)."""
    files: Callable[[SourceSpec], list[Path]]
    """Annotation files, for digests; images are not among them."""
    licence: str
    """As the publisher states it; it stands in `mix.json`."""
    published: Mapping[str, PublishedCount] = field(default_factory=dict)
    """Rows that the publisher or a count of the published files tells, by part."""
    keeps_labels: bool = False
    """Its rows are records: labels that they carry go before a mix's rules, unless these say `relabel: true`."""
    splits: Callable[[Path], list[str]] | None = None
    """The splits that a folder holds, if it has this layout; None: the layout cannot be told from a folder."""
    caution: str = ""
    """What whoever mixes it must know; it stands in `mix.json`."""
