"""In which language an answer is. Short answers are ambiguous, so that the answer is a set: all languages with rules
that it may be in.

py3langid knows 139 languages; a text that it takes for one without rules has no reading.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import Any

from safevlm.refusals.rules import all_rules

APOSTROPHES = str.maketrans(dict.fromkeys("\u2019\u2018\u02bc\u00b4\u0060\uff07", "'"))
DEFAULT = "en"
"""What an answer in plain Latin letters is taken for that is too short to tell (`Yes.`, `A red cup.`)."""
SHORT = 3
"""Words up to which it is."""
SURE = 0.5
"""Share from which on a language is told, or the languages with rules together."""
CERTAIN = 0.7
"""Share from which on no language with rules is asked."""
POSSIBLE = 0.02
"""Share from which on a language is asked for its refusals."""
ALIKE = {"ms": "id"}
"""Languages that are read with the rules of another one: Malay's refusals are Indonesian's."""
SEEN = 2000
"""Letters by which the language is told."""
_MARKS = re.compile(r"[\d_*#>|~]+")
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")


@dataclass(frozen=True)
class Guess:
    languages: tuple[str, ...]
    """Codes of the languages with rules that the text may be in, likeliest first; none: it is in another one."""
    is_known: bool = True
    """Whether it is in one of them. Where that is open, only a refusal's own form can tell."""


def languages(text: str) -> Guess:
    """In which of the languages with rules a text may be. One without a word is taken for English."""
    text = unicodedata.normalize("NFC", text).translate(APOSTROPHES)[:SEEN]
    words = _WORD.findall(text)
    if not words:
        return Guess((DEFAULT,))
    shares: dict[str, float] = {}
    others = 0.0
    for code, share in _identifier().rank(_MARKS.sub(" ", text)):
        own = ALIKE.get(code, code)
        if own in all_rules():
            shares[own] = shares.get(own, 0.0) + float(share)
        else:
            others = max(others, float(share))
    if len(words) <= SHORT and text.isascii() and others < SURE:
        shares[DEFAULT] = max(shares.get(DEFAULT, 0.0), SURE)
    likely = tuple(sorted((code for code in shares if shares[code] >= POSSIBLE), key=lambda code: -shares[code]))
    if others >= CERTAIN:
        return Guess((), is_known=False)
    is_known = bool(likely) and (sum(shares.values()) >= SURE or max(shares.values()) > others)
    return Guess(likely, is_known)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # reads its model when first asked

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
