"""The shape of a defense, and what the engine hands to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from safevlm.types import Reply, Request, Verdict

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from safevlm.data.pixels import Pixels

Found = TypeVar("Found")
REFUSED = 2
"""`Defense.strictness` of a verdict that is answered in the model's place."""


class RiskView(Protocol):
    """What the checkpoint's safety head thinks: probabilities by name."""

    @property
    def level(self) -> Mapping[str, float]: ...

    @property
    def category(self) -> Mapping[str, float]: ...


class ImageFeatures(Protocol):
    """What one vision pass gave for a request; detectors share it and generation reuses it."""

    @property
    def images(self) -> int:
        """Number of images; 0 for a request in words."""

    @property
    def vision(self) -> Any:
        """`llava_patch.vision.VisionPass` of the request's images, computed on first use; None without images."""

    @property
    def risk(self) -> RiskView | None:
        """The head's opinion, computed on first use; None without images. ValueError without a head."""

    @property
    def number(self) -> int:
        """Of the first of these images among those of the request; 1, unless they are one of `alone`."""

    def alone(self) -> Sequence[ImageFeatures]:
        """Each of several images as a request's only one; they share its vision pass. What the LLM makes of the prompt
        is known of the request as a whole only."""

    def per_image(self, make: Callable[[Any], Sequence[Found]]) -> Sequence[Found]:
        """What `make` finds in this request's images, one thing each.

        It gets the `VisionPass` of all images of the batch, once for all its requests.
        """

    def per_opened(self, make: Callable[[Iterator[Image]], Sequence[Found]]) -> Sequence[Found]:
        """What `make` finds in this request's images themselves, one thing each.

        It gets all images of the batch, once for all its requests: each is opened once more, upright and RGB, when its
        turn comes. A frame of an animation that is looked at on its own is such an image.
        """

    def views(
        self, make: Callable[[Image], tuple[Sequence[str], Pixels | None]]
    ) -> Sequence[Sequence[tuple[str, ImageFeatures]]]:
        """Of each of this request's images its views, with their names, each as a request's only image.

        `make` gets an image as `per_opened` does, and gives the names of its views, and their pixels as the model reads
        them (`ModelFacts.read`); None: it has no view. It is asked once for all images of the batch, whose views pass
        the tower together.
        """

    def copies(self, pixels: Pixels) -> Sequence[ImageFeatures]:
        """Features of this request with other pixels in the place of its own, in one vision pass.

        `pixels`: (c * i, 3, h, w), all images of the first copy first.
        """

    @property
    def pixel_values(self) -> Pixels | None:
        """(i, 3, h, w), as the tower reads them; None without images."""

    def states(self, layers: Sequence[int], tokens: int) -> Tensor:
        """(l, k, d) float32: what the LLM makes of the request as it was asked, no hint in it, without any LoRA.

        The hidden states behind each of these decoder layers, numbered from 1, of the prompt's last k tokens. On first
        use all requests of the batch pass the LLM once, up to the deepest of the layers.
        """


@dataclass(frozen=True)
class VirtualTokens:
    """Learned vectors that the LLM reads as if they were tokens."""

    vectors: Tensor
    """(k, d)."""
    at: int
    """Index into the request's `input_ids` in front of which they stand; 0: before everything."""


@dataclass(frozen=True)
class Inputs:
    """One request as tensors, before padding and batching."""

    input_ids: Tensor
    """(t,), image slots included, virtual tokens not."""
    pixel_values: Any = None
    """(i, 3, h, w), preprocessed; None without images. Other pixels cost a second pass of the tower. Of families other
    than LLaVA they are `ImageInputs`, of which the values alone may change (`safevlm.data.dense_pixels`)."""
    virtual: tuple[VirtualTokens, ...] = ()
    image_token_id: int = -1


class Ask(Protocol):
    """Puts requests to the bare model, with no defense in between, as one batch."""

    def __call__(
        self,
        requests: Sequence[Request],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        answer_prefix: str = "",
    ) -> list[str]:
        """Answers in order. `answer_prefix` is put into the model's mouth and is not part of what is returned."""


class Defense:
    """One way of keeping an answer safe. Override a hook or two; the rest do nothing.

    Hooks get frozen objects and return new ones. A hook that raises makes the engine refuse the request.
    """

    name = "none"
    ask: Ask
    """Asks the bare model; set by `attach`."""

    @property
    def detects(self) -> bool:
        """Whether it looks at requests; it is then shown every frame of an animation."""
        return is_own(self, "detect", Defense)

    @property
    def reviews(self) -> bool:
        """Whether it wants to see whole answers; streaming then waits for the end."""
        return is_own(self, "review", Defense)

    @property
    def transforms(self) -> bool:
        """Whether it changes tensors of the prompt; a model behind a network cannot be asked so."""
        return is_own(self, "transform", Defense)

    def attach(self, ask: Ask) -> None:
        """The engine's word, once, before any hook: how to ask the model behind it."""
        object.__setattr__(self, "ask", ask)  # a defense may be a frozen dataclass

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        """Look."""
        return Verdict.not_looked(self.name)

    def rewrite(self, request: Request, verdict: Verdict) -> Request | Reply:
        """Words in; a Reply answers at once, and the model is not asked."""
        return request

    def strictness(self, request: Request, verdict: Verdict) -> int:
        """What comes of a verdict: 0 as of none, 1 other words, 2 an answer in the model's place, or a failure.

        By it verdicts on the frames of an animation are ranked.
        """
        try:
            rewritten = self.rewrite(request, verdict)
            unseen = self.rewrite(request, Verdict.not_looked(self.name))
        except Exception:  # noqa: BLE001 - it breaks again when it is acted on, and refuses the request
            return REFUSED
        if isinstance(rewritten, Reply):
            return REFUSED
        return int(isinstance(unseen, Reply) or rewritten.text != unseen.text)

    def abstains(self, verdict: Verdict) -> bool:
        """Whether the verdict is of its own detector, and says that this could not decide; the request is then refused,
        whatever a policy says."""
        return False

    def transform(self, inputs: Inputs, verdict: Verdict) -> Inputs:
        """Tensors in."""
        return inputs

    def review(self, request: Request, reply: Reply, verdict: Verdict) -> Reply:
        """Words out."""
        return reply


def is_own(defense: Defense, hook: str, kind: type[Defense]) -> bool:
    """Whether a defense has another hook of this name than `kind`: by its class, or set on the object itself."""
    return getattr(getattr(defense, hook), "__func__", None) is not getattr(kind, hook)


class Detector(Protocol):
    """The looking half of a defense.

    One with `tells_images = True` is asked about each of several images alone too (`ImageFeatures.alone`).
    """

    name: str

    def detect(self, request: Request, features: ImageFeatures) -> Verdict: ...


def tells_images(detector: Detector) -> bool:
    """Whether it can be asked about one of several images alone."""
    return bool(getattr(detector, "tells_images", False))
