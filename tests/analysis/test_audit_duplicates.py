"""Duplicates are found whatever was done to the file; different images are left apart."""

from __future__ import annotations

import io
import itertools
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from safevlm.analysis.audit import duplicates
from safevlm.analysis.audit.duplicates import DISTANCE, SHADES, Fingerprints
from safevlm.analysis.audit.fingerprint import THUMB_BYTES, fingerprint
from safevlm.miniature import drawing
from safevlm.miniature.world import Kind, Scene, sample_scene

SCENES = 200
DRAWN: tuple[Kind, ...] = ("benign", "lookalike", "harmful")


def _scenes(count: int, kinds: tuple[Kind, ...], seed: int = 11) -> list[Scene]:
    rng = random.Random(seed)
    return [sample_scene(rng, kinds[index % len(kinds)]) for index in range(count)]


def _jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    def encode(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file).convert("RGB")

    return encode


def _resized(scale: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.resize((round(image.width * scale), round(image.height * scale)))


def _prints(images: list[Image.Image], folder: Path) -> Fingerprints:
    prints = Fingerprints.room(len(images), folder)
    for row, image in enumerate(images):
        found = fingerprint(image)
        prints.readable[row] = True
        prints.bits[row] = found.bits
        prints.thumbs[row] = np.frombuffer(found.thumb, np.uint8)
        prints.digests[row] = (1, row)  # no two are the same pixel for pixel, unless a test says so
    return prints


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (_jpeg(90), 0.99),
        (_jpeg(75), 0.99),
        (_jpeg(50), 0.95),
        (_resized(0.5), 0.97),
        (_resized(1.5), 0.99),
        (_resized(2), 0.99),
        (lambda image: _jpeg(75)(_resized(0.75)(image)), 0.98),
    ],
    ids=["jpeg 90", "jpeg 75", "jpeg 50", "half", "one and a half", "twice", "smaller jpeg"],
)
def test_another_version_of_an_image_is_found(
    tmp_path: Path, change: Callable[[Image.Image], Image.Image], found: float
) -> None:
    originals = [drawing.draw(scene) for scene in _scenes(SCENES, (*DRAWN, "benign_word", "typographic"))]
    near = duplicates.group(_prints([*originals, *map(change, originals)], tmp_path)).near
    first, second = near[:SCENES], near[SCENES:]
    share = np.mean((first >= 0) & (first == second))
    assert share >= found, f"only {share:.1%} of the changed images are in their original's group"


def test_different_drawn_scenes_are_left_apart(tmp_path: Path) -> None:
    scenes = _scenes(1_500, DRAWN)
    near = duplicates.group(_prints([drawing.draw(scene) for scene in scenes], tmp_path)).near
    assert (near >= 0).sum() <= 4, f"{(near >= 0).sum()} of 1,500 different scenes are taken for doubles"


def test_exact_groups_start_at_their_first_image(tmp_path: Path) -> None:
    prints = _far_apart(6, tmp_path)
    prints.digests[[1, 4, 5]] = (7, 7)
    prints.digests[2] = (7, 8)  # half a digest in common is nothing
    groups = duplicates.group(prints)
    assert groups.exact.tolist() == [-1, 1, -1, -1, 1, 1]
    assert groups.near.tolist() == [-1, 1, -1, -1, 1, 1], "exact duplicates are near duplicates too"


def test_unreadable_images_are_nobodys_duplicates(tmp_path: Path) -> None:
    prints = _far_apart(4, tmp_path)
    prints.readable[:3] = False
    prints.digests[:3] = prints.bits[:3] = 0
    groups = duplicates.group(prints)
    assert groups.exact.tolist() == groups.near.tolist() == [-1] * 4


@pytest.mark.parametrize("flips", [0, 1, DISTANCE, DISTANCE + 1])
def test_bits_are_compared_up_to_the_distance_wherever_they_differ(tmp_path: Path, flips: int) -> None:
    rng = random.Random(flips)
    for _ in range(40):
        prints = _far_apart(2, tmp_path)
        prints.thumbs[:] = 100
        mask = sum(1 << bit for bit in rng.sample(range(64), flips))
        prints.bits[1] = int(prints.bits[0]) ^ mask
        assert (duplicates.group(prints).near.tolist() == [0, 0]) == (flips <= DISTANCE), f"{mask:064b}"


@pytest.mark.parametrize("cell", [0, THUMB_BYTES - 1])
def test_one_cell_of_another_shade_keeps_images_apart(tmp_path: Path, cell: int) -> None:
    prints = _far_apart(3, tmp_path)
    prints.bits[:] = prints.bits[0]
    prints.thumbs[:] = 100
    prints.thumbs[1, cell] = 100 + SHADES[cell]
    prints.thumbs[2, cell] = 100 - SHADES[cell] - 1
    assert duplicates.group(prints).near.tolist() == [0, 0, -1]


