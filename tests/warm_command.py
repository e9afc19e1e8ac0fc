"""A `safevlm` for shell scripts that begins with everything imported: it has this process fork one (see `forked`).

What a script starts is the same; that an installed `safevlm` starts at all is tested with the wheel.
"""

from __future__ import annotations

import contextlib
import json
import os
import socketserver
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from tests import forked

CLIENT = """#!{python} -IS
import json, os, socket, sys
asked = socket.socket(socket.AF_UNIX)
asked.connect({address!r})
asked.sendall(json.dumps([os.getpid(), sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
asked.shutdown(socket.SHUT_WR)
sys.exit(int(asked.recv(16)))
"""


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder for PATH with this `safevlm` in it."""
    with tempfile.TemporaryDirectory() as made:  # a socket's address is short, where pytest's folders are not
        place = Path(made)
        address = str(place / "socket")
        client = place / "bin" / "safevlm"
        client.parent.mkdir()
        client.write_text(CLIENT.format(python=sys.executable, address=address), encoding="utf-8")
        client.chmod(0o755)
        with socketserver.ThreadingUnixStreamServer(address, _Answer) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield client.parent
            server.shutdown()


class _Answer(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        process = forked.Forked(_begin, *json.loads(self.rfile.read()))
        self.wfile.write(b"%d" % (process.wait() & 255))


def _begin(client: int, words: list[str], cwd: str, environment: dict[str, str]) -> None:
    for number in (1, 2):
        os.dup2(os.open(f"/proc/{client}/fd/{number}", os.O_WRONLY | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    forked.run_command(words)
