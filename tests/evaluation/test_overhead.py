"""Overhead: paired, alternating, three times, and passes that are counted rather than claimed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safevlm.defenses import Defense
from safevlm.evaluation.runs.run import read_run
from safevlm.evaluation.speed.overhead import PASSES, TITLES, counted, overhead, timed_groups, told
from safevlm.evaluation.suites import SUITES
from safevlm.types import Generation, Reply, Request, Verdict
from tests.engine.engines import engine, image
from tests.evaluation.synthetic_runs import write_run
from tests.evaluation.world_of_runs import write_suite

pytestmark = pytest.mark.slow

SUITE = "miniature"


class Timed:
    """A real engine whose work takes as long as it is told: `look` to prepare, `word` per token that it may write."""

    def __init__(self, inner: Any, time: list[float], look: float, word: float, log: list[tuple[str, str]]) -> None:
        self.inner, self.time, self.look_takes, self.word_takes, self.log = inner, time, look, word, log

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def encoded(self, requests: list[Request]) -> Any:
        self.time[0] += self.look_takes
        self.log.append((self.name, requests[0].id))
        return self.inner.encoded(requests)

    def reply_all(self, requests: list[Request], generation: Generation, *, batch_size: int) -> list[Reply]:
        assert len(requests) == 1 == batch_size
        self.time[0] += self.look_takes + self.word_takes * generation.max_new_tokens
        self.log.append((self.name, requests[0].id))
        return self.inner.reply_all(requests, generation, batch_size=batch_size)

    @property
    def name(self) -> str:
        return self.inner.defense.name


class AsksAgain(Defense):
    """Puts the question again, `times` over, and looks at the whole answer."""

    name = "asks-again"

    def __init__(self, times: int = 1) -> None:
        self.times = times

    def review(self, request: Request, reply: Reply, verdict: Verdict) -> Reply:
        self.ask([request] * self.times, max_new_tokens=2)
        return reply


class Refuses(Defense):
    name = "refuses"

    def rewrite(self, request: Request, verdict: Verdict) -> Request | Reply:
        return Reply("No.", request, verdict, refused_by=self.name)


def behind(defense: Defense) -> Any:
    made = engine("none")
    return type(made)(made.loaded, defense, made.device)


def measured(tmp_path: Path, defended: Any, n: int = 4, **speed: float) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    data = write_suite(tmp_path / "data", per_group=n + 5)
    time, log = [0.0], []
    pair = (Timed(defended, time, speed.get("look", 6.0), 1.0, log), Timed(engine("none"), time, 2.0, 1.0, log))
    table = overhead(
        SUITE, data, "m", "d", "bare", tmp_path / "out", n=n, max_new_tokens=2, engines=pair, clock=lambda: time[0]
    )
    return table, log


def test_three_times_are_paired_and_the_whole_answer_is_the_ratio(tmp_path: Path) -> None:
    table, log = measured(tmp_path, engine("static-prompt"))
    for name, ratio in {"prepare": 6 / 2, "first_token": 7 / 3, "answer": 8 / 4}.items():
        one = table["times"][name]
        assert (one["value"], one["low"], one["high"], one["n"]) == (ratio, ratio, ratio, 4), name
    assert table["seconds"] == {"defended": 8.0, "bare": 4.0} == table["times"]["answer"]["seconds"]
    assert json.loads((tmp_path / "out" / "overhead.json").read_text())["value"] == 2.0
    assert all("benign" in name for _, name in log)
    firsts = [name for name, _ in log[18:][: 4 * 6 : 6]]
    assert firsts == ["static-prompt", "none"] * 2, "who goes first alternates after the warm-up"


def test_a_defense_that_reviews_shows_its_first_token_after_the_last(tmp_path: Path) -> None:
    table, _ = measured(tmp_path, behind(AsksAgain()), look=2.0)
    assert table["times"]["first_token"]["value"] == pytest.approx(4 / 3)
    assert table["times"]["answer"]["value"] == 1.0


def test_passes_are_counted_per_request_and_against_the_bare_model(tmp_path: Path) -> None:
    table, _ = measured(tmp_path, behind(AsksAgain(times=5)))
    assert table["passes"]["bare"]["tower"] == table["passes"]["bare"]["llm"] == 1
    assert (table["passes"]["extra"]["tower"], table["passes"]["extra"]["llm"]) == (5, 5), "five candidates are five"
    assert set(table["passes"]["extra"]) == set(PASSES)
    assert list(table["times"]) == list(TITLES) and "+5.00 prompts through the LLM" in "\n".join(told(table))


def test_a_defense_that_answers_itself_saves_the_pass_through_the_llm(tmp_path: Path) -> None:
    table, _ = measured(tmp_path, behind(Refuses()))
    assert table["passes"]["extra"]["llm"] == -1 == table["passes"]["extra"]["tower"]
    assert table["times"]["prepare"]["n"] == 4, "the time until it knows is a time"


def test_counting_leaves_no_hook_behind() -> None:
    made = engine("none")
    request = Request("What is it?", (image(1), image(2)))
    with counted(made) as counts:
        made.reply_all([request], Generation(max_new_tokens=3), batch_size=1)
        before = dict(counts)
    made.reply_all([request], Generation(max_new_tokens=3), batch_size=1)
    assert counts == before and (counts["tower"], counts["llm"]) == (2, 1)


def test_overhead_needs_enough_benign_requests(tmp_path: Path) -> None:
    data = write_suite(tmp_path / "data", per_group=3)
    with pytest.raises(ValueError, match="3 benign requests"):
        overhead(SUITE, data, "m", "none", "m", tmp_path / "out", engines=(engine("none"), engine("none")))


def test_overhead_is_timed_on_the_benign_side_of_any_suite() -> None:
    assert timed_groups(SUITES["miniature"]) == ("benign",)
    assert timed_groups(SUITES["xstest"]) == ("safe",)
    with pytest.raises(ValueError, match="no benign requests"):
        timed_groups(SUITES["advbench"])


def test_files_of_the_older_layout_are_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "miniature", good=0.5)
    old = {"value": 1.5, "n": 40, "low": 1.4, "high": 1.6, "seconds": {"defended": 3.0, "bare": 2.0}}
    (folder / "overhead.json").write_text(json.dumps(old))
    assert read_run("r", folder).latency_ratio.value == 1.5
