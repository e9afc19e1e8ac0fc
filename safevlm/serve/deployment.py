"""What the deployer of a server decides: who may ask, which policy acts on whose requests, which images are known.

All of it is read from files as one `Deployment`, so that a reload replaces all of it at once or nothing. Engines of
different policies share the model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safevlm.defenses.policy import Policy, read_policy
from safevlm.engine import Engine
from safevlm.serve.access import CALLER, NOBODY, Keys
from safevlm.serve.acting import Blocking, Monitoring, Timed
from safevlm.serve.errors import ApiError
from safevlm.serve.keys import KeyRow, read_digests, read_keys

Took = Callable[[float], object]
Stamp = tuple[int, int, int] | None
"""What tells that a file was changed or replaced; None: it is not there."""


@dataclass(frozen=True)
class Treatment:
    """How the requests of a key are treated: the model behind one policy."""

    acting: Engine
    blocking: Engine
    """Refuses whatever is flagged, for requests that ask for it."""
    looking: Engine
    """Acts on nothing, for images that are known."""
    version: str = ""
    """Digest of the policy."""
    is_monitor: bool = False

    def engine(self, *, blocks: bool, is_known: bool) -> Engine:
        """`blocks`: the request wants whatever is flagged refused. `is_known`: all its images are on the list."""
        return self.blocking if blocks else self.looking if is_known else self.acting


@dataclass(frozen=True)
class Deployment:
    """Everything that was decided, as of the last reading."""

    keys: Keys
    treatments: Mapping[str, Treatment]
    """By name of the key."""
    known_images: frozenset[str] = frozenset()
    """SHA-256 of the files of images that are never acted on."""

    def treatment(self) -> Treatment:
        """Of the request in progress. ApiError 401: its key was taken out meanwhile."""
        try:
            return self.treatments[CALLER.get()]
        except KeyError as error:
            raise ApiError(401, "this API key is no longer known", code="invalid_api_key") from error

    def knows(self, digests: Sequence[str]) -> bool:
        """Whether there are images, and all of them are known."""
        return bool(digests) and self.known_images.issuperset(digests)


def treatment(engine: Engine, took: Took, version: str = "", is_monitor: bool = False) -> Treatment:
    """`engine`: as the policy has it. `took`: is given the seconds of each look."""
    timed = Timed(engine.defense, took)
    looking = engine.behind(Monitoring(timed), on_error="allow")
    acting = looking if is_monitor else engine.behind(timed, on_error=engine.on_error)
    blocking = engine.behind(Blocking(acting.defense, engine.taxonomy))
    return Treatment(acting, blocking, looking, version, is_monitor)


def plain(engine: Engine, took: Took) -> Deployment:
    """One policy for everybody."""
    return Deployment(Keys(()), {NOBODY: treatment(engine, took)})


class DeployedKeys:
    """The keys of the deployment that is in force."""

    def __init__(self, now: Callable[[], Deployment]) -> None:
        self._now = now

    def check(self, headers: dict[bytes, bytes]) -> str:
        return self._now().keys.check(headers)


@dataclass(frozen=True)
class DeploymentFiles:
    """What the flags name."""

    defense: str = "auto"
    policy: Path | None = None
    monitor: bool = False
    keys: Path | None = None
    known_images: Path | None = None
    api_keys: tuple[str, ...] = ()
    """In clear, as they were given; all of them are nobody's in particular."""


@dataclass
class Deployer:
    """Reads the files, again and again. A treatment whose policy is the same stays the same, and so do its batches."""

    engine: Engine
    files: DeploymentFiles
    took: Took
    read_last: dict[Path, Stamp] = field(default_factory=dict)
    """Files that were opened by the last reading, also by one that failed, as they were just before."""
    _treatments: dict[tuple[str, bool], Treatment] = field(default_factory=dict)
    _used: dict[tuple[str, bool], Treatment] = field(default_factory=dict)

    def read(self) -> Deployment:
        """FileError or another ValueError names file and line; OSError: a file is not there."""
        self.read_last, self._used = {}, {}
        rows = read_keys(self._opened(self.files.keys)) if self.files.keys is not None else {}
        digests = {name: bytes.fromhex(row.sha256) for name, row in rows.items()}
        treatments = {name: self._of(row) for name, row in rows.items()}
        if self.files.api_keys or not rows:
            treatments[NOBODY] = self._treatment(self.files.policy, self.files.monitor)
        known = self.files.known_images
        images = read_digests(self._opened(known)) if known is not None else frozenset()
        self._treatments = self._used
        return Deployment(Keys(self.files.api_keys, digests), treatments, images)

    def _of(self, row: KeyRow) -> Treatment:
        assert self.files.keys is not None
        policy = self.files.keys.parent / row.policy if row.policy else self.files.policy
        return self._treatment(policy, self.files.monitor if row.monitor is None else row.monitor)

    def _treatment(self, path: Path | None, is_monitor: bool) -> Treatment:
        config = self.engine.loaded.safe_llava.config
        policy = read_policy(self._opened(path) if path is not None else None, config.taxonomy, config.policy)
        name = (version_of(policy), is_monitor)
        made = self._used.get(name) or self._treatments.get(name) or self._made(path, *name)
        self._used[name] = made
        return made

    def _made(self, path: Path | None, version: str, is_monitor: bool) -> Treatment:
        engine = self.engine if path is None else self.engine.behind(self.files.defense, path, self.engine.on_error)
        if not engine.defense.detects and (is_monitor or path is not None):
            what = "--monitor" if is_monitor else f"policy {path}"
            raise ValueError(f"{what}: no effect, since defense {engine.defense.name} never looks; name another one")
        return treatment(engine, self.took, version, is_monitor)

    def _opened(self, path: Path) -> Path:
        self.read_last[path] = stamp(path)
        return path


def version_of(policy: Policy) -> str:
    """The same for two policies that do the same."""
    content = json.dumps(dataclasses.asdict(policy), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def stamp(file: Path) -> Stamp:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
