"""The parts of security tensors' data: no question and no image tells more than it should, and nothing is lost."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from safevlm.data import chat_messages
from safevlm.data.pairs import ContrastiveQuestions, Counts, Drawn, Pair, draw, row_of
from safevlm.data.records import Record, RecordError, parse_record
from safevlm.taxonomy import CLEAN, DEFAULT, SAFE

ASKS = ("How is it used?", "How is it used?", "How is it used?", "What is it?")


def _record(folder: Path, index: int, category: str | None, level: str | None, colour: int | None = None) -> Record:
    """A record with an image of its own, or one of the given colour."""
    name = f"{index}.png"
    shade = index if colour is None else colour
    Image.new("RGB", (4, 4), (shade % 256, shade // 256, 0)).save(folder / name)
    return Record(
        id=f"r{index}",
        place=f"train.jsonl:{index + 1}",
        messages=(
            chat_messages.user(ASKS[index % 4] if category != CLEAN else f"Own {index}?", 1),
            chat_messages.assistant("Told."),
        ),
        images=(folder / name,),
        safe_type=None if category is None else DEFAULT.category_id(category),
        safe_level=None if level is None else DEFAULT.level_id(level),
    )


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """16 risky ones and 32 clean ones."""
    risky = [_record(tmp_path, index, "illegal", "must_refuse") for index in range(16)]
    return risky + [_record(tmp_path, index, CLEAN, SAFE) for index in range(16, 48)]


def _draw(
    records: Sequence[Record],
    counts: Counts,
    seed: int = 0,
    skip_text: bool = False,
    questions: ContrastiveQuestions = "malicious",
) -> Drawn:
    return draw(
        records,
        DEFAULT,
        counts,
        seed=seed,
        refusal=lambda record: f"No to {record.id}.",
        skip_text=skip_text,
        where="train.jsonl",
        questions=questions,
    )


def _part(drawn: Drawn, part: str) -> list[Pair]:
    return [pair for pair in drawn.pairs if pair.part == part]


def _asked(drawn: Drawn, part: str) -> Counter[str]:
    return Counter(pair.question for pair in _part(drawn, part))


@pytest.mark.parametrize("seed", range(3))
def test_a_question_tells_nothing_about_the_image(records: list[Record], seed: int) -> None:
    drawn = _draw(records, Counts(12, 12, 8), seed)
    assert _asked(drawn, "malicious") == _asked(drawn, "contrastive")


@pytest.mark.parametrize("seed", range(3))
def test_other_questions_are_of_risky_records_and_none_is_a_malicious_one(records: list[Record], seed: int) -> None:
    own = [
        dataclasses.replace(record, messages=(chat_messages.user(f"Ask {record.id}?", 1), record.messages[1]))
        for record in records
    ]
    drawn = _draw(own, Counts(6, 12, 8), seed, questions="other")
    malicious, contrastive = _asked(drawn, "malicious"), _asked(drawn, "contrastive")
    assert not set(malicious) & set(contrastive) and contrastive.total() == 12
    assert set(contrastive) <= {f"Ask r{index}?" for index in range(16)}, "questions of clean records tell the part"


def test_other_questions_that_are_not_there_are_an_error(records: list[Record]) -> None:
    with pytest.raises(RecordError, match=r"train\.jsonl: .*--contrastive-questions"):
        _draw(records, Counts(16, 12, 8), questions="other")


@pytest.mark.parametrize("contrastive", [6, 11, 24])
def test_questions_keep_their_shares_in_another_number(records: list[Record], contrastive: int) -> None:
    drawn = _draw(records, Counts(16, contrastive, 0))
    asked = _asked(drawn, "contrastive")
    for question, times in _asked(drawn, "malicious").items():
        assert abs(asked[question] - times * contrastive / 16) < 1, question


def test_questions_are_not_tied_to_the_order_of_images(records: list[Record]) -> None:
    questions = [pair.question for pair in _part(_draw(records, Counts(16, 16, 0)), "contrastive")]
    assert questions != sorted(questions)


def test_every_part_is_what_it_says(records: list[Record]) -> None:
    drawn = _draw(records, Counts(10, 12, 8))
    by_image = {record.images: record for record in records}
    assert [len(_part(drawn, part)) for part in ("malicious", "contrastive", "benign")] == [10, 12, 8]
    for pair in drawn.pairs:
        record = by_image[pair.images]
        is_malicious = pair.part == "malicious"
        assert (pair.category, pair.level) == (("illegal", "must_refuse") if is_malicious else (CLEAN, SAFE))
        assert pair.answer == (f"No to {record.id}." if is_malicious else None), "the bare model answers the others"
        own = record.messages[0]["content"][-1]["text"]
        assert (pair.question == own) == (pair.part != "contrastive")
    assert drawn.left_out == {"not needed": 18}


def test_no_image_occurs_twice_under_whatever_name(tmp_path: Path, records: list[Record]) -> None:
    again = [_record(tmp_path, 100 + index, CLEAN, SAFE, colour=index) for index in range(4)]  # of risky ones
    twins = [_record(tmp_path, 200 + index, CLEAN, SAFE, colour=index) for index in range(16, 20)]  # of clean ones
    drawn = _draw([*records, *again, *twins], Counts(16, 20, 12))
    pixels = Counter(Image.open(path).tobytes() for pair in drawn.pairs for path in pair.images)
    assert set(pixels.values()) == {1}
    assert sum(drawn.left_out.values()) == 8 and drawn.left_out["image taken already"] > 4


def test_same_seed_same_pairs(records: list[Record]) -> None:
    first, again, other = (_draw(records, Counts(8, 8, 8), seed) for seed in (1, 1, 2))
    assert first == again
    assert first.pairs != other.pairs


def test_records_that_are_neither_risky_nor_clean_are_left_out_and_counted(
    tmp_path: Path, records: list[Record]
) -> None:
    more = [_record(tmp_path, 100, None, None), _record(tmp_path, 101, "privacy", SAFE)]
    drawn = _draw([*records, *more], Counts(16, 16, 16))
    assert drawn.left_out == {"unlabelled": 1, "risky category at level safe": 1}


@pytest.mark.parametrize(("category", "level", "part"), [(None, SAFE, 1), (CLEAN, None, 1), (None, "careful", 0)])
def test_half_a_label_is_enough(tmp_path: Path, category: str | None, level: str | None, part: int) -> None:
    pair = [_record(tmp_path, 0, "insults", None), _record(tmp_path, 1, CLEAN, SAFE)]
    pair[part] = _record(tmp_path, part, category, level)
    assert [made.id for made in _draw(pair, Counts(1, 1, 0)).pairs] == ["malicious/r0", "contrastive/r1"]


def test_record_without_an_image_is_an_error_that_names_its_line_and_the_flag(records: list[Record]) -> None:
    records[5] = dataclasses.replace(
        records[5], images=(), messages=(chat_messages.user("Hi"), chat_messages.assistant("Hello."))
    )
    with pytest.raises(RecordError, match=r"^train\.jsonl:6: no image .*--skip-text"):
        _draw(records, Counts(4, 4, 4))
    drawn = _draw(records, Counts(15, 16, 16), skip_text=True)
    assert drawn.left_out == {"without an image": 1}


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        (Counts(17, 4, 4), ("train.jsonl: 16 records labelled risky", "17 are needed", "--malicious")),
        (Counts(16, 30, 3), ("train.jsonl: 32 records labelled clean", "33 are needed", "--contrastive or --benign")),
    ],
)
def test_too_few_records_are_an_error_that_says_what_to_lower(
    records: list[Record], counts: Counts, words: tuple[str, ...]
) -> None:
    with pytest.raises(RecordError) as error:
        _draw(records, counts)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("part", ["malicious", "contrastive", "benign"])
def test_senseless_count_is_an_error_that_names_the_flag(part: str) -> None:
    with pytest.raises(ValueError, match=f"--{part}: -1 is too small"):
        Counts(**{part: -1})


def test_broken_image_is_found_before_the_model_is_asked(records: list[Record]) -> None:
    records[3].images[0].write_bytes(b"no image")
    with pytest.raises(RecordError, match=r"^train\.jsonl:4: .*3\.png"):
        _draw(records, Counts(16, 4, 4))


def test_ids_that_stand_twice_get_a_number(tmp_path: Path) -> None:
    twice = [dataclasses.replace(_record(tmp_path, index, "illegal", "careful"), id="x") for index in range(2)]
    drawn = _draw(twice, Counts(2, 0, 0))
    assert [pair.id for pair in drawn.pairs] == ["malicious/x", "malicious/x#2"]


def test_first_question_about_images_and_its_images_are_taken(tmp_path: Path) -> None:
    one, two = (_record(tmp_path, index, "illegal", "must_refuse") for index in range(2))
    talk = (
        chat_messages.system("Be brief."),
        chat_messages.user("Hello!"),
        chat_messages.assistant("Hi."),
        *one.messages,
        chat_messages.user("And this?", 1),
        chat_messages.assistant("Told."),
    )
    record = dataclasses.replace(one, messages=talk, images=one.images + two.images)
    (pair,) = _draw([record], Counts(1, 0, 0)).pairs
    assert (pair.question, pair.images) == (ASKS[0], one.images)


def test_row_is_a_training_record_with_its_part(tmp_path: Path, records: list[Record]) -> None:
    for pair in _draw(records, Counts(2, 2, 2)).pairs:
        row = row_of(dataclasses.replace(pair, answer=pair.answer or "A cup."))
        record = parse_record(row, "pairs.jsonl:1", DEFAULT, tmp_path / "elsewhere")
        assert (record.part, record.images) == (pair.part, pair.images)
        assert record.messages == (
            chat_messages.user(pair.question, 1),
            chat_messages.assistant(pair.answer or "A cup."),
        )
        assert record.safe_type == DEFAULT.category_id(pair.category or "")


@pytest.mark.parametrize("part", ["SA set", "Harmful", "", 1, []])
def test_unknown_part_of_a_record_is_an_error(tmp_path: Path, records: list[Record], part: object) -> None:
    row = row_of(_draw(records, Counts(1, 0, 0)).pairs[0])
    with pytest.raises(RecordError, match=r"^pairs\.jsonl:7: unknown part .*malicious.*contrastive.*benign"):
        parse_record({**row, "part": part}, "pairs.jsonl:7", DEFAULT, tmp_path)
    assert parse_record({**row, "part": None}, "pairs.jsonl:7", DEFAULT, tmp_path).part == ""
