"""`safety-head:smoothed`: what the head says of most noisy copies of an image, with a radius that is proven.

Randomised smoothing (Cohen, Rosenfeld, Kolter, "Certified adversarial robustness via randomized smoothing",
arXiv 1902.02918, theorem 1 and section 3.2.2) of one question, "risky or not". `n` copies of a request's images get
Gaussian noise, and the detector looks at each. The share of copies that say what most of them say is bounded from
below by Clopper and Pearson's p, at a confidence of 1 - alpha. Where p is above a half, no change of the pixels of
smaller l2 norm than sigma · Φ⁻¹(p) makes the smoothed detector answer otherwise; where it is not, the detector
abstains, and the request is refused, whatever the policy says.

With two answers there is nothing to select beforehand: both are bounded at alpha / 2, from the same copies.

The trap: pixels are those that the tower reads, behind scaling and cropping, in units of 0 to 1, all images of a
request together. A change of 8/255 of every value of 3 x 336 x 336 has an l2 norm of 18; what is proven is far less.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from safevlm.defenses.base import Defense, Detector, ImageFeatures
from safevlm.defenses.context import DefenseContext, ModelFacts
from safevlm.defenses.either import strictest
from safevlm.defenses.mixer import Mixer
from safevlm.defenses.options import check_number, read_options
from safevlm.defenses.policy import Policy
from safevlm.defenses.row import DefenseRow
from safevlm.defenses.verdicts import look
from safevlm.types import MAX_SEED, Request, Verdict

if TYPE_CHECKING:
    from torch import Tensor

    from safevlm.data.pixels import Pixels

INNER = "safety-head"
NAME = f"{INNER}:smoothed"
IMAGES_PER_PASS = 32
"""Noisy images in a vision pass, at most, or those of one copy."""


@dataclass(frozen=True)
class SmoothedOptions:
    """The keys of the file behind the name."""

    detector: str = INNER
    """Whose answers are counted; one that reads what the tower sees."""
    sigma: float = 0.1
    """Deviation of the noise, where pixels are 0 to 1."""
    n: int = 100
    """Noisy copies."""
    alpha: float = 0.001
    """Probability at most that a radius is not true, or that what is told is not what most copies would say."""
    seed: int = 0
    """Noise is drawn from an image's own pixels and this number. Kept secret, nobody can try images out elsewhere."""

    def __post_init__(self) -> None:
        check_number("sigma", self.sigma, 1e-4, 10)
        check_number("n", self.n, 1, 100_000, whole=True)
        check_number("alpha", self.alpha, 1e-9, 0.5)
        check_number("seed", self.seed, 0, MAX_SEED, whole=True)
        if not self.n or radius_of(self.n, self.n, self.sigma, self.alpha) is None:
            raise ValueError(f"n: {self.n} copies are too few to be sure of anything at alpha {self.alpha:g}")


def radius_of(votes: int, n: int, sigma: float, alpha: float) -> float | None:
    """Certified l2 radius of an answer that `votes` of `n` copies gave; None: it is not proven to be that of most."""
    from scipy.stats import beta, norm

    if not votes:
        return None
    least = float(beta.ppf(alpha / 2, votes, n - votes + 1))
    return sigma * float(norm.ppf(least)) if least > 0.5 else None


