"""The real LiteLLM proxy asks the guard; it is a program of its own, found on the PATH or as $LITELLM."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from safevlm.defenses import Policy
from safevlm.taxonomy import DEFAULT
from tests.engine import engines
from tests.serve.serving import Served, listening, serving, uri
from tests.serve.upstreams import Recorder

PROGRAM = os.environ.get("LITELLM") or shutil.which("litellm")
STARTS = 240
KEY = "open-sesame"
MASTER = "sk-open-sesame"
"""Without a key of its own the proxy does not start."""
TEXT = "What is it?"
IMAGE = uri(engines.image(1))
PICTURE = {"type": "image_url", "image_url": {"url": IMAGE}}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="needs LiteLLM's proxy: pip install 'litellm[proxy]', then $LITELLM"),
]


@dataclass(frozen=True)
class Proxied:
    """A proxy between a client, a guard and a model."""

    address: str
    guard: Served
    model: Recorder

    def ask(self, *parts: Any, system: str = "") -> tuple[int, int, str]:
        """Status, how many times the model was asked, and what came."""
        self.model.reset()
        lead = [{"role": "system", "content": system}] if system else []
        body = {"model": "stock", "messages": [*lead, {"role": "user", "content": list(parts)}]}
        headers = {"Authorization": f"Bearer {MASTER}"}
        answer = httpx2.post(
            f"{self.address}/v1/chat/completions", json=body, headers=headers, timeout=60, trust_env=False
        )
        return answer.status_code, len(self.model.bodies), answer.text


@contextmanager
def proxied(policy: Policy, folder: Path) -> Iterator[Proxied]:
    """LiteLLM in front of a model that notes what it gets; every image is risky."""
    recorder = Recorder()
    engine = engines.engine("safety-head", says=("must_refuse", "illegal"), policy=policy)
    with listening(recorder) as there, serving(engine, keys=(KEY,)) as guard, socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
        place.close()
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(config_of(there, guard.address)), encoding="utf-8")
        command = [str(PROGRAM), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
        # The suite's own settings (a server's key, PYTHONPATH) are none of the proxy's.
        settings = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": MASTER, "HOME": str(folder)}
        settings["PATH"] = os.environ["PATH"]
        with (folder / "log.txt").open("wb") as log:
            running = subprocess.Popen(command, env=settings, cwd=folder, stdout=log, stderr=log)
            try:
                address = f"http://127.0.0.1:{port}"
                wait_for(f"{address}/health/liveliness", running)
                yield Proxied(address, guard, recorder)
            finally:
                running.terminate()
                running.wait(30)


def config_of(model: str, guard: str) -> dict[str, Any]:
    """As the documentation has it."""
    asked = {"model": "openai/stock", "api_base": f"{model}/v1", "api_key": "none"}
    guardrail = {
        "guardrail": "generic_guardrail_api",
        "mode": "pre_call",
        "default_on": True,
        "api_base": guard,
        "api_key": KEY,
        "unreachable_fallback": "fail_closed",
        "fail_on_error": True,
    }
    return {
        "model_list": [{"model_name": "stock", "litellm_params": asked}],
        "guardrails": [{"guardrail_name": "safevlm", "litellm_params": guardrail}],
    }


def wait_for(url: str, running: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + STARTS
    while time.monotonic() < deadline and running.poll() is None:
        try:
            if httpx2.get(url, timeout=2, trust_env=False).status_code == 200:
                return
        except httpx2.HTTPError:
            time.sleep(0.5)
    raise AssertionError("the proxy did not start")


def test_the_proxy_blocks_what_it_shows_to_the_guard_and_an_image_alone_passes_unseen(tmp_path: Path) -> None:
    with proxied(Policy(DEFAULT, {"must_refuse": "refuse"}), tmp_path) as proxy:
        words = {"type": "text", "text": TEXT}
        status, asked, told = proxy.ask(words)
        assert (status, asked) == (200, 1), told
        status, asked, told = proxy.ask(words, PICTURE)
        assert (status, asked) == (400, 0), told
        status, asked, told = proxy.ask(PICTURE, system="Be brief.")
        assert (status, asked) == (400, 0), told
        looked = proxy.guard.model.metrics.images._value.get()
        status, asked, told = proxy.ask(PICTURE)
        assert (status, asked) == (200, 1), told  # LiteLLM's hole, which the documentation tells
        assert proxy.guard.model.metrics.images._value.get() == looked


def test_the_proxy_asks_the_model_in_the_words_with_the_hint(tmp_path: Path) -> None:
    with proxied(Policy(DEFAULT, {"must_refuse": "hint"}), tmp_path) as proxy:
        status, asked, told = proxy.ask({"type": "text", "text": TEXT}, PICTURE)
        assert (status, asked) == (200, 1), told
        parts = proxy.model.bodies[0]["messages"][-1]["content"]
        (said,) = [part["text"] for part in parts if part["type"] == "text"]
        assert TEXT in said and said != TEXT
        assert PICTURE in parts
