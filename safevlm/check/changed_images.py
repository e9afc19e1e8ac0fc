"""The checks of what a recipe does to its images: augmentation, adversarial training, and a change that is learned."""

from __future__ import annotations

from collections.abc import Iterator

from safevlm.check.findings import Finding
from safevlm.check.plan import RunPlan
from safevlm.data.augment import Augmentation
from safevlm.training.adversarial import pixel_scale
from safevlm.training.tensors import check_pixels


def augmentation(plan: RunPlan) -> Iterator[Finding]:
    """Whether there are clean records, where images are put beside theirs."""
    made = Augmentation.of(plan.recipe, plan.records, plan.taxonomy)
    if made is not None:
        told = ", ".join(plan.recipe.data.augment)
        yield Finding(True, f"data.augment: {made.share:.0%} of the images are changed in each epoch: {told}")


def attack(plan: RunPlan) -> Iterator[Finding]:
    """Whether the checkpoint's pixels can be attacked."""
    settings = plan.recipe.adversarial
    if not settings.epsilon:
        return
    pixel_scale(plan.processor)
    which = "risky images" if settings.goal == "clean" else "labelled images"
    yield Finding(
        True,
        f"adversarial.epsilon: {settings.epsilon:g} of 255; in each step {which} go through the vision tower "
        f"{settings.steps} times forth and back, and all of them once more",
    )


def tensor(plan: RunPlan) -> Iterator[Finding]:
    """Whether the checkpoint's images have the one shape that a visual security tensor has."""
    if plan.stage.name != "security_tensor" or plan.recipe.tensor.kind != "visual":
        return
    check_pixels(plan.skeleton, plan.processor, plan.recipe.tensor)
    yield Finding(True, f"tensor.kind: visual; every image is {' x '.join(map(str, plan.skeleton.pixel_shape))} values")
