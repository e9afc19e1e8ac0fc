"""The upstream that notes what it gets, one for each module that asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serve.serving import listening
from tests.serve.upstreams import Recorder, Watching


@pytest.fixture(scope="module")
def noting() -> Recorder:
    return Recorder()


@pytest.fixture(scope="module")
def there(noting: Recorder) -> Iterator[str]:
    """Where it is."""
    with listening(noting) as address:
        yield address


@pytest.fixture
def recorder(noting: Recorder) -> Recorder:
    """It, which has noted nothing and answers well."""
    noting.reset()
    return noting


@pytest.fixture(scope="module")
def watching() -> Watching:
    """A defense in front of it, which lets everything pass and keeps what it saw."""
    return Watching()
