"""A `safevlm` for shell scripts that begins with everything imported: it has this process fork one (see `forked`).

Unlike one that is started anew it reads no stdin, and what libraries read from the environment while they are imported
is this process's. That an installed `safevlm` starts at all is tested with the wheel.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socketserver
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests import forked

CLIENT = """#!{python} -IS
import json, os, socket, sys
asked = socket.socket(socket.AF_UNIX)
asked.connect({address!r})
asked.sendall(json.dumps([os.getpid(), sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
asked.shutdown(socket.SHUT_WR)
sys.exit(int(asked.recv(16) or {lost}))
"""
LOST = 70
"""Exit code where the command could not begin, or its end was not told."""
LOOKED = 0.02
"""Seconds between two looks at a process."""


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder for PATH with this `safevlm` in it."""
    with tempfile.TemporaryDirectory() as made:  # a socket's address is short, where pytest's folders are not
        place = Path(made)
        address = str(place / "socket")
        client = place / "bin" / "safevlm"
        client.parent.mkdir()
        client.write_text(CLIENT.format(python=sys.executable, address=address, lost=LOST), encoding="utf-8")
        client.chmod(0o755)
        with _Server(address, _Answer) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield client.parent
            finally:
                server.shutdown()
                for process in server.running:
                    process.kill()


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, address: str, answer: type[socketserver.StreamRequestHandler]) -> None:
        super().__init__(address, answer)
        self.lock = threading.Lock()  # multiprocessing's list of children is not made for threads
        self.running: list[forked.Forked] = []


class _Answer(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        client, *told = json.loads(self.rfile.read())
        with self.server.lock:
            process = forked.Forked(_begin, client, *told)
            self.server.running.append(process)
        while (code := self._code(process)) is None:
            if not psutil.pid_exists(client):  # the script was killed, and its command with it
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(LOOKED)
        self.wfile.write(b"%d" % (code if code >= 0 else 128 - code))

    def _code(self, process: forked.Forked) -> int | None:
        with self.server.lock:
            return process.poll()


def _begin(client: int, words: list[str], cwd: str, environment: dict[str, str]) -> None:
    try:
        for number in (1, 2):
            os.dup2(os.open(f"/proc/{client}/fd/{number}", os.O_WRONLY | os.O_APPEND), number)
        os.chdir(cwd)
    except OSError:
        os._exit(LOST)
    os.environ.clear()
    os.environ.update(environment)
    forked.run_command(words)
