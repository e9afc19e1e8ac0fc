"""A converted tokenizer gives sentencepiece's own ids, around `<image>` and behind `</s>` too."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llava_patch.original import vocabulary
from tests import originals

IMAGE, PAD = 420, 421
TEXTS = (
    "USER: <image>\nWhat is this? ASSISTANT:",
    "USER: <image>\n<image>\nWhat is this? ASSISTANT: a ball</s>USER: and that? ASSISTANT:",
    "<image>",
    "<image><image>",
    "<image> hello",
    "<image></s>hello",
    "</s>hello</s> hello</s>\nhello</s>",
    " hello",
    "  hello  world  ",
    "\n",
    "hello\n<image>",
    "a <imag e> b <s>hello",
    "na\u00efve \u6f22\u5b57 \U0001f600 1234567 aaaaaaaaaaaaa      !!!!",
    "tab\there\r\n\u00a0\u2028\u200b",
    "",
)
ATOMS = (
    "hello",
    "USER:",
    " ",
    "  ",
    "\n",
    "<image>",
    "</s>",
    "<image>\n",
    "a",
    "aa",
    "aaa",
    "b",
    "\u00e9",
    "\u6f22",
    "x1",
    ".",
    "mississippi",
    " world",
    "<",
    "<im",
    "\t",
    "ASSISTANT:",
    "<s>",
    "<unk>",
)


def _tokenizer(folder: Path, legacy: bool | None = False) -> PreTrainedTokenizerFast:
    originals.write_tokenizer(folder, legacy)
    return vocabulary.from_folder(folder)


@pytest.fixture(scope="module", params=[False, True], ids=["modern", "legacy"])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[bool, PreTrainedTokenizerFast]:
    """A tokenizer as written to disk and read again by the stock class, and whether it is a legacy one."""
    home = tmp_path_factory.mktemp("tokenizer")
    _tokenizer(home / "src", request.param).save_pretrained(home / "out")
    return request.param, AutoTokenizer.from_pretrained(home / "out")


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_sentencepieces_own(both: tuple[bool, PreTrainedTokenizerFast], text: str) -> None:
    legacy, tokenizer = both
    assert tokenizer(text)["input_ids"] == originals.ids_of(text, legacy, image=IMAGE)


def test_random_texts_give_sentencepieces_own_ids(both: tuple[bool, PreTrainedTokenizerFast]) -> None:
    legacy, tokenizer = both
    draw = random.Random(1)
    for _ in range(2000):
        text = "".join(draw.choices(ATOMS, k=draw.randint(1, 12)))
        assert tokenizer(text)["input_ids"] == originals.ids_of(text, legacy, image=IMAGE), repr(text)


def test_legacy_matters_behind_the_end_token_only(tmp_path: Path) -> None:
    modern, legacy = _tokenizer(tmp_path / "a"), _tokenizer(tmp_path / "b", legacy=True)
    assert modern("</s>hello")["input_ids"] != legacy("</s>hello")["input_ids"]
    assert modern("<image>\nhello")["input_ids"] == legacy("<image>\nhello")["input_ids"]
    unsaid = _tokenizer(tmp_path / "c", legacy=None)
    assert unsaid("</s>hello")["input_ids"] == legacy("</s>hello")["input_ids"], "older than the field: legacy"


def test_many_slots_are_read_as_one_image(both: tuple[bool, PreTrainedTokenizerFast]) -> None:
    _, tokenizer = both
    one, many = (tokenizer(f"USER: {'<image>' * count}\nhello")["input_ids"] for count in (1, 576))
    place = one.index(IMAGE)
    assert many == one[:place] + [IMAGE] * 576 + one[place + 1 :]


def test_text_comes_back(both: tuple[bool, PreTrainedTokenizerFast]) -> None:
    _, tokenizer = both
    for text in ("hello world", "  two  spaces ", "na\u00efve \u6f22\u5b57 \U0001f600\n12"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_special_tokens_have_the_ids_of_llava_hf(both: tuple[bool, PreTrainedTokenizerFast]) -> None:
    _, tokenizer = both
    assert len(tokenizer) == 422
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>", "<image>", "<pad>"]) == [0, 1, 2, IMAGE, PAD]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (PAD, 1, 2)
    assert tokenizer.padding_side == "left" and tokenizer.model_max_length == 2048
    assert "<image>" in tokenizer.all_special_tokens


def test_saving_again_changes_nothing(both: tuple[bool, PreTrainedTokenizerFast], tmp_path: Path) -> None:
    legacy, tokenizer = both
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert again(text)["input_ids"] == originals.ids_of(text, legacy, image=IMAGE)


def test_added_tokens_keep_their_ids_and_split_words(tmp_path: Path) -> None:
    originals.write_tokenizer(tmp_path)
    originals.write_json(tmp_path / "added_tokens.json", {"<im_start>": 420, "<im_end>": 421})
    tokenizer = vocabulary.from_folder(tmp_path)
    assert tokenizer.convert_tokens_to_ids(["<im_start>", "<im_end>", "<image>", "<pad>"]) == [420, 421, 422, 423]
    known = {"<s>": 1, "</s>": 2, "<im_start>": 420, "<im_end>": 421}
    text = "<im_start><image><im_end>\nhello</s>world"
    assert tokenizer(text)["input_ids"] == originals.ids_of(text, image=422, specials=known)


def test_added_tokens_with_a_gap_are_an_error(tmp_path: Path) -> None:
    originals.write_tokenizer(tmp_path)
    originals.write_json(tmp_path / "added_tokens.json", {"<im_start>": 425})
    with pytest.raises(ValueError, match="do not follow the 420"):
        vocabulary.from_folder(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "unigram"},
        {"normalization_rule_name": "nfkc"},
        {"remove_extra_whitespaces": True},
        {"add_dummy_prefix": False},
    ],
)
def test_other_kinds_of_sentencepiece_are_an_error(tmp_path: Path, options: dict[str, object]) -> None:
    """Silent garbage otherwise: the rules lie in the model's file, where only sentencepiece reads them."""
    settings = {
        "vocab_size": 320,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "unk_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "pad_id": -1,
        "minloglevel": 2,
        "hard_vocab_limit": False,
        **options,
    }
    lines = [" ".join(originals.WORDS)] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(tmp_path / "tokenizer"), **settings
    )
    with pytest.raises(ValueError, match="not a BPE with Llama's rules"):
        vocabulary.from_folder(tmp_path)


def test_missing_sentencepiece_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    originals.write_tokenizer(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    with pytest.raises(ValueError, match=r"\.\[convert\]"):
        vocabulary.from_folder(tmp_path)


def test_broken_model_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="broken"):
        vocabulary.from_folder(tmp_path)
