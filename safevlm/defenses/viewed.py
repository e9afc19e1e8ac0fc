"""`safety-head:views` and `safe-clip:views`: a detector that looks at parts and changed forms of an image too.

What an attacker shrinks into a corner, or sets beside something harmless, is small to a guard that looks once. Each of
the views (`safevlm.data.views`) is shown to the detector like an image of its own, and the gravest verdict counts.
More looks raise more false alarms, so a view has to be surer than the image itself: it counts from a risk of
`ViewsOptions.risk` on, and where `votes` views of an image agree. The image as it is always counts.

It costs a pass of the tower per view, and no pass of the LLM; and each image is opened once more, so that views are
made of all its pixels, not of those that the tower reads.

The trap: a head that was only ever shown whole images is sure of nonsense on a part of one. Views are for a head that
learned that parts of clean images are clean (`data.augment: [parts, …]`, docs/training.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safevlm.defenses.base import Defense, Detector, ImageFeatures, tells_images
from safevlm.defenses.calibration import joint_risk
from safevlm.defenses.context import DefenseContext
from safevlm.defenses.looks import gravest_of, look_at
from safevlm.defenses.mixer import Mixer
from safevlm.defenses.options import check_number, read_options
from safevlm.defenses.policy import Policy
from safevlm.defenses.row import DefenseRow
from safevlm.taxonomy import CLEAN, SAFE
from safevlm.types import Request, Verdict

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from safevlm.data.pixels import Pixels
    from safevlm.data.views import Detail

MOST = 24
"""Views of an image."""
TEN_VIEWS = (
    "trimmed",
    *("tile:1", "tile:3", "tile:5", "tile:7", "tile:9"),
    *("left", "right", "top", "bottom"),
)
"""Found on validation data of the miniature: what a canvas, a collage, and something set beside it, each need."""


RISKS = {"safety-head": 0.98, "safe-clip": 0.8}
"""By what a name begins with, found likewise: a trained head is surer than a comparison with concepts."""


@dataclass(frozen=True)
class ViewsOptions:
    """The keys of the file behind the name."""

    detector: str = ""
    """Whose verdict on each view; empty: what the name begins with."""
    views: tuple[str, ...] = TEN_VIEWS
    """Keys of `safevlm.data.views.VIEWS`."""
    risk: float | None = None
    """A view counts from this risk on: the smaller of 1 - p(safe) and 1 - p(clean). None: that of `RISKS`."""
    least: float = 0.48
    """What a border leaves is looked at from this share of the tower's side on, in pixels."""
    least_part: float = 0.6
    """Tiles, halves and the middle from this one on: of an image that the tower reads at its full size they show
    nothing new, and cost false alarms."""
    votes: int = 1
    """Views of one image that must agree before any of them counts."""

    def __post_init__(self) -> None:
        from safevlm.data.views import VIEWS  # late: it brings numpy and PIL

        if self.risk is not None:
            check_number("risk", self.risk, 0, 1)
        check_number("least", self.least, 0, 100)
        check_number("least_part", self.least_part, 0, 100)
        check_number("votes", self.votes, 1, MOST, whole=True)
        unknown = [name for name in self.views if name not in VIEWS]
        if unknown:
            raise ValueError(f"views: unknown {unknown[0]!r}; some of {list(VIEWS)}")
        if not self.votes <= len(set(self.views)) == len(self.views) <= MOST:
            raise ValueError(f"views: give each once, {self.votes} (votes) to {MOST} of them, not {len(self.views)}")


class ViewsDetector:
    """The gravest of what another detector says of an image and of its views."""

    opens_images = True
    """It looks at more than the tower's pixels, so nothing that changes these can stand in front of it."""

    def __init__(
        self,
        inner: Detector,
        name: str,
        policy: Policy,
        options: ViewsOptions,
        read: Callable[[Sequence[Image]], Pixels],
        side: int,
    ) -> None:
        """`read`, `side`: as in `ModelFacts`."""
        self.inner, self.name, self.policy, self.options = inner, name, policy, options
        self.side = side
        self.tells_images = tells_images(inner)
        self._read = read

    def view_pixels(self, pixels: Tensor) -> Tensor:
        """(b, 3, h, w) of 0-1 → (b, v, 3, side, side) of 0-1: what `inner` is shown besides, differentiable.

        For an attack that goes through the guard; the guard itself takes its views of files.
        """
        from safevlm.data.views import view_pixels

        return view_pixels(pixels, self.options.views, self.side, self._detail())

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        if not features.images:  # it sees images only
            return Verdict.not_looked(self.name)
        first = look_at(self.inner, self.policy, request, features)
        return gravest_of(first, lambda: self._further(request, features), self.policy, self.name, "views")

    def _further(self, request: Request, features: ImageFeatures) -> Iterator[Verdict]:
        for image, views in enumerate(features.views(self._views), features.number):
            named = [(f"the view {name} of image {image}", view) for name, view in views]
            looks = [look_at(self.inner, self.policy, request, view, name) for name, view in named]
            yield from _agreed(looks, self.options)

    def _views(self, image: Image) -> tuple[Sequence[str], Pixels | None]:
        from safevlm.data.views import view_images

        views = view_images(image, self.options.views, self.side, self._detail())
        return list(views), self._read(list(views.values())) if views else None

    def _detail(self) -> Detail:
        from safevlm.data.views import Detail

        return Detail(self.options.least, self.options.least_part)


def _agreed(verdicts: Sequence[Verdict], options: ViewsOptions) -> list[Verdict]:
    """A view that is not sure, or is alone, says nothing against its image. One that failed stays."""
    seen = [not verdict.is_clean and joint_risk(verdict) >= (options.risk or 0.0) for verdict in verdicts]
    counts = sum(seen) >= options.votes
    return [
        verdict if verdict.error or (counts and is_risky) else dataclasses.replace(verdict, level=SAFE, category=CLEAN)
        for verdict, is_risky in zip(verdicts, seen, strict=True)
    ]


def _builder(detector: str) -> Callable[[DefenseContext], Defense]:
    def build(context: DefenseContext) -> Defense:
        facts, options = context.fitting(), read_options(ViewsOptions, context.file)
        if options.risk is None:
            options = dataclasses.replace(options, risk=RISKS[detector])
        inner, name = context.detector(options.detector or detector), f"{detector}:views"
        if getattr(inner, "opens_images", False):
            raise ValueError(f"{name}: {inner.name} opens the image itself, not a view of it; name another detector")
        return Mixer(ViewsDetector(inner, name, context.policy, options, facts.read, facts.side), context.policy)

    return build


ROWS = tuple(
    DefenseRow(
        f"{detector}:views",
        _builder(detector),
        f"{detector} on the image, its tiles and changed forms of it; the gravest verdict counts",
        takes_file=True,
        reads_folder=detector == "safe-clip",
    )
    for detector in RISKS
)
