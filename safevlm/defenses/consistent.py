"""`safety-head:consistent`: a verdict has to survive compression, a slight scaling and noise.

What an attack adds to an image is tuned to the very pixels that the guard reads, and is often undone by small changes
that leave what is seen alone. Each image is looked at as it is and changed (`safevlm.data.perturbations`). A clean
verdict counts only where all looks agree: no changed version is risky, and none moves p(clean) or p(safe) by more than
`move`. Where a version is risky, its verdict counts; where one moves too far, the version with the most risk does, with
a risky name in the place of each read-out that is clean.

It costs a pass of the tower per change, and one of the image as it is. The trap: an attacker who knows the changes puts
them into his own gradient, so this is a hurdle, and no promise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safevlm.defenses.base import Defense, Detector, ImageFeatures, tells_images
from safevlm.defenses.calibration import joint_risk
from safevlm.defenses.context import DefenseContext
from safevlm.defenses.either import strictest
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

INNER = "safety-head"
NAME = f"{INNER}:consistent"
MOST = 16
"""Changes of an image."""


@dataclass(frozen=True)
class ConsistentOptions:
    """The keys of the file behind the name."""

    detector: str = INNER
    """Whose verdict has to stand."""
    changes: tuple[str, ...] = ("jpeg:75", "resize:85", "noise:6")
    """As in `--perturb`: NAME:STRENGTH."""
    move: float = 0.5
    """By how much p(clean) or p(safe) may differ from that of the image as it is."""

    def __post_init__(self) -> None:
        from safevlm.data.perturbations import parse  # late: it brings numpy and PIL

        check_number("move", self.move, 0, 1)
        if not 0 < len(set(self.changes)) == len(self.changes) <= MOST or "" in self.changes:
            raise ValueError(f"changes: give each once, 1 to {MOST} of them, not {len(self.changes)}")
        for text in self.changes:
            try:
                parse(text)
            except ValueError as error:
                raise ValueError(f"changes: {str(error).removeprefix('--perturb').lstrip(': ')}") from error


class ConsistentDetector:
    """Another detector's verdict, where it stands when the image is changed a little."""

    name = NAME
    opens_images = True

    def __init__(
        self,
        inner: Detector,
        policy: Policy,
        options: ConsistentOptions,
        read: Callable[[Sequence[Image]], Pixels],
    ) -> None:
        """`read`: as in `ModelFacts`."""
        from safevlm.data.perturbations import Perturbation, parse

        self.inner, self.policy, self.options = inner, policy, options
        self.changes: list[Perturbation] = [made for text in options.changes if (made := parse(text))]
        self.tells_images = tells_images(inner)
        self._read = read

    def view_pixels(self, pixels: Tensor) -> Tensor:
        """(b, 3, h, w) of 0-1 → (b, 1 + c, 3, h, w): what `inner` is shown, as it is first. The changes act as they do
        in the guard, on pixels rounded to 8 bits; the gradient goes by them as if there were none (arXiv 1802.00420,
        section 4.1)."""
        import torch

        from safevlm.data.views import image_of, pixels_of

        images = [image_of(one) for one in pixels]
        changed = [
            torch.stack([pixels_of(change(image)).to(pixels) for image in images]) - pixels.detach()
            for change in self.changes
        ]
        return torch.stack([pixels, *(pixels + added for added in changed)], 1)

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        if not features.images:  # it sees images only
            return Verdict.not_looked(self.name)
        first = look_at(self.inner, self.policy, request, features)
        return gravest_of(first, lambda: self._further(request, features, first), self.policy, self.name, "changes")

    def _further(self, request: Request, features: ImageFeatures, first: Verdict) -> Iterator[Verdict]:
        for image, ((_, plain), *changed) in enumerate(features.views(self._versions), features.number):
            is_only = features.images == 1
            alone = first if is_only else look_at(self.inner, self.policy, request, plain, f"image {image} alone")
            named = [(f"image {image} changed by {name}", own) for name, own in changed]
            looks = [look_at(self.inner, self.policy, request, own, name) for name, own in named]
            yield from (alone, *(self._held_against(alone, verdict) for verdict in looks))

    def _held_against(self, alone: Verdict, changed: Verdict) -> Verdict:
        """The verdict on a changed version; a risk, where it is clean and yet far from what was said before."""
        if not changed.is_clean or not alone.is_clean or moved(alone, changed) <= self.options.move:
            return changed
        riskier = max((alone, changed), key=joint_risk)
        return dataclasses.replace(strictest(riskier, self.policy), view=f"{changed.view}, which moves it too far")

    def _versions(self, image: Image) -> tuple[Sequence[str], Pixels]:
        names = ["", *map(str, self.changes)]
        return names, self._read([image, *(change(image) for change in self.changes)])


def moved(one: Verdict, other: Verdict) -> float:
    """By how much two verdicts differ in p(clean) or p(safe), whichever differs more; 0 without probabilities."""
    pairs = (
        (one.category_probabilities, other.category_probabilities, CLEAN),
        (one.level_probabilities, other.level_probabilities, SAFE),
    )
    return max((abs(mine[name] - theirs[name]) for mine, theirs, name in pairs if mine and theirs), default=0.0)


def _build(context: DefenseContext) -> Defense:
    facts, options = context.fitting(), read_options(ConsistentOptions, context.file)
    inner = context.detector(options.detector)
    if getattr(inner, "opens_images", False):
        raise ValueError(f"{NAME}: {inner.name} opens the image itself, not a version of it; name another detector")
    return Mixer(ConsistentDetector(inner, context.policy, options, facts.read), context.policy)


ROW = DefenseRow(
    NAME, _build, "the safety head on compressed, scaled and noisy versions; disagreement is risk", takes_file=True
)
