"""One browser's WebSocket: the newest view of each of its slots is rendered, older ones are dropped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from aiohttp import WSMessage, WSMsgType, web

from dnnlib.errors import UserError
from multiscale.explorer.frames import Frame, check, encode, render
from multiscale.explorer.messages import CancelRequest, FrameRequest, Ping, pack, parse_message, sender_of
from multiscale.explorer.scheduler import Job, Owner, Rank
from multiscale.explorer.services import Services
from multiscale.rendering.renderer import Cancelled

SLOTS = 16
"""Slots of a connection that may wait at once."""
MESSAGES_A_SECOND, BURST = 100.0, 400.0
"""Messages of a connection that are heard at once, in the long run and after a silence; later ones wait their turn, and what
they ask for comes after all that others want."""
REQUESTS_A_SECOND, REQUESTS_BURST = 20.0, 60.0
"""Requests taken up beyond those whose frames have been sent, on average and in a burst; of the others, each slot's newest
is, later."""


@dataclass(eq=False)
class Errand:
    """A frame on its way."""

    request: FrameRequest
    asked: float = field(default_factory=time.perf_counter)
    job: Job[Frame] | None = None

    @property
    def is_draft(self) -> bool:
        return self.request.quality == "draft"

    @property
    def begun(self) -> bool:
        return self.job is not None and self.job.began is not None


class Session:
    """What one connection has asked for."""

    def __init__(
        self, services: Services, socket: web.WebSocketResponse, transport: asyncio.Transport | None = None
    ) -> None:
        self._services = services
        self._socket = socket
        self._transport = transport
        self._owner = Owner()
        self._newest: dict[str, tuple[Errand, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_turn = asyncio.Lock()
        self._announcing: asyncio.Task[None] | None = None
        self.heard = time.monotonic()
        """When its last message arrived."""
        self._allowance = BURST
        self._waiting: dict[str, Errand] = {}
        self._taking: asyncio.Task[None] | None = None
        self._requests = REQUESTS_BURST
        self._counted = self.heard

    async def run(self) -> None:
        """Serve the connection until it is closed."""
        try:
            async for message in self._socket:
                await self._in_rate()
                await self._hear(message)
        finally:
            tasks = [*self._tasks, *filter(None, [self._announcing, self._taking])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def announce(self, networks: list[dict[str, Any]]) -> None:
        """Tell the client of new networks, in place of an announcement that is still unsent."""
        if self._announcing is not None:
            self._announcing.cancel()
        self._announcing = asyncio.create_task(self._say({"type": "networks", "networks": networks}))

    def end(self) -> None:
        """Close the connection at once: its other end may be gone."""
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Close the connection because the server is shutting down."""
        await self._socket.close(code=1001, message=b"The server is shutting down.")

    async def _in_rate(self) -> None:
        """Wait, reading nothing, while messages come too fast."""
        now = time.monotonic()
        self._allowance = min(self._allowance + (now - self.heard) * MESSAGES_A_SECOND, BURST) - 1
        self.heard = now
        self._owner.floods = self._allowance < 0
        if self._owner.floods:
            await asyncio.sleep(-self._allowance / MESSAGES_A_SECOND)

    async def _hear(self, message: WSMessage) -> None:
        if message.type is not WSMsgType.TEXT:
            await self._complain("Messages must be JSON text.")
            return
        try:
            said = parse_message(message.data)
        except UserError as error:
            await self._complain(str(error), *sender_of(message.data))
            return
        if isinstance(said, Ping):
            await self._say({"type": "pong", "id": said.id})
        elif isinstance(said, CancelRequest):
            self._waiting.pop(said.slot, None)
            if said.slot in self._newest:
                self._newest.pop(said.slot)[1].cancel()
        elif len({*self._newest, *self._waiting, said.slot}) > SLOTS:
            await self._complain(f"At most {SLOTS} slots may wait at once.", said.id, said.slot)
        else:
            self._ask(said)

    def _ask(self, request: FrameRequest) -> None:
        """Take up a request in place of the slot's older one, now or once the rate allows it."""
        if self._taking is None and self._may_take():
            self._take(Errand(request))
            return
        self._waiting[request.slot] = Errand(request)
        if self._taking is None:
            self._taking = asyncio.create_task(self._take_by_and_by())

    def _may_take(self) -> bool:
        """Whether another request is within the rate; counts it if so."""
        now = time.monotonic()
        self._requests = min(self._requests + (now - self._counted) * REQUESTS_A_SECOND, REQUESTS_BURST)
        self._counted = now
        if self._requests < 1:
            return False
        self._requests -= 1
        return True

    async def _take_by_and_by(self) -> None:
        try:
            while self._waiting:
                if self._may_take():
                    self._take(self._waiting.pop(next(iter(self._waiting))))
                else:
                    await asyncio.sleep(1 / REQUESTS_A_SECOND)
        finally:
            self._taking = None

    def _take(self, errand: Errand) -> None:
        request = errand.request
        if request.slot in self._newest:
            older, task = self._newest[request.slot]
            if not (older.is_draft and older.begun):  # frames keep coming while the view moves
                task.cancel()
        task = asyncio.create_task(self._fetch(errand))
        self._newest[request.slot] = errand, task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fetch(self, errand: Errand) -> None:
        """Render, encode and send one frame, or say why not."""
        request = errand.request
        try:
            await self._deliver(errand)
        except (Cancelled, ConnectionError):
            pass
        except UserError as error:
            await self._complain(str(error), request.id, request.slot)
        except Exception as error:
            self._services.note(error)
            await self._complain("The server could not render this; its log says why.", request.id, request.slot)
        finally:
            if request.slot in self._newest and self._newest[request.slot][0] is errand:
                del self._newest[request.slot]

    async def _deliver(self, errand: Errand) -> None:
        request, services = errand.request, self._services
        network = await services.library.get(request.network)
        world = check(network, request)
        rank = Rank.DRAFT if errand.is_draft else Rank.SHARP
        job = errand.job = services.queue.submit(self._owner, rank, partial(render, network, world, request))
        try:
            frame = await asyncio.wrap_future(job.future)
            async with self._in_turn:
                image = await services.encoded(partial(encode, frame, request.quality))
                assert job.began is not None
                header = {
                    "type": "frame",
                    "id": request.id,
                    "slot": request.slot,
                    "left": frame.region.left,
                    "top": frame.region.top,
                    "pitch": frame.region.pitch,
                    "width": frame.region.width,
                    "height": frame.region.height,
                    "mime": "image/jpeg",
                    "render_ms": round(1000 * job.render_seconds, 3),
                    "wait_ms": round(1000 * (job.began - errand.asked), 3),
                    "extrapolation": frame.extrapolation,
                    "error_db": frame.error_db,
                }
                await self._socket.send_bytes(pack(header, image))
                self._requests += 1
        finally:
            job.close()

    async def _complain(self, message: str, number: int | None = None, slot: str | None = None) -> None:
        await self._say({"type": "error", "id": number, "slot": slot, "message": message})

    async def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):  # it has just gone
            await self._socket.send_str(json.dumps(message))
