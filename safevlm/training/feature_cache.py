"""Head-only training runs the frozen vision tower once an image: what it gave is kept on the disk.

An entry is found by the digest of the image's file, among those of one key: a digest of the tower's weights, of what is
read of it, of the image processor, of how it is computed and of the code. When one of them changes, no entry is found.
Kept are the numbers as the tower gave them: training with and without is the same, to the rounding of batches that hold
another number of images. The room is bounded: what does not fit goes through the tower every time. Files of which the
run needs nothing make room, those that were used longest ago before others.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import TrainingArguments

from llava_patch import vision
from safevlm import sharding
from safevlm.config import Recipe
from safevlm.data.atomic_write import GB
from safevlm.data.images import ImageError, decode_image
from safevlm.data.pixels import check_fits, pixel_values
from safevlm.data.record_table import image_paths
from safevlm.data.records import Record
from safevlm.data.sources.fingerprints import bytes_digest
from safevlm.data.threads import in_threads
from safevlm.model.loading import Loaded
from safevlm.training import feature_shards, processes, updates
from safevlm.training.feature_shards import FeatureCache
from safevlm.versions import installed

log = logging.getLogger(__name__)

FOLDER = "features"
"""In `run.out`, where the recipe names no other."""
LOCK = ".features.lock"
IMAGES_PER_FILE = 256
"""A killed start loses the work on so many images; of a ViT-L at 336 pixels they are 300 MB."""
PACKAGES = ("torch", "transformers", "pillow")
CODE = (Path(vision.__file__).parent, Path(feature_shards.__file__).parents[1] / "data")


@dataclass(frozen=True)
class FeaturePlan:
    """What the first process found, for all of them."""

    key: str
    digests: dict[str, bytes]
    """Path → digest of the file's bytes, of the images that may be kept."""
    missing: list[str]
    """Paths of images that are to be kept and are not yet; one for each digest."""


def open_cache(
    recipe: Recipe, loaded: Loaded, records: Sequence[Record], arguments: TrainingArguments
) -> FeatureCache | None:
    """The cache, filled; None: the run has none. Every process must call. `loaded` is ready to train.

    ValueError: the recipe names a folder, and the tower trains.
    """
    if not _is_wanted(recipe, loaded, len(records), arguments.world_size):
        return None
    folder, rank, world = folder_of(recipe), arguments.process_index, arguments.world_size
    loaded.model.to(arguments.device)
    with contextlib.ExitStack() as held:
        plan = processes.agree(rank, world, lambda: _plan(held, folder, recipe, loaded, records, arguments))
        if plan is None:
            return None
        _fill(folder, plan.key, plan.missing[rank::world], recipe, loaded, arguments)
        if world > 1:
            torch.distributed.barrier()
    return _opened(folder, plan)


def folder_of(recipe: Recipe) -> Path:
    return Path(recipe.data.feature_cache or Path(recipe.run.out) / FOLDER)


@contextlib.contextmanager
def of_run(recipe: Recipe, process: int) -> Iterator[None]:
    """Around a training: what was kept for this run alone goes away with its end, be that a result or an error.

    A killed run leaves it, to go on with.
    """
    try:
        yield
    except Exception:
        _forget(recipe)
        raise
    if process == 0:
        _forget(recipe)


def _forget(recipe: Recipe) -> None:
    if recipe.data.feature_cache:
        return
    folder = folder_of(recipe)
    with contextlib.suppress(OSError):
        for file in (*feature_shards.files_in(folder), *feature_shards.unfinished_in(folder)):
            file.unlink()
        folder.rmdir()


def _is_wanted(recipe: Recipe, loaded: Loaded, records: int, world: int) -> bool:
    if not recipe.data.feature_cache_gb or recipe.run.deepspeed:
        return False
    if recipe.data.augment or recipe.adversarial.epsilon:
        log.info("no features are kept: images change each time (data.augment, adversarial.epsilon)")
        return False
    if any(weight.requires_grad for weight in loaded.safe_llava.tower.parameters()):
        if recipe.data.feature_cache:
            raise ValueError(
                "data.feature_cache: the vision tower trains, so that nothing it gives can be kept; leave it out"
            )
        return False
    seen = updates.in_all(recipe.optim, records, world) * updates.effective_batch(recipe.optim, world)
    return bool(recipe.data.feature_cache) or (recipe.optim.epochs > 1 and seen > records)


