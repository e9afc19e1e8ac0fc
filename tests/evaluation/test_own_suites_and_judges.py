"""Questions and judges from outside the project: a YAML beside a table, and `package.module:NAME`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from safevlm.evaluation.judges.judging import judge
from safevlm.evaluation.runs.ask import ask
from safevlm.evaluation.runs.run import read_run
from safevlm.evaluation.suites import load_suite
from tests.evaluation.command import main
from tests.evaluation.world_of_runs import Parrot

SUITE = """
name: mine
file: questions.csv
images: pictures
fields: {id: nr, question: prompt, image: picture, group: kind}
groups:
  attacks: {side: harmful, title: attacks by image, image: always}
  plain: {side: benign}
judge: refusal
max_new_tokens: 16
"""
ROWS = ["nr,prompt,picture,kind", "1,What now?,a.png,attacks", "2,Who is it?,,plain", '3,"Fold, then?",a.png,plain']
JUDGE = """
from safevlm.evaluation.judges.base import Assessment, Judge

def short(case):
    value = float(len(case.answer) < 20)
    return Assessment(value, "short" if value else "long")

JUDGE = Judge(name="short", about="a short answer", measures={"benign": "1: short"}, counts={"benign": ("utility",)},
              score=short)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder outside the project, which is the current one."""
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "a.png")
    (tmp_path / "mine.yaml").write_text(SUITE)
    (tmp_path / "questions.csv").write_text("\n".join(ROWS) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(folder: Path, name: str = "run", reply: str = "I cannot help with that.") -> Path:
    ask(str(folder / "mine.yaml"), folder, "m", "none", folder / name, engine=Parrot(lambda request: reply))
    return folder / name


def test_own_questions_are_asked_judged_reported_and_compared(folder: Path) -> None:
    one, two = asked(folder), asked(folder, "other", "Fold it.")
    (folder / "mine.yaml").unlink()  # a run carries what reading it needs
    assert main(["judge", "--out", str(one)]) == 0 and main(["judge", "--out", str(two)]) == 0
    assert main(["report", "--run", f"a={one}", "--run", f"b={two}", "--out", "out"]) == 0
    rows = json.loads(Path("out/summary.json").read_text())["suites"]["mine"]
    assert (rows["a"]["asr"]["value"], rows["a"]["over_refusal"]["value"], rows["a"]["over_refusal"]["n"]) == (0, 1, 2)
    assert rows["b"]["asr"]["value"] == 1
    assert main(["compare", str(one), str(two)]) == 0
    assert read_run("x", one).suite.groups["attacks"].title == "attacks by image"


def test_a_changed_description_is_another_run(folder: Path) -> None:
    asked(folder)
    (folder / "mine.yaml").write_text(SUITE + "note: changed\n")
    with pytest.raises(ValueError, match="suite \\(its content\\)"):
        asked(folder)


def test_own_questions_are_listed_with_their_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suites", "--suite", str(folder / "mine.yaml")]) == 0
    assert main(["suites", "--tsv", "--suite", str(folder / "mine.yaml")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "mine\trefusal\trules\tthere\t-"


def test_repeats_have_their_own_ids_and_seeds(folder: Path) -> None:
    (folder / "mine.yaml").write_text(SUITE + "repeats: 2\ntemperature: 0.5\n")
    seen: list[tuple[float, int]] = []

    class Watching(Parrot):
        def reply_all(self, requests, generation=None, *, batch_size=8):  # noqa: ANN001, ANN202
            seen.append((generation.temperature, generation.seed))
            return super().reply_all(requests, generation, batch_size=batch_size)

    engine = Watching(lambda request: "x")
    assert ask(str(folder / "mine.yaml"), folder, "m", "none", folder / "run", seed=5, engine=engine) == 6
    assert seen == [(0.5, 5), (0.5, 6)]
    assert sorted(engine.asked) == ["1#1", "1#2", "2#1", "2#2", "3#1", "3#2"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("colour: red", "mine.yaml: unknown key 'colour'; one of"),
        ("repeats: 2", "set temperature"),
        ("side: harmful", "needs either `side`"),
        ("max_new_tokens: 0", "max_new_tokens: 0 is too small"),
        ("name: xstest", "no suite of ours"),
        ("fields: {id: gone, question: prompt, group: kind}", "questions.csv:2: no column 'gone'"),
        ("temperature: .nan", "'.nan' is not a finite number"),
        ("temperature: .inf", "'.inf' is not a finite number"),
        ("judge: refusal\njudge: phrases", "key 'judge' stands twice, the first time in line"),
        ("groups: {1: {side: harmful}, '1': {side: benign}}", "key '1' stands twice"),
        ("groups: {attacks: {side: evil}}", "unknown side 'evil'; one of"),
        ("groups: {attacks: {side: harmful}}", "questions.csv:3: unknown group 'plain'; one of"),
    ],
)
def test_a_wrong_description_names_the_place_and_the_fix(folder: Path, line: str, message: str) -> None:
    kept = [each for each in SUITE.splitlines() if not each.startswith(f"{line.split(':')[0]}:")]
    if line.startswith("groups"):
        kept = [each for each in kept if not each.startswith("  ")]
    (folder / "mine.yaml").write_text("\n".join([*kept, line]))
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load_suite(str(folder / "mine.yaml"), folder)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("4,,a.png,plain", "questions.csv:5: 'prompt' must be a text that is not empty"),
        ("1,Again?,a.png,plain", "questions.csv:5: id '1' stands at"),
        ("4,Who?,../mine.yaml,plain", "questions.csv:5: image '../mine.yaml' is not below"),
        ("4,Who?,a.png", "questions.csv:5: another number of cells"),
        ("4,Who?,,attacks", "questions.csv:5: group 'attacks' has always an image"),
        ("4,Who?,gone.png,plain", "1 of 4 rows lack their image: 4 (gone.png)"),
    ],
)
def test_a_row_is_never_dropped_in_silence(folder: Path, row: str, message: str) -> None:
    (folder / "questions.csv").write_text("\n".join([*ROWS, row]) + "\n")
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load_suite(str(folder / "mine.yaml"), folder)
    assert message in str(error.value)


def refusal(folder: Path, partial: bool = False) -> str:
    """What is said instead of samples."""
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load_suite(str(folder / "mine.yaml"), folder, partial)
    return str(error.value)


def test_a_repeated_key_names_its_line(folder: Path) -> None:
    (folder / "mine.yaml").write_text(SUITE + "name: other\n")
    last = len(SUITE.splitlines()) + 1
    assert f"mine.yaml:{last}: key 'name' stands twice, the first time in line 2" in refusal(folder)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("nr,prompt,picture,kind,nr", "questions.csv:1: column 'nr' stands twice"),
        ("nr,prompt,picture,kind,Picture", "questions.csv:2: no field reads column 'Picture'; did you mean 'picture'?"),
        ("nr,prompt,picture,kind, picture", "no field reads column ' picture'; did you mean 'picture'?"),
        ("nr,prompt,picture,kind,levels", "no field reads column 'levels'; did you mean 'level'?"),
        ("nr,prompt,picture,kind,system", "column 'system': suites of your own do not support system"),
        ("nr,prompt,picture,kind,History", "column 'History': suites of your own do not support history"),
    ],
)
def test_a_column_that_would_be_passed_over_is_an_error(folder: Path, header: str, message: str) -> None:
    (folder / "questions.csv").write_text("\n".join([header, *(f"{row},x" for row in ROWS[1:])]) + "\n")
    assert message in refusal(folder)


def test_other_columns_are_allowed(folder: Path) -> None:
    (folder / "questions.csv").write_text("\n".join([f"{ROWS[0]},remark", *(f"{row},x" for row in ROWS[1:])]) + "\n")
    assert len(load_suite(str(folder / "mine.yaml"), folder)) == 3


GOOD = '{"id": 1, "question": "What?"}'


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"id": 2, "question": "a", "question": "b"}', "key 'question' stands twice"),
        ('{"id": 2, "question": "a", "options": {"A": 1, "A": 2}}', "key 'A' stands twice"),
        ('{"id": 2, "question": "a", "images": ["a.png"]}', "no field reads column 'images'; did you mean 'image'?"),
        ('{"id": 2, "question": "a", "img": "a.png"}', "no field reads column 'img'; did you mean 'image'?"),
        ('{"id": 2, "question": "a \\ud83d"}', "half a character"),
        ('{"id": "\\udc00", "question": "a"}', "half a character"),
        ('{"id": 2, "question": "a", "category": "clean"}', "contradict each other"),
        ('{"id": 2, "question": "a", "level": "safe"}', "contradict each other"),
        ('{"id": 2, "question": "a", "category": "clean", "level": "safe"}', "contradict the side harmful"),
    ],
)
def test_every_row_of_a_jsonl_is_checked(folder: Path, row: str, message: str) -> None:
    (folder / "mine.yaml").write_text("{name: mine, file: q.jsonl, judge: refusal, side: harmful}")
    (folder / "q.jsonl").write_text(f"{GOOD}\n{row}\n")
    said = refusal(folder)
    assert "q.jsonl:2: " in said and message in said


def test_a_benign_row_has_no_risk(folder: Path) -> None:
    (folder / "mine.yaml").write_text("{name: mine, file: q.jsonl, judge: refusal, side: benign}")
    (folder / "q.jsonl").write_text('{"id": 1, "question": "a", "category": "illegal", "level": "must_refuse"}')
    assert "q.jsonl:1: " in refusal(folder) and "contradict the side benign" in refusal(folder)


@pytest.mark.parametrize("name", ["questions.csv", "q.jsonl"])
def test_a_table_that_is_not_utf_8_names_its_line(folder: Path, name: str) -> None:
    if name.endswith("jsonl"):
        (folder / "mine.yaml").write_text("{name: mine, file: q.jsonl, judge: refusal, side: harmful}")
    head = GOOD if name.endswith("jsonl") else ROWS[0]
    (folder / name).write_bytes(f"{head}\n".encode() + "4,é,,plain\n".encode("latin-1"))
    assert f"{name}:2: not UTF-8" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_an_image_that_does_not_open_is_told_before_asking(folder: Path, content: bytes | None) -> None:
    if content is None:  # cut off
        Image.effect_noise((64, 64), 50).save(folder / "pictures" / "b.png")
        content = (folder / "pictures" / "b.png").read_bytes()[:1000]
    (folder / "pictures" / "b.png").write_bytes(content)
    (folder / "questions.csv").write_text("\n".join([*ROWS, "4,Who?,b.png,plain"]) + "\n")
    said = refusal(folder)
    assert "1 of 4 rows lack their image: 4 (" in said and "questions.csv:5: " in said
    assert [sample.request.id for sample in load_suite(str(folder / "mine.yaml"), folder, partial=True)] == [
        "1",
        "2",
        "3",
    ]


def move_group(folder: Path) -> None:
    (folder / "questions.csv").write_text(
        "\n".join(ROWS).replace("1,What now?,a.png,attacks", "1,What now?,a.png,more")
    )


def move_image(folder: Path) -> None:
    (folder / "pictures" / "other").mkdir()
    (folder / "pictures" / "a.png").rename(folder / "pictures" / "other" / "a.png")
    (folder / "questions.csv").write_text("\n".join(ROWS).replace("a.png", "other/a.png"))


def change_image(folder: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(folder / "pictures" / "a.png")


@pytest.mark.parametrize("change", [move_group, move_image, change_image])
def test_other_groups_or_images_are_another_run(folder: Path, change: Callable[[Path], None]) -> None:
    (folder / "mine.yaml").write_text(SUITE.replace("  plain:", "  more: {side: harmful}\n  plain:"))
    out = asked(folder)
    old = json.loads((out / "run.json").read_text())
    change(folder)
    with pytest.raises(ValueError, match="groups_and_images \\(its content\\)"):
        asked(folder)
    del old["digests"]["groups_and_images"]
    (out / "run.json").write_text(json.dumps(old))
    asked(folder)  # a run from before that digest goes on as it did


def test_a_run_goes_on_where_its_data_has_moved(folder: Path) -> None:
    out = asked(folder)
    shutil.copytree(folder / "pictures", folder / "moved" / "pictures")
    shutil.copy(folder / "questions.csv", folder / "moved")
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(record | {"data": str(folder / "moved")}))
    engine = Parrot(lambda request: "x")
    assert ask(str(folder / "mine.yaml"), folder / "moved", "m", "none", out, engine=engine) == 0


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("judge.json", {"fingerprint": ...}, "judge.json: lacks 'fingerprint'"),
        ("judge.json", {"judge": None}, "judge.json: judge: None is not a text"),
        ("run.json", {"suite": None}, "run.json: suite: None is not a text"),
        ("run.json", {"model": None}, "run.json: model: None is not a text"),
        ("run.json", {"model": ...}, "run.json: lacks 'model'"),
    ],
)
def test_a_record_without_its_keys_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], file: str, change: dict[str, object], message: str
) -> None:
    one, two = asked(folder), asked(folder, "other")
    assert main(["judge", "--out", str(one)]) == 0 and main(["judge", "--out", str(two)]) == 0
    record = json.loads((one / file).read_text()) | change
    (one / file).write_text(json.dumps({key: value for key, value in record.items() if value is not ...}))
    capsys.readouterr()
    for command in (["compare", str(one), str(two)], ["report", "--run", f"a={one}", "--out", "out"]):
        assert main(command) != 0
        assert message in capsys.readouterr().err


def test_own_judges_count_what_their_row_says_and_reports_do_not_import_them(folder: Path) -> None:
    (folder / "my_judges.py").write_text(JUDGE)
    run = asked(folder, reply="Fold it.")
    assert [score.judge for score in judge(run, "my_judges:JUDGE")] == ["my_judges:JUDGE"] * 3
    (folder / "my_judges.py").write_text("raise SystemExit('imported by a report')")
    assert main(["report", "--run", f"a={run}", "--out", "out"]) == 0
    row = json.loads(Path("out/summary.json").read_text())["suites"]["mine"]["a"]
    assert (row["utility"]["value"], row["utility"]["n"]) == (1, 2) and "over_refusal" not in row
    assert "judge counts no harmful side" in Path("out/table.md").read_text()


def test_a_judge_named_by_a_folder_of_replies_does_not_run_by_itself(folder: Path) -> None:
    (folder / "my_judges.py").write_text(JUDGE)
    (folder / "mine.yaml").write_text(SUITE.replace("judge: refusal", "judge: my_judges:JUDGE"))
    run = asked(folder)
    with pytest.raises(ValueError, match="name it: --judge my_judges:JUDGE"):
        judge(run)
