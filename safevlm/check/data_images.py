"""The images of records: whether they can be read, what their labels say of each other, and what is held out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from safevlm.check.findings import Finding, outcome
from safevlm.check.other_files import YAML
from safevlm.check.survey import Offenders, Survey
from safevlm.data import mix_build, packed_images
from safevlm.data.conversations import image_refs
from safevlm.data.images import decode_image
from safevlm.data.mix_file import read_mix
from safevlm.data.record_rows import record_rows
from safevlm.data.records import (
    MissingImageError,
)
from safevlm.data.sources.fingerprints import HeldOut
from safevlm.data.sources.images import ImageIndex, image_files
from safevlm.data.sources.row import ImageFile
from safevlm.data.threads import in_threads


@dataclass(frozen=True)
class _Seen:
    path: str
    digest: bytes = b""
    error: str = ""
    held_out: ImageFile | None = None


def image_findings(survey: Survey, against: Sequence[Path]) -> list[Finding]:
    """Unreadable images, contradicting labels, doubles, and, if asked, images that are held out."""
    held = outcome(lambda: HeldOut(held_out_images(against))) if against else None
    if isinstance(held, Exception):
        return [Finding(False, f"nothing was compared: {held}"), *image_findings(survey, ())]
    unreadable, leaks, several = Offenders(), Offenders(), Offenders()
    first: dict[bytes, str] = {}
    for seen in in_threads(_check_with(held), survey.images, "checking images", len(survey.images)):
        if seen.error:
            unreadable.add(seen.error)
            continue
        if seen.held_out is not None:
            leaks.add(f"{seen.path} = {seen.held_out}")
        known = first.setdefault(seen.digest, seen.path)
        if known != seen.path:
            several.add(f"{seen.path} = {known}")
            survey.compare(survey.images[known], survey.images[seen.path], f"{seen.path} = {known}")
    findings = [
        unreadable.finding("all images can be read", len(survey.images)),
        survey.contradicted.finding("no image is harmless in one record and risky in another"),
        survey.relabelled.told("images with several levels or categories"),
        several.told("images that are the same file under several names"),
    ]
    if held is not None:
        title = f"no image is among the {len(held):,} held-out ones of {', '.join(map(str, against))}"
        findings.append(leaks.finding(title, len(survey.images)))
    return findings


def _check_with(held: HeldOut | None) -> Callable[[str], _Seen]:
    def check(path: str) -> _Seen:
        try:
            data = Path(path).read_bytes()
            decode_image(data, path)
        except (ValueError, OSError) as error:
            return _Seen(path, error=str(error))
        match = held.match(ImageFile(Path(path)), data) if held is not None else None
        return _Seen(path, hashlib.blake2b(data, digest_size=16).digest(), held_out=match)

    return check


def held_out_images(places: Iterable[Path]) -> set[ImageFile]:
    """Images of record files, image folders, zips, and of what a mix file holds out. An empty place is an error."""
    found: set[ImageFile] = set()
    for place in places:
        images = set(_images_of(place))
        if not images:
            raise ValueError(f"{place}: no images to compare with; name a record file, an image folder or a mix")
        found |= images
    return found


def _images_of(place: Path) -> Iterator[ImageFile]:
    if place.suffix in YAML:
        with TemporaryDirectory() as scratch:
            made = mix_build.without_writing(read_mix(place, place.parent), Path(scratch))
            yield from (image for found in mix_build.held_out_images(made).values() for image in found)
    elif place.is_dir():
        yield from map(ImageFile, image_files(place))
    elif place.suffix == ".zip":
        yield from ImageIndex([place])
    else:
        yield from _record_images(place)


def _record_images(file: Path) -> Iterator[ImageFile]:
    packed = packed_images.folder_of(file)
    for place, raw in record_rows(file):
        for ref in image_refs(raw) if isinstance(raw, dict) else ():
            path = file.parent / ref if isinstance(ref, str) else packed_images.store(ref, place, packed)
            if not path.is_file():
                raise MissingImageError(f"{place}: no such image file {path}; compare with the folder of the images")
            yield ImageFile(path)
