"""A server of tiles on loopback that fails as it is told to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

Fault = Callable[[web.Request, int], web.StreamResponse | None]


class TileServer:
    """Serves a folder; use as a context manager.

    Attributes:
        asked: Paths that were asked for, in order.
        agents: What clients called themselves.
        fault: Given a request and its number, from 1, an answer in place of the file's, or None.
        most: Requests at a time, so far.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.asked: list[str] = []
        self.agents: set[str] = set()
        self.fault: Fault | None = None
        self.delay_sec = 0.0
        self.most = self._now = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()

    def __enter__(self) -> TileServer:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(120)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        runner = web.AppRunner(app)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.port = runner.addresses[0][1]
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path.lstrip("/"))
        self.agents.add(request.headers.get("User-Agent", ""))
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            if self.delay_sec:
                await asyncio.sleep(self.delay_sec)
            answer = self.fault(request, len(self.asked)) if self.fault else None
            if answer is not None:
                return answer
            file = self._folder / request.path.lstrip("/")
            if not file.is_file():
                raise web.HTTPNotFound
            return web.Response(body=file.read_bytes())
        finally:
            self._now -= 1
