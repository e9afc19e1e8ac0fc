"""In which language an answer is: by its script, then by the commonest words of each language. Short answers are
ambiguous, so that the answer is a set: all languages that it may be in.

Ours, since refusals are often of a few words, and what is wanted is every language that they may be in, not the
likeliest one.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from safevlm.refusals.rules import all_rules, other_words

SCRIPTS = {
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "CJK": "zh",
    "DEVANAGARI": "hi",
    "BENGALI": "bn",
    "ARABIC": "ar",
    "CYRILLIC": "ru",
    "LATIN": "en",
}
"""First word of a letter's Unicode name → the language with rules that is written so; Latin is many."""
OF_OTHERS = {"ar": "پچژگکیےھہٹڈڑںۀ", "hi": "ळ", "bn": "ৰৱ"}
"""Letters of scripts that their language with rules does not have (Persian, Urdu, Marathi, Assamese)."""
NEEDS_WORDS = ("hi", "ru")
"""Scripts of several languages: a long answer must hold a common word of the one with rules."""
_OWN_SCRIPT = frozenset(SCRIPTS.values()) - {"en"}
APOSTROPHES = str.maketrans(dict.fromkeys("\u2019\u2018\u02bc\u00b4\u0060\uff07", "'"))
LONG = 4
"""Words from which on an answer without any known common word is in an unknown language."""
EDGES = ".,!?:;\u0964\u061f\u060c\u00ab\u00bb\"'()*"
WEAK = 2
"""Common words up to which an answer in Latin letters may still be in any of its languages."""
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")


@dataclass(frozen=True)
class Guess:
    languages: tuple[str, ...]
    """Codes of the languages with rules that the text may be in, likeliest first; none: it is in another one."""
    is_known: bool = True
    """Whether anything speaks for them. Where nothing does, only a refusal's own form can."""


def languages(text: str) -> Guess:
    """In which of the languages with rules a text may be. One without a letter is taken for English."""
    scripts = Counter(_script(letter) for letter in text if letter.isalpha())
    if not scripts:
        return Guess(("en",))
    japanese = scripts["HIRAGANA"] + scripts["KATAKANA"]
    if japanese and japanese * 10 >= scripts["CJK"]:
        scripts["HIRAGANA"] += scripts.pop("CJK", 0)
    code = SCRIPTS.get(scripts.most_common(1)[0][0])
    if code is None:
        return Guess(())
    return _of_latin(text) if code == "en" else _of_script(code, text)


def _of_script(code: str, text: str) -> Guess:
    rules = all_rules()[code]
    foreign = rules.letters_of_others | set(OF_OTHERS.get(code, ""))
    tokens = {token.strip(EDGES) for token in text.lower().replace("ё", "е").split()}
    lacks_words = code in NEEDS_WORDS and len(tokens) >= LONG and not tokens & rules.words
    is_foreign = lacks_words or any(letter in foreign for letter in text.lower())
    return Guess(() if is_foreign else (code,))


def _of_latin(text: str) -> Guess:
    text = unicodedata.normalize("NFC", text).lower().translate(APOSTROPHES)
    words = _WORD.findall(text)
    known = {code: rules for code, rules in all_rules().items() if code not in _OWN_SCRIPT}
    counts = Counter(
        {code: _count(words, one.words) + sum(letter in one.letters for letter in text) for code, one in known.items()}
    )
    best = max(counts.values())
    if max(_count(words, common) for common in other_words().values()) > best:
        return Guess(())
    least = 0 if best <= WEAK else best / 2
    likely = tuple(code for code, count in counts.most_common() if count >= least)
    return Guess(likely, is_known=best > 0 or len(words) < LONG)


def _count(words: Sequence[str], common: frozenset[str]) -> int:
    return sum(word in common for word in words)


def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").partition(" ")[0].partition("-")[0]
