"""How the attacks make their images that see the guarded model's insides (`white_box_rows`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from safevlm.data.images import open_image
from safevlm.evaluation.attacks import descent
from safevlm.evaluation.attacks.descent import Box, Step, apgd, descend, pgd
from safevlm.evaluation.attacks.job import AttackJob, first_image
from safevlm.evaluation.attacks.square import squares
from safevlm.evaluation.attacks.suffix import suffixes
from safevlm.evaluation.attacks.white_box import WhiteBox, frozen, to_images
from safevlm.types import Sample

Find = Callable[[AttackJob, WhiteBox, int], Tensor]
"""A job, some of its samples opened, and a seed → (b, 3, h, w) attacked images, whole numbers."""


def attacked(find: Find, job: AttackJob) -> list[Sample]:
    """The job's samples with what `find` makes of them, batch by batch; those that are kept already stay."""
    engine = frozen(job.engine)
    todo = _batches(job)
    with tqdm(total=sum(map(len, todo)), desc="attack", unit="image") as bar:
        for samples in todo:
            box = WhiteBox(engine, samples, [job.answers.get(sample.request.id, "") for sample in samples])
            seed = job.chance(samples[0]).getrandbits(62)
            with torch.enable_grad():
                found = find(job, box, seed)
            for sample, image in zip(samples, to_images(found), strict=True):
                job.keep(sample, image)
            bar.update(len(samples))
    return job.changed()


def _batches(job: AttackJob) -> list[list[Sample]]:
    """Samples that wait, images of one size together."""
    of_size: dict[tuple[int, int], list[Sample]] = {}
    for sample in job.waiting():
        of_size.setdefault(open_image(sample.request.images[0]).size, []).append(sample)
    size = job.effort.batch
    return [own[start : start + size] for own in of_size.values() for start in range(0, len(own), size)]


def _within(job: AttackJob, box: WhiteBox, seed: int, step: Step) -> Tensor:
    return descend(box, Box(box.originals.float(), job.strength), step, job.effort, seed).images


def _patch(job: AttackJob, box: WhiteBox, seed: int) -> Tensor:
    """Anything, in a square in the corner."""
    height, width = box.originals.shape[-2:]
    mask = torch.zeros(height, width, dtype=torch.bool, device=box.originals.device)
    mask[: round(height * job.strength / 100), : round(width * job.strength / 100)] = True
    return descend(box, Box(box.originals.float(), 255, mask), pgd, job.effort, seed).images


def _under_changes(job: AttackJob, box: WhiteBox, seed: int) -> Tensor:
    """The gradient's mean over changes by chance (EOT: Athalye et al., arXiv 1707.07397), for guards that change or
    draw."""
    generator = torch.Generator().manual_seed(seed)
    limits = Box(box.originals.float(), job.strength)
    return descend(box, limits, pgd, job.effort, seed, partial(changed, generator)).images


def changed(generator: torch.Generator, images: Tensor) -> Tensor:
    """(b, 3, h, w) in 0-1: each batch scaled, moved, noisy and of another contrast, by a little and by chance."""
    scale, right, down, contrast = (torch.rand(4, generator=generator) - 0.5).tolist()
    turn = torch.tensor([[1 + 0.2 * scale, 0, 0.1 * right], [0, 1 + 0.2 * scale, 0.1 * down]])
    grid = F.affine_grid(turn.to(images).expand(len(images), 2, 3), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    noise = torch.randn(images.shape, generator=generator).to(images) * 8 / 255
    return ((moved - 0.5) * (1 + 0.3 * contrast) + 0.5 + noise).clamp(0, 1)


def _universal(job: AttackJob) -> list[Sample]:
    """One change for all images: found on one half of the requests, tried on the other, and the other way round.

    What is found on the very images that it is tried on would be no universal change.
    """
    images = list(job.samples)
    halves = [images[0::2], images[1::2]]
    if not all(halves):
        raise ValueError("a universal change is found on one half of the images and tried on the other; give two")
    engine = frozen(job.engine)
    for seen, tried in (halves, halves[::-1]):
        waiting = [sample for sample in tried if not job.place(sample).exists()]
        if not waiting:
            continue
        few = seen[: job.effort.batch]
        box = WhiteBox(engine, few, [job.answers.get(sample.request.id, "") for sample in few])
        limits = Box(box.originals.float(), job.strength)
        with torch.enable_grad():
            change = _shared_change(box, limits, job)
        for sample in waiting:
            original = box.map.native(first_image(sample))[None].to(change)
            moved = Box(original, job.strength).project(original + change)
            job.keep(sample, to_images(moved)[0])
    return job.changed()


def _shared_change(box: WhiteBox, limits: Box, job: AttackJob) -> Tensor:
    """(1, 3, h, w): that which fools most."""
    generator = torch.Generator().manual_seed(job.seed)
    size, count = limits.size, len(limits.originals)
    best, best_loss = torch.zeros_like(limits.originals[:1]), float("inf")
    for weighing in descent.WEIGHINGS[: job.effort.starts]:
        change = torch.zeros_like(best).uniform_(-size, size, generator=generator)
        for step in range(job.effort.steps):
            values = (limits.project(limits.originals + change.round()) / 255).requires_grad_()
            losses = box.losses(values)
            loss = (weighing.weight * weighing.detectors(losses.margins) + losses.answer).mean()
            ranked = float(descent.rank(losses).detach().clamp_min(descent.FOOLED).mean())
            if ranked < best_loss:
                best, best_loss = change.round(), ranked
            gradient = torch.autograd.grad(loss * count, values)[0].sum(0, keepdim=True)
            left = 1 - step / job.effort.steps
            change = (change - size * (0.01 + 0.24 * left) * gradient.sign()).clamp(-size, size)
    return best


MAKERS: dict[str, Callable[[AttackJob], list[Sample]]] = {
    "pgd": partial(attacked, partial(_within, step=pgd)),
    "apgd": partial(attacked, partial(_within, step=apgd)),
    "eot": partial(attacked, _under_changes),
    "patch": partial(attacked, _patch),
    "universal": _universal,
    "square": partial(attacked, squares),
    "suffix": suffixes,
}
"""By name of the attack."""