# what is there, and what is to be made


def _plan(
    held: contextlib.ExitStack,
    folder: Path,
    recipe: Recipe,
    loaded: Loaded,
    records: Sequence[Record],
    arguments: TrainingArguments,
) -> FeaturePlan | None:
    """None, and a warning: the folder cannot be written."""
    key, bound = key_of(recipe, loaded, arguments.device), int(recipe.data.feature_cache_gb * GB)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        may_write = _hold(held, folder)
        stored = _stored(folder, key, removes=may_write)
        each = _image_bytes(stored, recipe, loaded, arguments)
        digests = dict(in_threads(_digest, islice(_distinct(records), bound // each), "reading images"))
        missing = list({digest: path for path, digest in digests.items() if digest}.items())
        known = {digest for some in stored.values() for digest in some}
        wanted = [path for digest, path in missing if digest not in known]
        room = _room(folder, stored, set(digests.values()), each * len(wanted), bound) if may_write else 0
    except OSError as error:
        log.warning("%s: no features are kept: %s", folder, error)
        return None
    kept = wanted[: max(0, room) // each]
    log.info(
        "features of %d images in %s, %d are computed now; %d are over data.feature_cache_gb: %g or have no room",
        len(missing) - len(wanted) + len(kept),
        folder,
        len(kept),
        sum(1 for _ in _distinct(records)) - len(digests) + len(wanted) - len(kept),
        recipe.data.feature_cache_gb,
    )
    return FeaturePlan(key, digests, kept)


def _hold(held: contextlib.ExitStack, folder: Path) -> bool:
    """Whether no other run fills the folder now; until `held` ends, none begins to."""
    try:
        held.enter_context(sharding.alone(folder / LOCK, folder, "data.feature_cache"))
    except ValueError as error:
        log.warning("%s; what is there is used, and nothing is added", error)
        return False
    return True


def _stored(folder: Path, key: str, removes: bool) -> dict[Path, list[bytes]]:
    """Files of the key and the digests in each. Damaged ones, and what killed processes left, go away."""
    found = {file: feature_shards.digests_of(file) for file in feature_shards.files_in(folder, key)}
    if removes:
        for file in (
            *(file for file, digests in found.items() if digests is None),
            *feature_shards.unfinished_in(folder),
        ):
            file.unlink(missing_ok=True)
    return {file: digests for file, digests in found.items() if digests}


def _image_bytes(stored: dict[Path, list[bytes]], recipe: Recipe, loaded: Loaded, arguments: TrainingArguments) -> int:
    if stored:
        return feature_shards.image_bytes(next(iter(stored)))
    blank = vision.blank_images(loaded.safe_llava, 1)
    return _patches(blank, recipe, loaded, arguments)[0].nbytes + feature_shards.EXTRA


def _distinct(records: Sequence[Record]) -> Iterator[str]:
    """Paths of the records' images, each once, in their order."""
    seen: set[bytes] = set()
    for paths in image_paths(records):
        for path in paths:
            mark = hashlib.blake2b(path.encode(errors="surrogateescape"), digest_size=12).digest()
            if mark not in seen:
                seen.add(mark)
                yield path


def _digest(path: str) -> tuple[str, bytes]:
    """Empty: it cannot be read, which the training will say better."""
    try:
        return path, bytes.fromhex(bytes_digest(Path(path).read_bytes()))
    except OSError:
        return path, b""


def _room(folder: Path, stored: dict[Path, list[bytes]], wanted: set[bytes], needed: int, bound: int) -> int:
    """Bytes that new files may take; older files make room, unless the run needs something of them."""
    files = feature_shards.files_in(folder)
    used = [file for file in files if wanted.intersection(stored.get(file, ()))]
    for file in used:
        os.utime(file)
    taken = {file: file.stat().st_size for file in files}
    for file in files:
        if sum(taken.values()) + needed <= bound:
            break
        if file not in used:
            file.unlink(missing_ok=True)
            del taken[file]
    return min(bound - sum(taken.values()), shutil.disk_usage(folder).free // 2)


# computing it


@dataclass(frozen=True)
class ImageReader:
    """Paths → digests and pixels of the images that can be used; of the others the training says what is wrong."""

    processor: Any

    def __call__(self, paths: Sequence[str]) -> tuple[list[bytes], Tensor | None]:
        digests, images = [], []
        for path in paths:
            with contextlib.suppress(ImageError, OSError):
                data = Path(path).read_bytes()
                image = decode_image(data, path)
                check_fits(self.processor, image, path)
                digests.append(bytes.fromhex(bytes_digest(data)))
                images.append(image)
        return digests, (pixel_values(self.processor, images) if images else None)


def _fill(
    folder: Path, key: str, paths: list[str], recipe: Recipe, loaded: Loaded, arguments: TrainingArguments
) -> None:
    """Computes the features of images in batches of `optim.batch_size`, as training would."""
    if not paths:
        return
    batches: DataLoader[Any] = DataLoader(
        paths,  # type: ignore[arg-type]  # a list is a map from indices
        batch_size=recipe.optim.batch_size,
        collate_fn=ImageReader(loaded.processor.image_processor),
        num_workers=recipe.data.workers,
        generator=torch.Generator().manual_seed(0),  # its own: the run's random numbers stay what they are
    )
    digests: list[bytes] = []
    made: list[Tensor] = []
    try:
        for found, pixels in tqdm(batches, "features of images", leave=False):
            if pixels is not None:
                digests += found
                made.append(_patches(pixels.to(arguments.device), recipe, loaded, arguments).cpu())
            if len(digests) >= IMAGES_PER_FILE:
                feature_shards.write(folder, key, digests, torch.cat(made))
                digests, made = [], []
        if digests:
            feature_shards.write(folder, key, digests, torch.cat(made))
    except OSError as error:
        log.warning("%s; the other images go through the vision tower every time", error)


def _patches(pixels: Tensor, recipe: Recipe, loaded: Loaded, arguments: TrainingArguments) -> Tensor:
    """(i, p, v), as a training step computes them."""
    with torch.no_grad(), torch.autocast(arguments.device.type, torch.bfloat16, enabled=recipe.run.bf16):
        return loaded.safe_llava.encode_images(pixels).patches.contiguous()


def _opened(folder: Path, plan: FeaturePlan) -> FeatureCache:
    files = feature_shards.files_in(folder, plan.key)
    places = {
        digest: (index, row)
        for index, file in enumerate(files)
        for row, digest in enumerate(feature_shards.digests_of(file) or ())
    }
    rows = {path: places[digest] for path, digest in plan.digests.items() if digest in places}
    return FeatureCache(files, rows)


# what an entry hangs on, beside its image


def key_of(recipe: Recipe, loaded: Loaded, device: torch.device) -> str:
    """Of all that the features of an image hang on."""
    model = loaded.safe_llava
    told = [
        _weights_digest(model.tower_state()),
        model.config.to_dict()["vision_config"],
        [model.config.vision_feature_layer, model.config.vision_feature_select_strategy],
        loaded.processor.image_processor.to_dict(),
        [recipe.model.attention, device.type, recipe.run.bf16],
        [installed(package) for package in PACKAGES],
        _code_digest(),
    ]
    return bytes_digest(json.dumps(told, sort_keys=True, default=str).encode())[:32]


def _weights_digest(weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _code_digest() -> str:
    """Of what opens and reads images: another version may make other pixels of the same file."""
    return bytes_digest(b"\0".join(file.read_bytes() for folder in CODE for file in sorted(folder.glob("*.py"))))
