"""What is sent as long as a page is open ends when the server is told to end: else it would wait for the page."""

from __future__ import annotations

import asyncio

from safevlm.serve.exchange import App, Message, Receive, Scope, Send


class Stopping:
    """Whether the server was told to end."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told = asyncio.Event()

    def tell(self) -> None:
        """From anywhere, a signal's handler too."""
        if self._loop is None or self._loop.is_closed():
            self._told.set()
        else:
            self._loop.call_soon_threadsafe(self._told.set)

    async def until(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs an app that reads no body, until it is over, its client goes away, or the server ends; then its answer
        ends where it is."""
        self._loop = asyncio.get_running_loop()
        is_open = False
        gone = asyncio.ensure_future(_gone(receive))

        async def receiving() -> Message:
            await asyncio.shield(gone)
            return {"type": "http.disconnect"}

        async def sending(message: Message) -> None:
            nonlocal is_open
            is_open = message["type"] == "http.response.start" or bool(message.get("more_body"))
            await send(message)

        running = asyncio.ensure_future(app(scope, receiving, sending))
        told = asyncio.ensure_future(self._told.wait())
        try:
            await asyncio.wait({running, told, gone}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
        finally:
            for each in (running, told, gone):
                each.cancel()
            await asyncio.gather(running, told, gone, return_exceptions=True)
        if is_open:
            await send({"type": "http.response.body", "body": b""})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
