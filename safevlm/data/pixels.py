"""RGB images → what the vision tower reads, as the checkpoint's own image processor does it, within a bound of memory.

The trap: an image of 60,000 x 1 pixels is a file of 259 bytes; padded to a square it has 3.6 billion pixels, and scaled
to a shorter side of 336 it has 6.8 billion. What an image becomes is therefore counted before it is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from PIL.Image import Image

from safevlm.backbones import image_inputs, reading, table
from safevlm.backbones.image_inputs import ImageInput, ImageInputs
from safevlm.backbones.row import Backbone
from safevlm.data.fast_pixels import fast_pixels
from safevlm.data.images import MAX_PIXELS, ImageError, name_of, open_image
from safevlm.types import ImageSource

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

Pixels: TypeAlias = "Tensor | ImageInputs"
"""(i, 3, h, w) of LLaVA; of other families opaque, cut image by image."""
OneImage: TypeAlias = "ndarray[Any, Any] | ImageInput"
"""(3, h, w) of LLaVA; of other families opaque."""


def open_fitting(processor: Any, source: ImageSource) -> Image:
    """`open_image`, of an image that `processor` (an image processor of transformers) can take. ImageError."""
    image = open_image(source)
    check_fits(processor, image, name_of(source))
    return image


def read_images(processor: Any, requests: Sequence[Sequence[Image]]) -> Pixels:
    """The images of some requests, as the model of this processor (a whole one) reads them, one after the other.

    ImageError: one that cannot be read, as one that is far too long for the family.
    """
    backbone = table.of_processor(processor)
    if backbone is None:
        return pixel_values(processor.image_processor, [image for images in requests for image in images])
    return ImageInputs(image for images in requests for image in _read(backbone, processor, images))


def read_singly(processor: Any, images: Sequence[Image]) -> Pixels:
    """`read_images`, each image as a request's only one."""
    return read_images(processor, [[image] for image in images])


def _read(backbone: Backbone, processor: Any, images: Sequence[Image]) -> list[ImageInput]:
    try:
        return backbone.read(processor, images)
    except ValueError as error:
        raise ImageError(f"{backbone.model_type}: this image cannot be prepared: {error}") from error


def read_image(processor: Any, image: Image) -> OneImage:
    """One image that `check_fits` has let through, as the model of this processor (a whole one) reads it."""
    backbone = table.of_processor(processor)
    return pixel_array(processor.image_processor, image) if backbone is None else _read(backbone, processor, [image])[0]


def stack_images(images: Sequence[OneImage]) -> Pixels:
    """Images that were read one by one, as a batch."""
    from numpy import stack
    from torch import from_numpy

    families = [image for image in images if isinstance(image, ImageInput)]
    arrays = [image for image in images if not isinstance(image, ImageInput)]
    return from_numpy(stack(arrays)) if arrays else ImageInputs(families)


def join_images(parts: Sequence[Pixels]) -> Pixels:
    """All images of the parts, in order."""
    import torch

    families = [part for part in parts if isinstance(part, ImageInputs)]
    return (
        image_inputs.join(families)
        if families
        else torch.cat([part for part in parts if isinstance(part, torch.Tensor)])
    )


def slot_texts(processor: Any, images: Pixels, slots: int) -> list[str]:
    """What stands in the prompt for each of these images; `slots`: of an image, where all have so many."""
    return images.placeholders if isinstance(images, ImageInputs) else [processor.image_token * slots] * len(images)


def slot_id(processor: Any) -> int:
    """Id of the token that fills image slots."""
    return int(processor.image_token_id if table.of_processor(processor) is None else processor.image_token_ids[0])


def pixel_values(processor: Any, images: Sequence[Image]) -> Tensor:
    """(i, 3, h, w) of images that `check_fits` has let through."""
    from numpy import stack
    from torch import from_numpy

    ready = ready_pixels(processor, images)
    if ready is None:
        return processor(list(images), return_tensors="pt")["pixel_values"]
    return from_numpy(ready[0][None] if len(ready) == 1 else stack(ready))


def pixel_array(processor: Any, image: Image) -> ndarray[Any, Any]:
    """(3, h, w) of one image that `check_fits` has let through."""
    ready = ready_pixels(processor, [image])
    return processor([image], return_tensors="np")["pixel_values"][0] if ready is None else ready[0]


def ready_pixels(processor: Any, images: Sequence[Image]) -> list[ndarray[Any, Any]] | None:
    """(3, h, w) of each, made without the processor; None: it has to be asked itself, for all of them or some.

    The one place that decides between the two.
    """
    ready: list[ndarray[Any, Any]] = []
    for image in images:
        made = fast_pixels(processor, image)
        if made is None or (ready and made.shape != ready[0].shape):
            return None
        ready.append(made)
    return ready or None


def check_fits(processor: Any, image: Image, name: str) -> None:
    """ImageError when the image would have more than `MAX_PIXELS` pixels once it is padded or scaled."""
    shorter, longer = sorted(image.size)
    if getattr(processor, "do_pad", False):
        pixels, how = longer**2, "padded to a square"
    elif shortest := _shortest_side(processor):
        pixels, how = shortest**2 * longer // shorter, f"scaled to a shorter side of {shortest}"
    else:
        return
    if pixels > MAX_PIXELS:
        raise ImageError(
            f"{name}: {image.width} x {image.height} is too long and narrow: {how} it would have {pixels:,} pixels, "
            f"over the limit of {MAX_PIXELS:,}; crop it"
        )


def _shortest_side(processor: Any) -> int | None:
    """What the shorter side is scaled to, whatever becomes of the longer one; None: it is bounded, or nothing is."""
    is_free = getattr(processor, "do_resize", True) and reading.has_one_size(processor)
    return processor.size.get("shortest_edge") if is_free else None
