"""Reads the deployer's files again when they change, or on SIGHUP, while the server goes on.

A file that is broken changes nothing: what was read before stays in force, and the log and `/healthz` say so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event, Thread

from safevlm.serve.deployment import Deployer, stamp
from safevlm.serve.guarded import GuardedModel

log = logging.getLogger(__name__)

EVERY = 1.0
"""Seconds between two looks at the files."""
BROKEN = "a changed file cannot be used; what was read before it is in force, and the log has the cause"


class Reloading:
    """A thread that looks at the files."""

    def __init__(
        self, model: GuardedModel, deployer: Deployer, then: Callable[[], None] = lambda: None, every: float = EVERY
    ) -> None:
        """`deployer` has been read once. `then`: is called after `ask`, whatever the files hold."""
        self.model = model
        self.deployer = deployer
        self.then = then
        self.every = every
        self._woken = Event()
        self._is_asked = False
        self._stops = False
        self._seen = deployer.read_last
        self._thread = Thread(target=self._work, name="safevlm-reload", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ask(self) -> None:
        """Reads again, changed or not. May be called by a signal's handler."""
        self._is_asked = True
        self._woken.set()

    def close(self) -> None:
        self._stops = True
        self._woken.set()
        self._thread.join(10)

    def _work(self) -> None:
        while True:
            self._woken.wait(self.every)
            self._woken.clear()
            if self._stops:
                return
            is_asked, self._is_asked = self._is_asked, False
            if is_asked or any(stamp(file) != seen for file, seen in self._seen.items()):
                self._read()
            if is_asked:
                self._do_then()

    def _read(self) -> None:
        try:
            self.model.deployment = self.deployer.read()
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a file, the server goes on as it is
            log.error("reload: %s: %s", type(error).__name__, error)
            self.model.health.configuration = BROKEN
            self.model.metrics.reloads.labels("failed").inc()
        else:
            log.warning("reload: %d files were read again", len(self.deployer.read_last))
            self.model.health.configuration = ""
            self.model.metrics.reloads.labels("done").inc()
            self._seen = {}
        # a file that was not read again since another one is broken may be the one that mends it
        self._seen = self._seen | self.deployer.read_last

    def _do_then(self) -> None:
        try:
            self.then()
        except OSError as error:
            log.error("reload: %s", error)
