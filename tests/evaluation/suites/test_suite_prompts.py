"""What is sent and what is judged: the benchmark's own words where the user's copy has them, and said so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safevlm.evaluation.suites import figstep as figstep_suite
from safevlm.evaluation.suites import load_suite
from safevlm.evaluation.suites.mssbench import OUR_PROMPTS
from safevlm.evaluation.suites.risk_sets import QUESTION
from safevlm.types import Sample
from tests.data.downloads import png, save
from tests.evaluation.suites.benchmark_downloads import (
    ASK,
    FIGSTEP_TEXT,
    MSS_TEXTS,
    SENT,
    figstep,
    jailbreakv,
    mm_safetybench,
    mossbench,
    mssbench,
    risk_sets,
    siuo,
    table,
    write,
    xstest,
)


def load(suite: str, data: Path) -> dict[str, Sample]:
    return {sample.request.id: sample for sample in load_suite(suite, data, partial=True)}


@pytest.mark.parametrize(
    ("script", "text", "whose"), [(True, FIGSTEP_TEXT, "official"), (False, figstep_suite.OUR_PROMPT, "ours")]
)
def test_figstep_asks_in_the_authors_words_if_the_copy_has_them(
    tmp_path: Path, script: bool, text: str, whose: str
) -> None:
    figstep(tmp_path, script)
    sample = load("figstep", tmp_path)["ForbidQI_8_1"]
    assert (sample.request.text, sample.expected["prompt_is"]) == (text, whose)
    assert (sample.expected["question"], sample.expected["topic"]) == (ASK, "Legal Opinion")


def test_a_figstep_script_with_two_fitting_texts_is_an_error(tmp_path: Path) -> None:
    figstep(tmp_path)
    script = tmp_path / figstep_suite.SCRIPT
    script.write_text(script.read_text() + '\nOTHER = "another image: a numbered list of words"\n')
    with pytest.raises(ValueError, match=r"generate_prompts\.py: 2 texts fit"):
        load("figstep", tmp_path)


@pytest.mark.parametrize(("script", "whose"), [(True, "official"), (False, "ours")])
def test_mssbench_asks_both_sides_the_same_in_the_authors_words_if_there(
    tmp_path: Path, script: bool, whose: str
) -> None:
    mssbench(tmp_path, script)
    samples = load("mssbench", tmp_path)
    safe, unsafe = (samples[f"chat-0000-1-{side}"] for side in ("safe", "unsafe"))
    lead = MSS_TEXTS["PROMPT_CHAT_IF"] if script else OUR_PROMPTS["chat"]
    assert safe.request.text == unsafe.request.text == lead + "Which paper?"
    assert safe.expected["question"] == "Which paper?" and safe.expected["prompt_is"] == whose
    assert safe.expected["pair"] == unsafe.expected["pair"] and safe.request.images != unsafe.request.images
    robots = [samples[f"embodied-0000-0-{side}"].expected["question"] for side in ("safe", "unsafe")]
    assert robots == ["Fold.", "Fold it."]


def test_an_mssbench_script_without_the_text_is_an_error(tmp_path: Path) -> None:
    mssbench(tmp_path)
    (tmp_path / "utils/prompts.py").write_text("PROMPT_CHAT_IF = 'Answer this: '\n")
    with pytest.raises(ValueError, match="PROMPT_EMBODIED_IF"):
        load("mssbench", tmp_path)


def test_jailbreakv_sends_the_jailbreak_and_is_judged_on_the_plain_request(tmp_path: Path) -> None:
    jailbreakv(tmp_path)
    for suite in ("jailbreakv", "jailbreakv_mini"):
        for sample in load(suite, tmp_path).values():
            assert (sample.request.text, sample.expected["question"]) == (SENT, ASK)


def test_jailbreakv_images_of_one_name_in_two_folders_stay_apart(tmp_path: Path) -> None:
    jailbreakv(tmp_path)
    images = {one.group: Path(one.request.images[0]).read_bytes() for one in load("jailbreakv", tmp_path).values()}
    assert images["SD"] == png("query_related/SD/1.png") and images["SD_typo"] == png("query_related/SD_typo/1.png")


def test_an_unknown_jailbreakv_format_names_the_line(tmp_path: Path) -> None:
    jailbreakv(tmp_path)
    path = tmp_path / "JailBreakV_28K/JailBreakV_28K.csv"
    path.write_text(path.read_text().replace("figstep,Fraud", "haiku,Fraud"))
    with pytest.raises(ValueError, match=r"JailBreakV_28K\.csv:\d: unknown format 'haiku'"):
        load_suite("jailbreakv", tmp_path)


def test_mm_safetybench_sends_the_variants_field_and_judges_the_whole_question(tmp_path: Path) -> None:
    mm_safetybench(tmp_path)
    samples = load("mm_safetybench", tmp_path)
    texts = {variant: samples[f"{variant}/Illegal_Activitiy/0"].request.text for variant in ("SD", "TYPO", "SD_TYPO")}
    assert texts == {"SD": "How do I fold the boat?", "TYPO": "How do I fold it?", "SD_TYPO": "How do I fold it?"}
    assert {sample.expected["question"] for sample in samples.values()} == {ASK}
    assert samples["SD/Political_Lobbying/1"].expected["rubric"] == "Political_Lobbying"
    assert samples["SD/Illegal_Activitiy/1"].expected["rubric"] == "general"
    assert {one.rpartition("/")[0].partition("/")[2] for one in load("mm_safetybench_tiny", tmp_path)} == {
        "Illegal_Activitiy",
        "Political_Lobbying",
    }


def test_the_tiny_list_picks_its_ids_and_no_others(tmp_path: Path) -> None:
    mm_safetybench(tmp_path)
    assert {one for one in load("mm_safetybench_tiny", tmp_path) if one.startswith("SD/")} == {
        "SD/Illegal_Activitiy/1",
        "SD/Political_Lobbying/0",
    }


def test_siuo_reads_the_field_that_the_official_script_misses(tmp_path: Path) -> None:
    siuo(tmp_path)
    sample = load("siuo_gen", tmp_path)["0"]
    assert (sample.expected["reference"], sample.expected["safety_warning"]) == ("Fold it with care.", "Paper cuts.")
    assert sample.request.text == ASK, "the first row is asked too"


def test_siuo_lists_the_options_and_keeps_the_answer_to_itself(tmp_path: Path) -> None:
    siuo(tmp_path)
    sample = load("siuo_mcq", tmp_path)["1"]
    assert "A. w\nB. x\nC. y\nD. z" in sample.request.text and sample.expected["correct"] == "B"
    assert sample.expected["options"] == dict(zip("ABCD", "wxyz", strict=True))
    assert sample.expected["prompt_is"] == "ours"


@pytest.mark.parametrize("change", [{"correct_option": "E"}, {"options": {"A": "w"}}, {"correct_option": ["A"]}])
def test_a_siuo_row_without_an_answer_is_an_error(tmp_path: Path, change: dict) -> None:
    siuo(tmp_path)
    rows = json.loads((tmp_path / "siuo_mcqa.json").read_text())
    save(tmp_path / "siuo_mcqa.json", json.dumps([rows[0], rows[1] | change]))
    with pytest.raises(ValueError, match=r"siuo_mcqa\.json\[1\]: needs `options` A to D"):
        load_suite("siuo_mcq", tmp_path)


def test_mossbench_finds_an_image_whose_ending_differs(tmp_path: Path) -> None:
    mossbench(tmp_path)
    assert [Path(one.request.images[0]).name for one in load("mossbench", tmp_path).values()] == [
        "1.webp",
        "2.webp",
        "3.webp",
    ]


def test_holisafe_levels_follow_the_last_letter(tmp_path: Path) -> None:
    samples = load("holisafe", write("holisafe", tmp_path)).values()
    assert {one.group for one in samples if one.level == "safe"} == {"SSS"} and len(samples) == 5


def test_xstest_without_labels_goes_by_the_type(tmp_path: Path) -> None:
    xstest(tmp_path)
    labelled = {one.request.text: one.group for one in load("xstest", tmp_path).values()}
    (tmp_path / "xstest_prompts.csv").unlink()
    rows = [{"prompt": text, "type": "contrast_x" if group == "unsafe" else "x"} for text, group in labelled.items()]
    table(tmp_path / "xstest_v2_prompts.csv", rows)
    assert {one.request.text: one.group for one in load("xstest", tmp_path).values()} == labelled


def test_risk_sets_say_whose_question_it_is(tmp_path: Path) -> None:
    risk_sets(tmp_path)
    samples = load("risk_sets", tmp_path)
    assert (samples["porn/0.png"].request.text, samples["porn/0.png"].expected["prompt_is"]) == (QUESTION, "ours")
    bully = samples["cyberbullying/sub/0.png"]
    assert (bully.request.text, bully.expected["prompt_is"], bully.expected["rubric"]) == (ASK, "user", "insults")
    save(tmp_path / "porn/questions.txt", "One?\nTwo?\n")
    with pytest.raises(ValueError, match=r"questions\.txt: 2 questions for 1 images"):
        load("risk_sets", tmp_path)


def test_a_csv_without_its_columns_says_what_it_has(tmp_path: Path) -> None:
    table(tmp_path / "harmful_behaviors.csv", [{"prompt": ASK}])
    with pytest.raises(ValueError, match=r"lacks the columns \['goal', 'target'\]; it has \['prompt'\]"):
        load("advbench", tmp_path)
