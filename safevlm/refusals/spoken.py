"""What a model said once it had thought: thoughts are neither answer nor verdict.

The forms are those of chat templates in use: tags (DeepSeek-R1, Qwen3, QwQ, GLM, Phi-4: `<think>`; others
`<thinking>`, `<thought>`, `<reasoning>`, `<seed:think>`), brackets (Magistral `[THINK]`, Kimi `◁think▷`), marks
(Command A `<|START_THINKING|>`, OpenThinker `<|begin_of_thought|>`), and the channels of gpt-oss's harmony format, also
as they are left when special tokens are dropped (`analysis…assistantfinal…`). The trap is a thought that does not end:
what follows its opening was never said.
"""

from __future__ import annotations

import re

_TAGS = r"(?:seed:)?(?:think|thinking|thought|thoughts|reasoning|reflection|scratchpad)"
_FORMS = (
    (rf"<{_TAGS}>", rf"</{_TAGS}>"),
    (r"\[THINK\]", r"\[/THINK\]"),
    (r"◁think▷", r"◁/think▷"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
)
"""How a thought opens and closes."""
_CLOSED = [re.compile(f"{opens}(?:(?!{opens}).)*?{closes}", re.DOTALL | re.IGNORECASE) for opens, closes in _FORMS]
_CLOSES = [re.compile(closes, re.IGNORECASE) for _, closes in _FORMS]
_OPENS = [re.compile(opens, re.IGNORECASE) for opens, _ in _FORMS]
_CHANNEL = re.compile(
    r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>(.*?)(?=<\|(?:end|return|call|start|channel)\|>|\Z)", re.DOTALL
)
_DROPPED = re.compile(r"\A\s*(?:analysis|commentary)(?=[A-Z\"'*\n])(?:.*?assistant\s*final)?", re.DOTALL)
_WRAPPED = re.compile(
    r"</?answer>|<\|(?:begin|end)_of_solution\|>|<\|(?:START|END)_RESPONSE\|>|<\|(?:im_end|end|return|eot_id)\|>",
    re.IGNORECASE,
)


def spoken(text: str) -> str:
    """What was said after thinking; a thought that never ends leaves what stood before it."""
    if "<|channel|>" in text:
        said = [words for channel, words in _CHANNEL.findall(text) if channel == "final"]
        return (said[-1] if said else "").strip()
    dropped = _DROPPED.match(text)
    if dropped:
        text = text[dropped.end() :] if dropped[0].rstrip().endswith("final") else ""
    for closed, closes, opens in zip(_CLOSED, _CLOSES, _OPENS, strict=True):
        while (shorter := closed.sub("", text)) != text:  # thoughts within thoughts
            text = shorter
        if (ends := list(closes.finditer(text))) and not opens.search(text[: ends[-1].start()]):
            text = text[ends[-1].end() :]  # the template had opened the thought
        if opened := opens.search(text):
            text = text[: opened.start()]
    return _WRAPPED.sub("", text).strip()