class SmoothedDetector:
    """The answer of most noisy copies. A verdict without a radius is an abstention."""

    name = NAME

    def __init__(self, inner: Detector, policy: Policy, options: SmoothedOptions, image_std: Sequence[float]) -> None:
        """`image_std`: as in `ModelFacts`."""
        self.inner, self.policy, self.options, self.image_std = inner, policy, options, tuple(image_std)

    def view_pixels(self, pixels: Tensor) -> Tensor:
        """(b, 3, h, w) of 0-1, as the tower reads them → (b, 1, 3, h, w): with noise drawn anew, differentiable.

        For an attack that goes through the guard, in expectation over the noise.
        """
        import torch

        return (pixels + self.options.sigma * torch.randn_like(pixels)).unsqueeze(1)

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        pixels = features.pixel_values
        if pixels is None:  # it sees images only
            return Verdict.not_looked(self.name)
        verdicts = [
            self.policy.calibrated(look(self.inner, request, copy))
            for noisy in self._noisy(pixels)
            for copy in features.copies(noisy)
        ]
        failed = next((verdict for verdict in verdicts if verdict.error), None)
        if failed is not None:
            return Verdict.not_looked(self.name, failed.error)
        return self.counted(verdicts)

    def counted(self, verdicts: Sequence[Verdict]) -> Verdict:
        """What most of these say, with the radius; probabilities are their means."""
        options, risky = self.options, [verdict for verdict in verdicts if not verdict.is_clean]
        is_risky = 2 * len(risky) >= len(verdicts)
        votes = max(len(risky), len(verdicts) - len(risky))
        mean = Verdict(
            level_probabilities=_means([verdict.level_probabilities for verdict in verdicts]),
            category_probabilities=_means([verdict.category_probabilities for verdict in verdicts]),
            source=self.name,
            radius=radius_of(votes, len(verdicts), options.sigma, options.alpha),
        )
        if mean.radius is None:
            return strictest(mean, self.policy)
        if not is_risky:
            return mean
        level, category = Counter((verdict.level, verdict.category) for verdict in risky).most_common(1)[0][0]
        return replace(mean, level=level, category=category)

    def _noisy(self, pixels: Pixels) -> Iterator[Pixels]:
        """All copies, as many as fit a pass at a time."""
        import torch

        generator = torch.Generator().manual_seed(_seed_of(pixels, self.options.seed))
        per_pass = max(1, IMAGES_PER_PASS // len(pixels))
        for start in range(0, self.options.n, per_pass):
            copies = min(per_pass, self.options.n - start)
            yield with_noise(pixels, copies, self.options.sigma, self.image_std, generator)


class Smoothed(Mixer):
    """The mixer, and a refusal where the detector abstains. What was counted is not calibrated once more."""

    detector: SmoothedDetector

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        return self.detector.detect(request, features)

    def abstains(self, verdict: Verdict) -> bool:
        return verdict.source == self.name and verdict.looked and not verdict.error and verdict.radius is None


def with_noise(pixels: Pixels, copies: int, sigma: float, std: Sequence[float], generator: object) -> Pixels:
    """`copies` of all images with noise of deviation `sigma`, where pixels are 0 to 1; normalised by `std`.

    ValueError: a family whose pixels are stored in a way that is not known here.
    """
    from safevlm.backbones.image_inputs import ImageInputs

    if not isinstance(pixels, ImageInputs):
        repeated = pixels.repeat(copies, *[1] * (pixels.dim() - 1))
        return repeated + sigma * _noise(repeated, std, generator)
    return ImageInputs(
        replace(image, tensors={**image.tensors, PIXELS: own + sigma * _noise(own, std, generator)})
        for _ in range(copies)
        for image, own in zip(pixels, _tensors(pixels), strict=True)
    )


PIXELS = "pixel_values"


def _tensors(images: Pixels) -> list[Tensor]:
    """(…, 3, h, w), or (patches, 3 …) each."""
    found = [image.tensors.get(PIXELS) for image in images]
    known = [own for own in found if own is not None and own.is_floating_point()]
    if len(known) != len(found):
        raise ValueError(f"images of this family have no {PIXELS} that noise could be added to")
    return known


def _noise(like: Tensor, std: Sequence[float], generator: object) -> Tensor:
    """Of deviation 1 where pixels are 0 to 1; drawn on the CPU, so that every machine draws the same."""
    import torch

    drawn = torch.randn(like.shape, generator=generator).to(like)  # type: ignore[call-overload]  # a torch.Generator
    if len(set(std)) == 1:
        return drawn / std[0]
    scale = like.new_tensor(list(std))
    if like.dim() >= 3 and like.shape[-3] == 3:
        return drawn / scale[:, None, None]
    if like.dim() == 2 and like.shape[-1] % 3 == 0:  # flat patches, channel by channel
        return (drawn.unflatten(-1, (3, -1)) / scale[:, None]).flatten(-2)
    raise ValueError(f"pixels of shape {tuple(like.shape)}: which of them are red, green and blue is not known here")


def _seed_of(pixels: Pixels, seed: int) -> int:
    from safevlm.backbones.image_inputs import ImageInputs

    digest = hashlib.sha256(str(seed).encode())
    for own in _tensors(pixels) if isinstance(pixels, ImageInputs) else [pixels]:
        digest.update(own.float().cpu().contiguous().numpy().tobytes())
    return int.from_bytes(digest.digest()[:8], "big") & MAX_SEED


def _means(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: math.fsum(table[name] for table in tables) / len(tables) for name in tables[0]} if tables else {}


def _build(context: DefenseContext) -> Defense:
    facts, options = context.fitting(), read_options(SmoothedOptions, context.file)
    inner = context.detector(options.detector)
    if getattr(inner, "opens_images", False):
        raise ValueError(
            f"{NAME}: noise is added to what the tower reads, and {inner.name} opens the image itself; name another "
            "detector"
        )
    _check_pixels(facts)
    return Smoothed(SmoothedDetector(inner, context.policy, options, facts.image_std), context.policy)


def _check_pixels(facts: ModelFacts) -> None:
    """ValueError: a family whose images cannot be given noise."""
    import torch
    from PIL import Image

    blank = facts.read([Image.new("RGB", (facts.side, facts.side))])
    with_noise(blank, 1, 1.0, facts.image_std, torch.Generator().manual_seed(0))


ROW = DefenseRow(NAME, _build, "the safety head on noisy copies: a proven l2 radius, or a refusal", takes_file=True)
