"""Spoiled requests are answered, or told what is wrong. The long form is the module."""

from __future__ import annotations

import pytest

from tests.serve import bad_requests


@pytest.mark.slow
@pytest.mark.parametrize("upstream", [False, True])
def test_a_spoiled_request_is_answered_or_told_what_is_wrong(upstream: bool) -> None:
    counts, findings = bad_requests.run(200, seed=14, every=100, upstream=upstream)
    assert not findings, "\n".join(f"{one.request.what}: {one.why}"[:300] for one in findings)
    assert counts["400"] > 100 and counts["200"] > 10, counts
