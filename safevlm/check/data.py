"""Whether data are fit to train on: record files, the YAML of a mix, or a mix that was made.

Records are read one at a time and images in threads, so a million records fit; what is kept of each is a few
numbers. Everything is counted, the first offenders are named. Trap: an image that several records share is no defect,
but one that is harmless in one of them and risky in another is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safevlm.check.findings import FAILURES, Finding
from safevlm.check.folders import check_folder
from safevlm.check.mixes import check_mix_file, check_mix_folder
from safevlm.check.other_files import YAML, other_file
from safevlm.check.records import check_records
from safevlm.data import mix_build
from safevlm.taxonomy import DEFAULT, Taxonomy, read_taxonomy


def check_data(
    path: Path, *, taxonomy: Path | None = None, against: Sequence[Path] = (), images: str = ""
) -> list[Finding]:
    """Everything that is wrong with data, and what they are made of. `against`: held-out data, compared by content."""
    path, against = Path(path), [Path(one) for one in against]
    try:
        known = _taxonomy(taxonomy)
        if path.is_dir() and (path / mix_build.REPORT).is_file():
            return check_mix_folder(path, taxonomy, against, images)
        if path.is_dir():
            return check_folder(path, known, against, images)
        told = other_file(path, known)
        if told is not None:
            return [told]
        if path.suffix in YAML:
            return check_mix_file(path, against)
        return check_records([path], known, against, images)
    except FAILURES as error:
        return [Finding(False, str(error))]


def _taxonomy(file: Path | None) -> Taxonomy:
    return read_taxonomy(file)[0] if file else DEFAULT
