"""Images as they arrive in the wild: compressed, blurred, noisy, cut, smaller, turned, faded.

`safevlm eval ask --perturb NAME[:STRENGTH]` asks about images changed so (`safevlm.evaluation.runs.changed_images`).
What is drawn at random is drawn from the image's own pixels, so that every defense, machine and start sees the same.
The trap: a crop may cut off the very thing that makes a request harmful. Truth and judge stay those of the whole
image, so a perturbed run is read against the bare model's run on the same changed images, not against clean ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from safevlm.data.images import open_image
from safevlm.data.strengths import strength_of
from safevlm.usage import UsageError

PADDING = (122, 116, 104)
"""What LLaVA pads a picture with: the mean of CLIP's images. Stands where `scale` and `rotate` leave nothing."""


@dataclass(frozen=True)
class Kind:
    change: Callable[[Image.Image, float, int], Image.Image]
    """(RGB image, strength, seed) → RGB image."""
    strength: float
    """Where none is given."""
    least: float
    most: float
    text: str
    """What the strength is."""


@dataclass(frozen=True)
class Perturbation:
    name: str
    strength: float

    def __str__(self) -> str:
        return f"{self.name}:{self.strength:g}"

    def __call__(self, image: Image.Image) -> Image.Image:
        return PERTURBATIONS[self.name].change(image, self.strength, int(digest(image), 16))


def digest(image: Image.Image) -> str:
    """16 hexadecimal digits of size and pixels."""
    from safevlm.data.sources.fingerprints import image_digest  # late: it loads torch, and judging must not

    return image_digest(image).hex()[:16]


def jpeg(image: Image.Image, quality: float, seed: int) -> Image.Image:
    content = BytesIO()
    image.save(content, "JPEG", quality=round(quality))
    return open_image(content.getvalue())


def blur(image: Image.Image, percent: float, seed: int) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(percent / 100 * min(image.size)))


def resize(image: Image.Image, percent: float, seed: int) -> Image.Image:
    small = [max(1, round(side * percent / 100)) for side in image.size]
    return image.resize(small, Image.Resampling.BILINEAR).resize(image.size, Image.Resampling.BILINEAR)


def noise(image: Image.Image, deviation: float, seed: int) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float64)
    drawn = np.random.default_rng(seed).normal(0, deviation, pixels.shape)
    return Image.fromarray(np.clip(np.rint(pixels + drawn), 0, 255).astype(np.uint8))


def crop(image: Image.Image, percent: float, seed: int) -> Image.Image:
    width, height = (max(1, round(side * percent / 100)) for side in image.size)
    places = np.random.default_rng(seed)
    left, top = (int(places.integers(room + 1)) for room in (image.width - width, image.height - height))
    return image.crop((left, top, left + width, top + height))


def scale(image: Image.Image, percent: float, seed: int) -> Image.Image:
    small = image.resize([max(1, round(side * percent / 100)) for side in image.size], Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", image.size, PADDING)
    canvas.paste(small, ((image.width - small.width) // 2, (image.height - small.height) // 2))
    return canvas


def rotate(image: Image.Image, degrees: float, seed: int) -> Image.Image:
    return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=PADDING)


def contrast(image: Image.Image, percent: float, seed: int) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(percent / 100)


PERTURBATIONS = {
    "jpeg": Kind(jpeg, 30, 1, 95, "quality of JPEG"),
    "blur": Kind(blur, 1.5, 0, 50, "Gaussian blur, its deviation in percent of the shorter side"),
    "resize": Kind(resize, 50, 1, 100, "shrunk to so many percent of each side, and enlarged again"),
    "noise": Kind(noise, 16, 0, 128, "Gaussian noise, its deviation in steps of 0-255"),
    "crop": Kind(crop, 95, 10, 100, "so many percent of each side are kept, at a place drawn by chance"),
    "scale": Kind(scale, 70, 10, 100, "the whole image at so many percent of each side, in the middle of its old size"),
    "rotate": Kind(rotate, 10, -180, 180, "turned by so many degrees, counter-clockwise"),
    "contrast": Kind(contrast, 50, 1, 400, "so many percent of the contrast, about the mean grey"),
}


def parse(text: str) -> Perturbation | None:
    """`NAME` or `NAME:STRENGTH`; None for an empty text. ValueError names the choices."""
    if not text:
        return None
    name = text.partition(":")[0]
    if name not in PERTURBATIONS:
        raise UsageError(f"--perturb: unknown {name!r}; one of {list(PERTURBATIONS)}, with a strength as in jpeg:30")
    kind = PERTURBATIONS[name]
    return Perturbation(
        name, strength_of(text, kind.strength, (kind.least, kind.most), kind.text, f"--perturb {text}", UsageError)
    )


def told() -> str:
    """The table for the command line."""
    lines = (f"  {name}:{kind.strength:g}".ljust(12) + kind.text for name, kind in PERTURBATIONS.items())
    return "\n".join(["Perturbations, each with the strength it has unless told otherwise:", *lines])