def test_groups_are_the_same_however_pairs_are_cut_into_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains, stars and cliques among 300 images, against a plain search of the whole graph."""
    generator = np.random.default_rng(3)
    prints = _far_apart(300, tmp_path)
    prints.thumbs[:] = 100
    prints.bits[:] = generator.integers(0, 2**6, 300, dtype=np.uint64) * np.uint64(0x1111_1111_1111_1111)
    expected = _all_with_all(prints)
    assert len(set(expected)) > 3
    for block, small in itertools.product((1 << 22, 2_000, 1), (0, 7, 256)):
        monkeypatch.setattr(duplicates, "BLOCK", block)
        monkeypatch.setattr(duplicates, "SMALL", small)
        assert duplicates.group(prints).near.tolist() == expected, f"blocks of {block}, small to {small}"


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 90), centers=st.integers(1, 6), flips=st.integers(0, 7))
def test_groups_are_those_of_comparing_all_with_all(seed: int, count: int, centers: int, flips: int) -> None:
    """Clusters of near and of equal fingerprints, equal digests, equal bits with other shades, unreadable ones."""
    generator = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        prints = Fingerprints.room(count, Path(folder))
    center = generator.integers(0, centers, count)
    prints.bits[:] = generator.choice(generator.integers(0, 2**64, 3, np.uint64), centers)[center]
    for _ in range(flips):
        where = generator.random(count) < 0.5
        prints.bits[where] ^= np.uint64(1) << generator.integers(0, 64, where.sum(), np.uint64)
    prints.thumbs[:] = generator.choice([100, 105, 150], (centers, THUMB_BYTES))[center]
    prints.thumbs[:] += generator.integers(0, generator.integers(1, 13), (count, THUMB_BYTES), np.uint8)
    prints.readable[:] = generator.random(count) < 0.9
    prints.digests[:] = np.arange(count)[:, None]
    twins = generator.integers(0, count, count // 2)  # equal fingerprints, other digests
    prints.bits[twins], prints.thumbs[twins] = prints.bits[0], prints.thumbs[0]
    copies, of = generator.integers(0, count, (2, count // 3))  # the same pixels, and so the same fingerprint
    prints.bits[copies], prints.thumbs[copies], prints.digests[copies] = (
        values[of] for values in (prints.bits.copy(), np.array(prints.thumbs), prints.digests.copy())
    )
    small = generator.choice([0, 5, 256])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "SMALL", small)
        assert duplicates.group(prints).near.tolist() == _all_with_all(prints)


def test_a_large_cluster_costs_few_comparisons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time would be a busy machine's; thumbnails compared are counted instead."""
    count = 6_000
    prints = _far_apart(count, tmp_path)
    generator = np.random.default_rng(1)
    prints.bits[:] = prints.bits[0] ^ (np.uint64(1) << generator.integers(0, 64, count, np.uint64))
    prints.thumbs[:] = generator.integers(98, 104, (count, THUMB_BYTES))
    compared = 0
    unite_near = duplicates._unite_near

    def counting(prints: Fingerprints, parents: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
        nonlocal compared
        compared += len(left)
        unite_near(prints, parents, left, right)

    monkeypatch.setattr(duplicates, "_unite_near", counting)
    assert set(duplicates.group(prints).near.tolist()) == {0}
    assert compared < 100 * count, f"{compared:,} pairs of {count * (count - 1) // 2:,}"


def _far_apart(count: int, folder: Path) -> Fingerprints:
    generator = np.random.default_rng(5)
    prints = Fingerprints.room(count, folder)
    prints.readable[:] = True
    prints.digests[:] = generator.integers(0, 2**63, (count, 2))
    prints.bits[:] = generator.integers(0, 2**63, count)
    prints.thumbs[:] = generator.integers(0, 255, (count, THUMB_BYTES))
    return prints


def _all_with_all(prints: Fingerprints) -> list[int]:
    """The definition, pair by pair, and a search of the whole graph."""
    shades = np.abs(prints.thumbs[:, None].astype(int) - prints.thumbs[None])
    near = (np.bitwise_count(prints.bits[:, None] ^ prints.bits[None]) <= DISTANCE) & (shades <= SHADES).all(2)
    equal = (prints.digests[:, None] == prints.digests[None]).all(2)
    close = (near | equal) & prints.readable[:, None] & prints.readable[None]
    first = [-1] * len(close)
    for start in range(len(close)):
        if first[start] >= 0:
            continue
        reached, frontier = {start}, {start}
        while frontier:
            frontier = {int(j) for i in frontier for j in np.flatnonzero(close[i])} - reached
            reached |= frontier
        for one in reached:
            first[one] = start if len(reached) > 1 else -1
    return first
