"""A sentencepiece vocabulary → a tokenizers file that needs no sentencepiece, with `<image>` in it.

The original code cuts a prompt at `<image>`, tokenizes the parts one by one and puts an image between them. So the
text behind an image begins as a prompt does: with sentencepiece's dummy prefix `▁`. Text behind `</s>` begins so only
in `legacy` tokenizers (tokenizer_config.json; Vicuna v1.5 says false). transformers' own Llama tokenizer knows no
difference between the two places, and would drop the `▁` behind `<image>`; therefore the rules are written out here.

The trap: `$` and `^` of a tokenizers regex also stand at line breaks, hence `\\z` and `\\A`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from llava_patch import weights

MODEL_FILE, CONFIG_FILE, ADDED_FILE = "tokenizer.model", "tokenizer_config.json", "added_tokens.json"
IMAGE, PAD = "<image>", "<pad>"
SPACE = "\u2581"
PROBES = (
    "Hello world",
    " two  spaces ",
    "a\nb\n\nc",
    "USER: What is this? ASSISTANT:",
    "na\u00efve \u6f22\u5b57 \U0001f600",
    "\ufb01ne \uff21 \u00bd",
    "\tindented = 10_000;",
    "aaaaaaaa" + " " * 9 + "!!!!!!",
    "" + "\u00a0x",
    "<im age> </ s>",
)
"""Texts on which the new tokenizer must agree with sentencepiece itself: spaces, bytes, normalisation, runs."""


def from_folder(folder: Path) -> PreTrainedTokenizerFast:
    """The folder's sentencepiece tokenizer as a fast one, with `<image>` and `<pad>` behind its last token.

    ValueError: no tokenizer.model, ids with gaps, or a model whose text rules are not Llama's.
    """
    pieces = _sentencepiece(folder / MODEL_FILE)
    config, size = _table(folder / CONFIG_FILE), pieces.get_piece_size()
    bos, eos, unknown = (pieces.id_to_piece(i) for i in (pieces.bos_id(), pieces.eos_id(), pieces.unk_id()))
    specials = [unknown, bos, eos, *_added(folder, config, size)]
    specials += [token for token in (IMAGE, PAD) if token not in specials]
    legacy = config.get("legacy", True) is not False  # tokenizers without the field are older than the fix
    backend = _backend(pieces, specials, legacy, unknown)
    if config.get("add_bos_token", True):
        rule = f"{bos} $A"
        backend.post_processor = processors.TemplateProcessing(rule, special_tokens=[(bos, pieces.bos_id())])
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=unknown,
        bos_token=bos,
        eos_token=eos,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=config.get("model_max_length") or int(1e30),
        extra_special_tokens={"image_token": IMAGE},
    )
    _compare(made, pieces, folder / MODEL_FILE)
    return made


def _backend(pieces: Any, specials: list[str], legacy: bool, unknown: str) -> Tokenizer:
    vocabulary = {pieces.id_to_piece(index): index for index in range(pieces.get_piece_size())}
    backend = Tokenizer(
        BPE(vocabulary, _merges(pieces, vocabulary), fuse_unk=True, byte_fallback=True, unk_token=unknown)
    )
    backend.normalizer = normalizers.Sequence(_spaces() if legacy else [*_spaces(), *_prefixes(specials)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    # what is not `normalized` is cut out first, and the rules then see every part of the text alone, as legacy wants
    backend.add_special_tokens([AddedToken(token, normalized=not legacy, special=True) for token in specials])
    return backend


def _spaces() -> list[Any]:
    return [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]


def _prefixes(specials: list[str]) -> list[Any]:
    """Over the whole text: no prefix in front of a special token, but one behind an image where words follow."""
    any_special = "|".join(map(re.escape, specials))
    return [
        normalizers.Replace(Regex(rf"\A{SPACE}(?=(?:{any_special}))"), ""),
        normalizers.Replace(Regex(rf"{re.escape(IMAGE)}(?!(?:{any_special})|\z)"), IMAGE + SPACE),
    ]


def _merges(pieces: Any, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to put a piece together, best score first: what sentencepiece's BPE does without a list of merges."""
    ranked: list[tuple[float, int, str, str]] = []
    for piece, index in vocabulary.items():
        if pieces.is_control(index) or pieces.is_unknown(index) or pieces.is_byte(index) or pieces.is_unused(index):
            continue
        score = -pieces.get_score(index)
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        ranked += [(score, -len(left), left, right) for left, right in halves if {left, right} <= vocabulary.keys()]
    ranked.sort(key=lambda merge: merge[:2])
    return [(left, right) for _, _, left, right in ranked]


def _added(folder: Path, config: dict[str, Any], size: int) -> list[str]:
    """Tokens behind the last piece, in order. ValueError: their ids leave a gap, where nothing could be put."""
    found = {int(index): entry["content"] for index, entry in config.get("added_tokens_decoder", {}).items()}
    found |= {int(index): token for token, index in _table(folder / ADDED_FILE).items()}
    extra = sorted(index for index in found if index >= size)
    if extra != list(range(size, size + len(extra))):
        raise ValueError(f"{folder}: ids of added tokens {extra} do not follow the {size} of {MODEL_FILE}")
    return [found[index] for index in extra]


def _compare(made: PreTrainedTokenizerFast, pieces: Any, file: Path) -> None:
    for text in PROBES:
        if made.encode(text, add_special_tokens=False) != pieces.encode(text):
            raise ValueError(f"{file}: not a BPE with Llama's rules: {text!r} would be read as other tokens")


def _sentencepiece(file: Path) -> Any:
    if not file.is_file():
        raise ValueError(
            f"{file}: missing; say where the sentencepiece tokenizer is with --tokenizer DIR "
            "(hf download liuhaotian/llava-v1.5-7b tokenizer.model tokenizer_config.json --local-dir DIR)"
        )
    try:
        import sentencepiece
    except ImportError as error:
        raise ValueError(f"{file}: reading it needs sentencepiece; pip install -e '.[convert]'") from error
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{file}: broken, not a sentencepiece model") from error


def _table(file: Path) -> dict[str, Any]:
    return weights.read_table(file) if file.is_file() else {}
