"""Which tests run, and their order."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import pytest

from tests import warm_command


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", dest="all_tests", help="those marked `thorough` too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without thorough tests unless asked for; files with slow tests first: else one of several workers is left with
    the longest at the end."""
    if not config.getoption("all_tests"):
        left_out = [item for item in items if item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: slow[item.path] == 0)


@pytest.fixture(scope="session")
def warm_path() -> Iterator[str]:
    """PATH, with a `safevlm` before all that begins with everything imported."""
    with warm_command.folder() as folder:
        yield os.pathsep.join([str(folder), os.environ["PATH"]])
