"""What `/defense`, `/policy`, `/compare` and `/save` do in a conversation with a real tiny model."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from safevlm.data.images import open_image
from safevlm.engine import Engine
from safevlm.serve.console.local_model import LocalModel
from safevlm.serve.console.partners import Sampling
from safevlm.types import Generation, Request
from tests.engine import engines
from tests.serve.talking import Talk, typing

RISK = ("may_refuse", "illegal")
QUESTION = "What is in the picture?"
SHORT = Sampling(max_new_tokens=6)


@pytest.fixture
def engine() -> Engine:
    return engines.engine("safety-head", says=RISK)


@pytest.fixture
def image(tmp_path: Path) -> str:
    file = tmp_path / "scene.png"
    engines.image().save(file)
    return str(file)


@pytest.fixture
def talk(engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Talk:
    typed = typing(monkeypatch, capsys)
    return lambda *lines, **options: typed(LocalModel(engine, "safety-head"), *lines, **{"sampling": SHORT, **options})


@pytest.fixture
def refusing(tmp_path: Path) -> str:
    file = tmp_path / "policy.yaml"
    file.write_text("levels: {may_refuse: refuse}", encoding="utf-8")
    return str(file)


def test_answers_are_the_engines_own(engine: Engine, talk: Talk, image: str) -> None:
    expected = engine.reply(Request(QUESTION, (image,)), Generation(6)).text
    assert talk([QUESTION], [image]) == [f"{expected}\n"]


def test_policy_changes_what_the_same_model_does_and_the_talk_goes_on(talk: Talk, image: str, refusing: str) -> None:
    out = talk([QUESTION, f"/policy {refusing}", "And?", "/why", "/policy", "And?", "/why"], [image])
    assert refusing in out[1]
    assert "the model was not asked" in out[3] and "illegal content" in out[2]
    assert "the model was not asked" not in out[6], "the model's own policy does not come back"


def test_defense_changes_and_the_talk_goes_on(talk: Talk, image: str) -> None:
    out = talk([QUESTION, "/defense none", "And?", "/why", "/defense"], [image])
    assert out[1].endswith("behind none\n")
    assert out[3].startswith("not looked: none did not look")
    assert "behind none" in out[4] and "safe-clip" in out[4]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/defense magic", "magic"),
        ("/policy nowhere.yaml", "nowhere.yaml"),
        ("/policy", "behind safety-head"),
        ("/policy a b", "/policy FILE"),
        ("/save", "/save FILE"),
        ("/compare", "behind none"),
    ],
)
def test_what_a_command_cannot_do_is_one_line_and_changes_nothing(talk: Talk, image: str, line: str, told: str) -> None:
    out = talk([QUESTION, line, "/defense"], [image])
    assert told in out[1] and (out[1].startswith("error: ") == (out[1].count("\n") == 1 and "error" in out[1]))
    assert "behind safety-head" in out[2]


def test_a_policy_that_could_not_act_is_refused(talk: Talk, refusing: str) -> None:
    out = talk(["/defense none", f"/policy {refusing}"])
    assert out[1].startswith("error: ") and "none never looks" in out[1]


def test_compare_shows_the_guarded_answer_and_the_bare_ones(
    engine: Engine, talk: Talk, image: str, refusing: str
) -> None:
    out = talk([f"/policy {refusing}", "/compare", QUESTION, "/compare", "/why"], [image])
    assert out[1] == "nothing was asked yet\n"
    bare = engine.behind("none").reply(Request(QUESTION, (image,)), Generation(6)).text
    guarded = out[2]
    title, first, other, second = out[3].splitlines()
    assert "behind safety-head" in title and f"{first}\n" == guarded
    assert "behind none" in other and second == bare
    assert "the model was not asked" in out[4], "the bare answer took the place of the guarded one"


# --- /save ------------------------------------------------------------------------------------------------------------


def test_saved_conversation_is_messages_that_can_be_asked_again(
    engine: Engine, talk: Talk, image: str, tmp_path: Path
) -> None:
    file = tmp_path / "talk.json"
    out = talk([QUESTION, f"/image {image}", "And?", f"/save {file}"], [image], system="Be brief.")
    assert str(file) in out[3]
    saved = json.loads(file.read_text(encoding="utf-8"))
    request = Request.from_messages(saved["messages"][:-1])
    assert request.turns == ((QUESTION, 1), ("And?", 1)) and request.system == "Be brief."
    assert [open_image(source).tobytes() for source in request.images] == [open_image(image).tobytes()] * 2
    assert engine.reply(request, Generation(6)).text == saved["messages"][-1]["content"]
    assert [answer["message"] for answer in saved["answers"]] == [2, 4]
    assert all(answer["verdict"]["category"] == "illegal" for answer in saved["answers"])
    assert not any(answer["stopped"] for answer in saved["answers"])


def test_saving_overwrites_nothing_that_nobody_agreed_to(talk: Talk, image: str, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    file.write_text("mine", encoding="utf-8")
    out = talk([QUESTION, f"/save {file}", "And?"], [image])
    assert out[1].startswith("error: ") and str(file) in out[1]
    assert file.read_text(encoding="utf-8") == "mine"
    assert out[2].strip()


def test_saving_nothing_or_into_a_folder_is_an_error(talk: Talk, image: str, tmp_path: Path) -> None:
    out = talk(["/save a.json", QUESTION, f"/save {tmp_path}"], [image])
    assert out[0].startswith("error: nothing was said yet")
    assert out[2].startswith("error: ") and "folder" in out[2]
    assert not list(tmp_path.glob("*.json")) and stat.S_ISDIR(tmp_path.stat().st_mode)
