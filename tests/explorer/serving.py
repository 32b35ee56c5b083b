"""A whole server within a test, and a client that speaks its protocol."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from aiohttp import ClientWebSocketResponse, WSMsgType
from aiohttp.test_utils import TestClient, TestServer
from conftest import calibrated_generator, small_config

from dnnlib.cache import DiskCache
from multiscale.explorer.access import Access
from multiscale.explorer.app import Explorer
from multiscale.explorer.films import Films
from multiscale.explorer.networks import Library
from multiscale.explorer.scheduler import RenderQueue
from multiscale.explorer.services import Services
from multiscale.runs.snapshots import save_snapshot

PATIENCE_SEC = 120
"""For what must come, however busy the machine is; what never comes takes so long to fail."""
WORLD_PX = 512
"""Of the networks that ``small_run`` makes: 32 pixels, 4 octaves."""


def small_run(folder: Path, kimgs: tuple[float, ...] = (1, 2), channels: int = 3) -> Path:
    """A run's folder with snapshots of a tiny network."""
    config = small_config(octaves=4, img_channels=channels, num_layers=6, num_critical=1)
    for kimg in kimgs:
        torch.manual_seed(int(kimg))
        save_snapshot(
            folder / f"generator-{int(1000 * kimg):09d}.safetensors", calibrated_generator(config), {"kimg": kimg}
        )
    return folder


def run(work: Coroutine[Any, Any, Any], timeout: float = 5 * PATIENCE_SEC) -> Any:
    """As asyncio.run, within a time; the first image of all may have to wait until kernels are built."""
    return asyncio.run(asyncio.wait_for(work, timeout))


async def until(condition: Callable[[], Any]) -> None:
    """Let the loop go on until something is so."""

    async def look() -> None:
        while not condition():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(look(), PATIENCE_SEC)


class Clock:
    """Stands in for the module ``time`` of a module under test: it goes on when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


@dataclass
class Served:
    """A running server and a client of it."""

    explorer: Explorer
    client: TestClient
    cache: Path

    @property
    def queue(self) -> RenderQueue:
        return self.explorer.services.queue

    @contextlib.asynccontextmanager
    async def socket(self, **options: Any) -> AsyncIterator[Socket]:
        async with self.client.ws_connect("/ws", max_msg_size=0, **options) as socket:
            yield Socket(socket)


@dataclass
class Socket:
    """A WebSocket of the explorer's protocol."""

    raw: ClientWebSocketResponse

    async def say(self, message: Any) -> None:
        await self.raw.send_str(message if isinstance(message, str) else json.dumps(message))

    async def ask(self, number: int, **changes: Any) -> None:
        """Ask for a frame of 32 x 32 pixels of the whole world, or what ``changes`` say."""
        await self.say(frame(number, **changes))

    async def heard(self) -> None:
        """Wait until the server has heard all that was said; no answer to anything else may be due before."""
        await self.say({"type": "ping", "id": 0})
        assert (await self.hear())[0] == {"type": "pong", "id": 0}

    async def hear(self, timeout: float = PATIENCE_SEC) -> tuple[dict[str, Any], bytes]:
        """The next message: its JSON, and the image of a frame."""
        message = await self.raw.receive(timeout)
        if message.type is WSMsgType.TEXT:
            return json.loads(message.data), b""
        assert message.type is WSMsgType.BINARY, message
        length = int.from_bytes(message.data[:4], "big")
        return json.loads(message.data[4 : 4 + length]), message.data[4 + length :]

    async def silent(self, seconds: float = 0.1) -> bool:
        """Whether nothing comes."""
        try:
            await self.raw.receive(seconds)
        except asyncio.TimeoutError:
            return True
        return False


def frame(number: int, **changes: Any) -> dict[str, Any]:
    """A request as the page sends it."""
    request = {"type": "frame", "id": number, "slot": "main", "network": None, "world": "3", "trunc": 1.0}
    request |= {"left": -0.5, "top": -0.5, "pitch": 1 / 32, "width": 32, "height": 32}
    return request | {"quality": "draft", "extrapolate": False, "error": False} | changes


@contextlib.asynccontextmanager
async def serving(
    network: Path | None,
    cache: Path,
    *,
    token: str | None = None,
    library: Any = None,
    cache_bytes: int = 1 << 24,
    **access: Any,
) -> AsyncIterator[Served]:
    """Run a server for the block; ``library`` stands in for that of ``network``; ``access``: of :class:`Access`."""
    queue = RenderQueue()
    library = library or Library(str(network), torch.device("cpu"), queue)
    services = Services(library, queue, Films(queue), DiskCache(cache, cache_bytes))
    explorer = Explorer(services, Access(token, **access))
    server = TestServer(explorer.app)
    await server.start_server(shutdown_timeout=0.1)
    try:
        async with TestClient(server) as client:
            yield Served(explorer, client, cache)
            await explorer.close()
    finally:
        assert services.close(PATIENCE_SEC)
        assert services.films.folder is None or not services.films.folder.exists()
