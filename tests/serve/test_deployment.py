"""What a deployer decides holds for every request: policies of keys, monitoring, known images, and what is kept."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from safevlm.defenses import Policy
from safevlm.serve.deployment import Deployer, DeploymentFiles
from safevlm.serve.keys import read_digests, read_keys
from safevlm.serve.record import DecisionRecord
from safevlm.serve.reload import Reloading
from safevlm.serve.settlement import Settlement
from safevlm.serve.spans import Spans
from safevlm.taxonomy import DEFAULT
from safevlm.types import Generation, Request, Verdict
from tests.engine import engines
from tests.serve.serving import NAME, Served, asked, image_part, listening, serving
from tests.serve.upstreams import Recorder, fronting

RISK = ("must_refuse", "illegal")
REFUSES = "levels: {must_refuse: refuse}\n"
SEEN = engines.image(1)


def hashed(text: str | bytes) -> str:
    return hashlib.sha256(text if isinstance(text, bytes) else text.encode()).hexdigest()


@contextmanager
def deployed(**files: Any) -> Iterator[tuple[Served, Deployer]]:
    """A server whose head sees must_refuse everywhere; its own policy hints."""
    with serving(engines.engine("safety-head", says=RISK)) as served:
        took = served.model.metrics.guard_seconds.observe
        deployer = Deployer(served.model.engine, DeploymentFiles(defense="safety-head", **files), took)
        served.model.deployment = deployer.read()
        yield served, deployer


def ask(served: Served, key: str = "none", *, images: tuple[Any, ...] = (SEEN,), **options: Any) -> Any:
    messages = [asked("What is it?", *images)]
    given = {"model": NAME, "messages": messages, "max_tokens": 4} | options
    return served.client(api_key=key).chat.completions.create(**given)


def finish(served: Served, key: str = "none", **options: Any) -> str | None:
    return str(ask(served, key, **options).choices[0].finish_reason)


def metric(served: Served, name: str, **labels: str) -> float:
    return served.model.metrics.registry.get_sample_value(f"safevlm:{name}", labels) or 0.0


def policy_file(folder: Path, text: str = REFUSES) -> Path:
    path = folder / "strict.yaml"
    path.write_text(text)
    return path


def keys_file(folder: Path, text: str | None = None) -> Path:
    policy_file(folder)
    path = folder / "keys.yaml"
    path.write_text(
        text
        or f"strict: {{sha256: {hashed('first')}, policy: strict.yaml}}\n"
        f"tries: {{sha256: {hashed('second')}, policy: strict.yaml, monitor: true}}\n"
        f"plain: {{sha256: {hashed('third')}}}\n"
    )
    return path


def test_a_monitored_policy_acts_on_nothing_and_counts_what_it_would_block(tmp_path: Path) -> None:
    bare = engines.engine("none", says=RISK).reply(Request("What is it?", (SEEN,)), Generation(4))
    with deployed(policy=policy_file(tmp_path), monitor=True) as (served, _):
        assert ask(served).choices[0].message.content == bare.text
        pieces = list(ask(served, stream=True))
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == bare.text
        assert finish(served, images=()) != "content_filter"  # nobody looks at words alone
        assert metric(served, "would_block_total") == 2
        assert metric(served, "requests_total", action="passed") == 3
        assert finish(served, extra_body=moderation("block")) == "content_filter"  # the request's own wish


def moderation(mode: str) -> dict[str, Any]:
    return {"moderation": {"model": "any", "policy": {"input": {"mode": mode}}}}


def test_a_detector_that_fails_while_it_is_monitored_lets_through_and_is_counted() -> None:
    with deployed(monitor=True) as (served, _):
        served.model.engine.defense.detect = lambda request, features: 1 / 0
        assert finish(served) != "content_filter"
        assert metric(served, "guard_errors_total", stage="detector") == 1
        assert metric(served, "would_block_total") == 1


def test_each_key_has_its_own_policy_and_an_unknown_key_has_none(tmp_path: Path) -> None:
    with deployed(keys=keys_file(tmp_path), api_keys=("fourth",)) as (served, _):
        outcomes = {key: finish(served, key) for key in ("first", "second", "third", "fourth")}
        assert {key for key, outcome in outcomes.items() if outcome == "content_filter"} == {"first"}
        assert metric(served, "requests_total", action="hinted") == 2
        for key in ("strict", hashed("first"), "none"):
            with pytest.raises(openai.AuthenticationError):
                ask(served, key)


def test_a_key_that_was_taken_out_is_not_answered_by_another_policy(tmp_path: Path) -> None:
    """Also when it was taken out between the gate and the model."""
    with deployed(keys=keys_file(tmp_path)) as (served, _):
        treatments = dict(served.model.deployment.treatments)
        del treatments["strict"]
        object.__setattr__(served.model.deployment, "treatments", treatments)
        with pytest.raises(openai.AuthenticationError):
            ask(served, "first")


BAD_KEYS = {
    "in clear": ("a: {sha256: my-secret-key}", ":1:"),
    "a number in clear": ("a: {sha256: 90210}", ":1:"),
    "no hash": ("a: {policy: strict.yaml}", "sha256"),
    "an unknown key": (f"a: {{sha256: {hashed('x')}, moniter: true}}", "moniter"),
    "no key": ("{}", "no key"),
    "one key twice": (f"a: {{sha256: {hashed('x')}}}\nb: {{sha256: {hashed('x')}}}", "same key"),
    "a repeated name": (f"a: {{sha256: {hashed('x')}}}\na: {{sha256: {hashed('y')}}}", ":2:"),
}


@pytest.mark.parametrize("name", BAD_KEYS)
def test_a_wrong_file_of_keys_is_told_by_its_place_and_repeats_no_key(tmp_path: Path, name: str) -> None:
    text, told = BAD_KEYS[name]
    with pytest.raises(ValueError, match="keys.yaml") as caught:
        read_keys(keys_file(tmp_path, text))
    assert told in str(caught.value)
    assert "secret" not in str(caught.value) and "90210" not in str(caught.value)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_changed_files_are_read_again_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    path = keys_file(tmp_path)
    with deployed(keys=path) as (served, deployer):
        reopened: list[bool] = []
        reloading = Reloading(served.model, deployer, lambda: reopened.append(True), every=0.02)
        reloading.start()

        def told() -> dict[str, Any]:
            answer = served.client()._client.get(f"{served.address}/healthz")
            assert answer.status_code == 200
            return dict(answer.json())

        policy_file(tmp_path, "levels: {must_refuse: hint}\n")  # a file that the file of keys names
        until(lambda: finish(served, "first") != "content_filter")
        path.write_text("strict: {sha256: nothing}\n")
        until(lambda: "configuration" in told())
        assert str(tmp_path) not in str(told())
        assert finish(served, "first") != "content_filter"  # what was read before is in force
        path.write_text(f"new: {{sha256: {hashed('fifth')}}}\n")
        until(lambda: "configuration" not in told())
        assert finish(served, "fifth") != "content_filter"
        with pytest.raises(openai.AuthenticationError):
            ask(served, "first")
        reloading.ask()
        until(lambda: bool(reopened))
        reloading.close()
        assert metric(served, "reloads_total", outcome="failed") >= 1  # also half a file, while it is written


def test_a_policy_that_stays_the_same_keeps_its_engine(tmp_path: Path) -> None:
    with deployed(keys=keys_file(tmp_path)) as (_, deployer):
        first, second = deployer.read(), deployer.read()
        assert first.treatments["strict"].acting is second.treatments["strict"].acting
        versions = {name: each.version for name, each in second.treatments.items()}
        assert versions["strict"] == versions["tries"] != versions["plain"]


def test_a_policy_without_a_detector_is_an_error() -> None:
    engine = engines.engine("none")
    with pytest.raises(ValueError, match="--monitor"):
        Deployer(engine, DeploymentFiles("none", monitor=True), float).read()


def test_known_images_are_not_acted_on_unless_another_one_is_beside_them(tmp_path: Path) -> None:
    listed = tmp_path / "known.txt"
    file = image_part(SEEN)["image_url"]["url"].partition(",")[2]
    listed.write_text(f"# a cup\n{hashed(__import__('base64').b64decode(file))}  cup.png\n")
    with deployed(policy=policy_file(tmp_path), known_images=listed) as (served, _):
        assert finish(served) != "content_filter"
        assert finish(served, images=(SEEN, SEEN)) != "content_filter"
        assert metric(served, "requests_total", action="allowed") == 2
        assert finish(served, images=(SEEN, engines.image(2))) == "content_filter"
        assert finish(served, extra_body=moderation("block")) == "content_filter"
        ask(served, images=())
        assert metric(served, "requests_total", action="allowed") == 2


def test_a_list_of_images_is_wrong_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "known.txt"
    path.write_text(f"{hashed('a')}\ncup.png\n")
    with pytest.raises(ValueError, match=r"known\.txt:2:"):
        read_digests(path)


def test_a_record_says_who_what_and_why_and_nothing_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    path.touch(0o644)
    with deployed(keys=keys_file(tmp_path)) as (served, _):
        served.model.keepers.append(DecisionRecord(path))
        refused = ask(served, "first")
        ask(served, "second", stream=True).close()
        list(ask(served, "second", stream=True))
        served.model.engine.defense.detect = lambda request, features: 1 / 0
        ask(served, "third")
        until(lambda: len(path.read_text().splitlines()) == 4)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    first = rows[0]
    assert (first["id"], first["key"], first["action"]) == (refused.id, "strict", "refused")
    assert first["verdict"]["category"] == "illegal" and first["verdict"]["category_probabilities"]["illegal"] > 0.9
    assert first["policy"] == served.model.deployment.treatments["strict"].version and len(first["images"]) == 1
    assert first["time"].endswith("Z")
    assert rows[2]["would_refuse"] and rows[2]["action"] == "passed"
    assert rows[3]["verdict"]["error"] is True
    text = path.read_text()
    assert not [said for said in ("What is it", "division", "first") if said in text]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_full_disk_stops_no_request_and_is_counted() -> None:
    with deployed() as (served, _):
        served.model.keepers.append(DecisionRecord(Path("/dev/full")))
        assert ask(served).choices[0].message.content is not None
        assert metric(served, "record_errors_total", to="record") == 1


SETTLED = Settlement(
    id="one",
    key="ward",
    action="hinted",
    verdict=Verdict("careful", "privacy", {"careful": 1.0}, {"privacy": 0.75}, source="head"),
    policy="1234",
    is_monitor=False,
    would_refuse=False,
    images=("ab",),
    began=1_700_000_000.0,
    seconds=0.5,
)


def test_a_line_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = DecisionRecord(tmp_path / "record.jsonl")
    record.keep(SETTLED)
    write, calls = os.write, []

    def fills_up(file: int, content: bytes) -> int:
        calls.append(1)
        if len(calls) > 1:
            raise OSError(28, "full")
        return write(file, content[:10])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", fills_up)
        with pytest.raises(OSError, match="full"):
            record.keep(SETTLED)
    record.path.rename(tmp_path / "older.jsonl")
    record.reopen()
    record.keep(SETTLED)
    lines = (tmp_path / "older.jsonl").read_text(), record.path.read_text()
    assert [json.loads(line)["id"] for line in lines] == ["one", "one"]
    record.close()


def test_a_span_keeps_verdict_risk_and_action_apart() -> None:
    pytest.importorskip("opentelemetry.sdk", reason="spans need opentelemetry-sdk (extra otel)")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    Spans(provider.get_tracer("test")).keep(SETTLED)
    (span,) = exporter.get_finished_spans()
    told = dict(span.attributes or {})
    assert told["safevlm.verdict.flagged"] is True and told["safevlm.verdict.detector"] == "head"
    assert (told["safevlm.risk.level"], told["safevlm.risk.category.privacy"]) == ("careful", 0.75)
    assert told["safevlm.action.type"] == "hinted" and told["safevlm.policy.version"] == "1234"
    assert span.end_time is not None and span.start_time is not None
    assert span.end_time - span.start_time == 500_000_000


def test_what_came_of_a_whole_answer_is_counted_once_and_before_it_is_sent() -> None:
    policy = Policy(DEFAULT, {"must_refuse": "refuse"})
    with serving(engines.engine("safety-head", says=RISK, policy=policy)) as served:
        ask(served)
        counted = {action: metric(served, "requests_total", action=action) for action in ("refused", "left")}
        assert counted == {"refused": 1, "left": 0}
        assert metric(served, "guard_seconds_count") == 1


def test_policies_of_keys_hold_in_front_of_another_server_too(tmp_path: Path) -> None:
    upstream = Recorder()
    with listening(upstream) as there, fronting(engines.engine("safety-head", says=RISK), there) as front:
        files = DeploymentFiles(defense="safety-head", keys=keys_file(tmp_path))
        front.model.deployment = Deployer(front.model.engine, files, float).read()
        front.model.keepers.append(DecisionRecord(tmp_path / "record.jsonl"))
        assert finish(front, "first") == "content_filter"
        assert not upstream.bodies
        assert finish(front, "second") == finish(front, "third") == "stop"
        assert metric(front, "would_block_total") == 1
        rows = [json.loads(line) for line in (tmp_path / "record.jsonl").read_text().splitlines()]
    assert [(row["key"], row["action"]) for row in rows] == [
        ("strict", "refused"),
        ("tries", "passed"),
        ("plain", "hinted"),
    ]
