"""Prometheus counters of a guarded server, in a registry of its own. Labels hold names of our own only, no content."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

GUARD_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
ANSWER_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """One server's numbers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by what came of them", "action")
        self.verdicts = self._counter("verdicts", "Verdicts", "detector", "category", "level", "source")
        self.guard_errors = self._counter("guard_errors", "Requests whose guard failed", "stage")
        self.images = self._counter("images", "Images opened")
        self.would_block = self._counter("would_block", "Requests that a monitoring policy let through")
        self.reloads = self._counter("reloads", "Readings of the deployer's files after the first", "outcome")
        self.record_errors = self._counter("record_errors", "Decisions that could not be recorded", "to")
        self.tokens = self._counter("tokens", "Tokens read and written", "side")
        self.seconds = Histogram(
            "safevlm:request_seconds", "From arrival to the last token", buckets=ANSWER_SECONDS, registry=self.registry
        )
        self.upstream_seconds = Histogram(
            "safevlm:upstream_seconds", "Waiting for the upstream", buckets=ANSWER_SECONDS, registry=self.registry
        )
        self.guard_seconds = Histogram(
            "safevlm:guard_seconds", "Looking at a request", buckets=GUARD_SECONDS, registry=self.registry
        )

    def watch_waiting(self, waiting: Callable[[], int]) -> None:
        """A gauge that asks whenever it is read."""
        Gauge("safevlm:requests_waiting", "Requests in the queue", registry=self.registry).set_function(waiting)

    def page(self) -> bytes:
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"safevlm:{name}", text, labels, registry=self.registry)
