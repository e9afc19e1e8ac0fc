"""Whether an answer refuses, and how careful it is. What declines in a language is data: `rules/LANGUAGE.yaml`.

spoken.py       what was said after thinking
language.py     in which language, as far as the words tell
rules.py        the files of rules
reading.py      refused, answered, or in a language without rules
carefulness.py  the reward `phrases` of best-of-n: three steps, English, on its own narrower rules
"""

from safevlm.refusals.carefulness import carefulness
from safevlm.refusals.reading import Reading, is_empty, is_refusal, reading
from safevlm.refusals.rules import digest
from safevlm.refusals.spoken import spoken

__all__ = ["Reading", "carefulness", "digest", "is_empty", "is_refusal", "reading", "spoken"]
