"""One file per command of `python -m eval`: its one-line TEXT, its DESCRIPTION and flags, and what it runs.

Exit codes: 0 fine, 1 a finding (nothing could be scored; a run in the report is unfinished), 2 wrong usage.
"""

from __future__ import annotations

FINE, FINDING, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
