"""`safevlm analyze tsne`: original against safety features in the plane, and beside the image what it cannot prove.

A t-SNE shows clusters where there are none and hides some that are there; distances in it mean nothing. So silhouette
and purity of the features themselves stand under every panel (`safevlm.analysis.separation`).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from safevlm.analysis import detection, figures, separation, summary
from safevlm.analysis.features import ORIGINAL, SPACES, extract
from safevlm.analysis.labelled_images import ImageSet, LabelledImage, SetsOptions, read_sets
from safevlm.defenses.policy import read_policy
from safevlm.intervals import Floats
from safevlm.taxonomy import Taxonomy
from safevlm.types import Verdict
from safevlm.usage import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COMPONENTS = 50
"""Dimensions that a PCA leaves for the t-SNE, as van der Maaten and Hinton (2008) did."""
FIELDS = ("category", "level")
COLUMNS = ("true category", "predicted category", "true level", "predicted level")
ROW = 2.2
"""Inches of a row of panels with the numbers under it."""


@dataclass(frozen=True)
class TsneOptions(SetsOptions):
    spaces: tuple[str, ...] = ("patches", "safety", "head")
    perplexity: float = 30.0
    iterations: int = 1000
    max_images: int = 2000


def run(options: TsneOptions) -> dict[str, Any]:
    """Features → planes, numbers, figure, `points.csv`, `summary.json`; the numbers."""
    _check_spaces(options.spaces)
    loaded = detection.load(options.model, options.device, options.base)
    detection.needs_head(loaded)
    config = loaded.safe_llava.config
    sets = read_sets(options.data, config.taxonomy, options.images)
    summary.refuse_other("tsne", options.out, loaded, sets, options.seed)
    named = drawn(sets, options.max_images, options.seed)
    images = [image for _, image in named]
    check_perplexity(options.perplexity, len(images))
    guard = detection.detector(loaded, "safety-head", read_policy(None, config.taxonomy, config.policy), sets)
    features = extract(loaded, guard, images, options.batch_size)
    spaces = {name: features.spaces[name] for name in options.spaces if name in features.spaces}
    if not spaces:
        raise UsageError(
            f"--spaces: this model has {', '.join(features.spaces)}, and none of those that were asked for"
        )
    numbers = separations(spaces, images, options.seed)
    planes = {
        name: plane(vectors, options.perplexity, options.iterations, options.seed) for name, vectors in spaces.items()
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_points(options.out / "points.csv", named, features.verdicts, planes)
    files = draw(options.out, planes, images, features.verdicts, numbers, config.taxonomy)
    result = {
        "spaces": {name: SPACES[name] for name in spaces},
        "n": len(images),
        "of": sum(len(one.images) for one in sets),
        "tsne": {"perplexity": options.perplexity, "iterations": options.iterations, "pca": COMPONENTS},
        "separation": numbers,
        "files": [*files, "points.csv"],
    }
    summary.write("tsne", options.out, loaded, sets, options.seed, result)
    _print(numbers)
    return result


def drawn(sets: Sequence[ImageSet], at_most: int, seed: int) -> list[tuple[str, LabelledImage]]:
    """All images with the name of their set, or so many of them at random, in their order."""
    named = [(one.name, image) for one in sets for image in one.images]
    if len(named) <= at_most:
        return named
    chosen = np.random.default_rng(seed).choice(len(named), size=at_most, replace=False)
    return [named[index] for index in sorted(chosen)]


def check_perplexity(perplexity: float, n: int) -> None:
    """A perplexity is a number of neighbours, and t-SNE looks at three times as many."""
    most = (n - 1) / 3
    if not 1 <= perplexity <= most:
        raise ValueError(f"--perplexity {perplexity:g}: between 1 and {most:.0f} for {n} images, a third of them")


def plane(vectors: NDArray[np.float32], perplexity: float, iterations: int, seed: int) -> Floats:
    """(n, width) → (n, 2). One thread: the same seed gives the same points."""
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError("t-SNE needs scikit-learn: pip install -e '.[analysis]'") from error
    scaled = separation.standardised(vectors)
    components = min(COMPONENTS, *scaled.shape)
    reduced = PCA(components, svd_solver="full", random_state=seed).fit_transform(scaled)
    return TSNE(
        2, perplexity=perplexity, max_iter=iterations, init="pca", learning_rate="auto", random_state=seed, n_jobs=1
    ).fit_transform(reduced)


def separations(
    spaces: Mapping[str, NDArray[np.float32]], images: Sequence[LabelledImage], seed: int
) -> dict[str, Any]:
    """By category and by level, over all images that have the label, and over the risky ones alone."""
    base = next((name for name in spaces if name in ORIGINAL), next(iter(spaces)))
    numbers: dict[str, Any] = {}
    for field in FIELDS:
        for kind in ("all", "risky"):
            rows = [
                at
                for at, image in enumerate(images)
                if getattr(image, field) is not None and (kind == "all" or not image.is_clean)
            ]
            labels = [getattr(images[at], field) for at in rows]
            chosen = {name: vectors[rows] for name, vectors in spaces.items()}
            numbers[f"{field}, {kind}"] = separation.table(chosen, labels, base, seed) if rows else None
    return numbers


def write_points(
    path: Path, named: Sequence[tuple[str, LabelledImage]], verdicts: Sequence[Verdict], planes: Mapping[str, Floats]
) -> None:
    """One row per image: where it comes from, labels, verdict, and its place in every plane."""
    places = [f"{name}_{axis}" for name in planes for axis in "xy"]
    head = ["set", "place", "image", *FIELDS, "predicted_category", "predicted_level", *places]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        for at, ((name, image), verdict) in enumerate(zip(named, verdicts, strict=True)):
            points = [f"{value:.4f}" for points in planes.values() for value in points[at]]
            labels = [image.category or "", image.level or "", verdict.category, verdict.level]
            writer.writerow([name, image.place, str(image.request.images[0]), *labels, *points])


def draw(
    out: Path,
    planes: Mapping[str, Floats],
    images: Sequence[LabelledImage],
    verdicts: Sequence[Verdict],
    numbers: Mapping[str, Any],
    taxonomy: Taxonomy,
) -> list[str]:
    """A row of four panels per space, numbers under them, one legend for categories and one for levels."""
    labels: dict[str, Sequence[str | None]] = {
        "true category": [image.category for image in images],
        "predicted category": [verdict.category for verdict in verdicts],
        "true level": [image.level for image in images],
        "predicted level": [verdict.level for verdict in verdicts],
    }
    styles = {"category": figures.category_styles(taxonomy), "level": figures.level_styles(taxonomy)}
    with figures.drawing(ROW * len(planes) + 0.75) as figure:
        panels = figure.subplots(len(planes), len(COLUMNS), squeeze=False)
        for row, (name, points) in enumerate(planes.items()):
            for column, title in enumerate(COLUMNS):
                axes, field = panels[row, column], title.split()[1]
                _scatter(axes, points, labels[title], styles[field])
                if row == 0:
                    axes.set_title(title)
                if title.startswith("true"):
                    axes.set_xlabel(_caption(numbers, field, name), loc="left")
            panels[row, 0].set_ylabel(SPACES[name].replace(": ", ":\n"))
        _legends(figure, styles)
        return figures.save(figure, out, "tsne")


def _scatter(axes: Axes, points: Floats, labels: Sequence[str | None], styles: Mapping[str, Any]) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_box_aspect(1)
    for spine in axes.spines.values():
        spine.set_visible(True)
    neutral_first = sorted(styles, key=lambda name: styles[name]["color"] != figures.NEUTRAL)
    for name in neutral_first:
        own = points[[label == name for label in labels]]
        axes.scatter(own[:, 0], own[:, 1], s=7, linewidths=0, alpha=0.8, rasterized=True, **styles[name])


def _caption(numbers: Mapping[str, Any], field: str, space: str) -> str:
    found = numbers[f"{field}, all"]
    if found is None:
        return ""
    row = found["spaces"][space]
    silhouette, purity = row["silhouette"], row["purity"]
    return (
        f"silhouette {silhouette['value']:.2f} [{silhouette['low']:.2f}, {silhouette['high']:.2f}]\n"
        f"{found['neighbours']}-NN purity {purity['value']:.2f} [{purity['low']:.2f}, {purity['high']:.2f}]"
    )


def _legends(figure: Any, styles: Mapping[str, Mapping[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    for field, place, columns in (("category", "outside lower left", 4), ("level", "outside lower right", 2)):
        handles = [Line2D([], [], linestyle="", markersize=5, label=name, **own) for name, own in styles[field].items()]
        figure.legend(handles=handles, loc=place, ncols=columns, title=field, columnspacing=1.0, handletextpad=0.2)


def _check_spaces(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in SPACES]
    if unknown or not names:
        raise UsageError(f"--spaces: {unknown[:1] or 'none'} is no space; some of {list(SPACES)}, joined by commas")


def _print(numbers: Mapping[str, Any]) -> None:
    rows = []
    for kind, found in numbers.items():
        for space, row in (found["spaces"] if found else {}).items():
            cells = [
                f"{row[name]['value']:.3f} [{row[name]['low']:.3f}, {row[name]['high']:.3f}]"
                for name in ("silhouette", "purity")
            ]
            rows.append([f"{kind}, n {found['n']}", space, *cells])
    summary.print_table(["labels", "space", "silhouette", f"{separation.NEIGHBOURS}-NN purity"], rows)
