"""A folder of data: a published layout, record files, or images; told by what lies in it, and then checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from safevlm.check.findings import Finding, finding_of, outcome
from safevlm.check.records import check_records
from safevlm.check.survey import Offenders
from safevlm.data.conversations import is_record
from safevlm.data.images import decode_image
from safevlm.data.json_rows import RowError
from safevlm.data.record_rows import ENDINGS, record_rows
from safevlm.data.sources import SOURCES, read_source
from safevlm.data.sources.images import image_files, read_images
from safevlm.data.sources.row import ImageFile, SourceSpec
from safevlm.data.sources.source import Source
from safevlm.data.threads import in_threads
from safevlm.taxonomy import Taxonomy


def check_folder(folder: Path, taxonomy: Taxonomy, against: Sequence[Path], images: str) -> list[Finding]:
    """What a folder holds, and what is wrong with it. ValueError: nothing that could be trained on."""
    found = [(source, source.splits(folder)) for source in SOURCES.values() if source.splits]
    layouts = [(source, splits) for source, splits in found if splits]
    if layouts:
        return [finding for source, splits in layouts for finding in _check_source(folder, source, splits)]
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in ENDINGS and _has_records(path)]
    if files:
        named = Finding(True, f"{folder}: a folder of record files: {', '.join(path.name for path in files)}")
        return [named, *check_records(files, taxonomy, against, images)]
    pictures = image_files(folder)
    if pictures:
        return list(_check_images(folder, pictures))
    raise ValueError(
        f"{folder}: neither a record file nor a mix, nor a folder of either, of images, or of a published data set"
    )


def _has_records(path: Path) -> bool:
    try:
        return is_record(next(record_rows(path), ("", None))[1])
    except (RowError, ImportError):
        return True  # its fault is told when it is read


def _check_source(folder: Path, source: Source, splits: Sequence[str]) -> Iterator[Finding]:
    yield Finding(True, f"{folder}: {source.text} (kind {source.name} of a mix): {', '.join(splits)}")
    if source.caution:
        yield Finding(True, f"mind: {source.caution}")
    for split in splits:
        yield from _check_split(SourceSpec(name=f"{source.name} {split}", kind=source.name, path=folder, split=split))


def _check_split(spec: SourceSpec) -> Iterator[Finding]:
    rows = outcome(lambda: list(read_source(spec)))
    yield finding_of(rows, lambda found: f"{spec.name}: {len(found):,} rows")
    if isinstance(rows, Exception):
        return
    missing = Offenders()
    for row in rows:
        for name in row.missing:
            missing.add(f"{row.place}: {name}")
    yield missing.finding(f"{spec.name}: every image is in the download", len(rows))
    yield _readable(f"{spec.name}: all images can be read", {image for row in rows for image in row.images})


def _check_images(folder: Path, pictures: Sequence[Path]) -> Iterator[Finding]:
    places = Counter(path.relative_to(folder).parts[0] if path.parent != folder else "." for path in pictures)
    yield Finding(
        True,
        f"{folder}: {len(pictures):,} images and no records (kind image_folder of a mix)",
        "\n".join(f"{name}: {count:,}" for name, count in sorted(places.items())),
    )
    yield _readable("all images can be read", set(map(ImageFile, pictures)))


def _readable(title: str, images: set[ImageFile]) -> Finding:
    broken = Offenders()

    def fault(pair: tuple[ImageFile, bytes]) -> str:
        image, data = pair
        try:
            decode_image(data, str(image))
        except (ValueError, OSError) as error:
            return str(error)
        return ""

    for told in in_threads(fault, read_images(sorted(images, key=str)), "checking images", len(images)):
        if told:
            broken.add(told)
    return broken.finding(title, len(images))
