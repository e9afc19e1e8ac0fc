"""Chat templates in the shapes that families write: what opens a turn, what ends one, where an image stands.

Short ones of our own; what the published ones do beyond that (tools, videos, dates) is left out. The traps are in: a
system turn that nobody gave, one that is put into the first question, a first token that the template writes itself,
turns that must alternate, an answer that begins behind a space.
"""

from __future__ import annotations

from dataclasses import dataclass

TEXT = "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
EACH = (
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for message in messages %}DEFAULT<|im_start|>{{ message['role'] }}\n" + EACH + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NOBODYS = (
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% set start = 1 if messages[0]['role'] == 'system' else 0 %}"
    "{% for message in messages[start:] %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else 'user' }}\n"
    "{% if start and loop.first %}{{ messages[0]['content'][0]['text'] }}\n\n{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] | trim }}"
    "{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
INST = (
    "{% for message in messages %}{% if message['role'] == 'system' %}<<SYS>>\n" + TEXT + "\n<</SYS>>\n"
    "{% elif message['role'] == 'user' %}[INST] {% for part in message['content'] if part['type'] == 'image' %}IMAGE\n"
    "{% endfor %}" + TEXT + " [/INST]{% else %} " + TEXT + "</s>{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}[SYSTEM_PROMPT]" + TEXT + "[/SYSTEM_PROMPT]"
    "{% elif message['role'] == 'user' %}[INST]" + EACH + "[/INST]{% else %}" + TEXT + "{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
GEMMA4 = (
    "{{ bos_token }}{% for message in messages %}"
    "<|turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}\n\nIMAGE\n\n{% else %}"
    "{{ part['text'] | trim }}{% endif %}{% endfor %}<turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for message in messages %}<|header_start|>{{ message['role'] }}<|header_end|>\n\n"
    + EACH
    + "<|eot|>{% endfor %}{% if add_generation_prompt %}<|header_start|>assistant<|header_end|>\n\n{% endif %}"
)
LLAMA3 = (
    LLAMA.replace("header_start", "start_header_id").replace("header_end", "end_header_id").replace("eot", "eot_id")
)
SMOL = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}" + EACH + "<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """A family's template, and the tokens in it."""

    template: str
    """Empty: the row's own, since the family has none."""
    end: str
    """What ends an answer."""
    tokens: tuple[str, ...]
    first: str | None = None
    """A first token that tokenizer and template both know."""


_CHATML = Shape(CHATML.replace("DEFAULT", ""), "<|im_end|>", ("<|im_start|>",))
SHAPES = {
    "qwen2_vl": Shape(CHATML.replace("DEFAULT", NOBODYS), "<|im_end|>", ("<|im_start|>",)),
    "qwen2_5_vl": Shape(CHATML.replace("DEFAULT", NOBODYS), "<|im_end|>", ("<|im_start|>",)),
    "qwen3_vl": _CHATML,
    "qwen3_5": _CHATML,
    "gemma3": Shape(GEMMA, "<end_of_turn>", ("<start_of_turn>",), "<bos>"),
    "internvl": _CHATML,
    "llava_next": Shape(INST, "</s>", ("[INST]", "[/INST]"), "<s>"),
    "llava_onevision": _CHATML,
    "idefics3": Shape(SMOL, "<end_of_utterance>", ("<|im_start|>",)),
    "smolvlm": Shape(SMOL, "<end_of_utterance>", ("<|im_start|>",)),
    "mistral3": Shape(MISTRAL, "</s>", ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), "<s>"),
    "paligemma": Shape("", "<eos>", ("<loc0000>",), "<bos>"),
    "gemma4": Shape(GEMMA4, "<turn|>", ("<|turn>",), "<bos>"),
    "mllama": Shape(
        LLAMA3,
        "<|eot_id|>",
        ("<|start_header_id|>", "<|end_header_id|>"),
        "<|begin_of_text|>",
    ),
    "llama4": Shape(LLAMA, "<|eot|>", ("<|header_start|>", "<|header_end|>"), "<|begin_of_text|>"),
}
