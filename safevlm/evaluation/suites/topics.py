"""A benchmark's own word for a topic → the category of our taxonomy that the word names.

No benchmark uses our taxonomy. The category is what the `oracle` defense and the head's accuracy are given, so this
table is an interpretation of ours; the benchmark's own word stays in `expected["topic"]`. Rows are read from the top, a
topic that names none of them is `illegal`, whose definition ends in "attempts to break rules".
"""

from __future__ import annotations

CATEGORIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("privacy", ("privacy", "personal data", "surveillance")),
    ("politics", ("politic", "lobbying", "gov", "election")),
    ("fairness", ("discriminat", "stereotyp", "race", "bias", "religion", "fairness")),
    ("insults", ("hate", "insult", "harass", "bull", "toxic", "morality", "unethical")),
    (
        "misleading",
        (
            "misinformation",
            "disinformation",
            "misleading",
            "misinterpretation",
            "advice",
            "opinion",
            "consultation",
            "legal",
            "financ",
            "health",
            "controversial",
            "deception",
        ),
    ),
)
OTHER = "illegal"


def category_of(*topics: str) -> str:
    """The first row of the table that a topic names. `illegal` itself holds `legal`, and is asked first."""
    plain = " ".join(topics).casefold().replace("_", " ").replace("-", " ")
    if "illegal" in plain:
        return OTHER
    return next((category for category, parts in CATEGORIES if any(part in plain for part in parts)), OTHER)
