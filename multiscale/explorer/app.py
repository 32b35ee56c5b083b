"""The routes of the explorer's server, and what every request goes through."""

from __future__ import annotations

import asyncio
import importlib.metadata
import time
from pathlib import Path

import torch
from aiohttp import web
from aiohttp.typedefs import Handler

from dnnlib.errors import UserError
from multiscale.explorer.access import HEADERS, Access
from multiscale.explorer.connections import Connections
from multiscale.explorer.films import Film
from multiscale.explorer.image_downloads import ImageDownloads
from multiscale.explorer.messages import LIMITS, MESSAGE_BYTES, FilmRequest, parse_json
from multiscale.explorer.services import Services
from multiscale.explorer.session import Session
from multiscale.explorer.tiles import Tiles
from multiscale.rendering.renderer import Cancelled
from multiscale.rendering.worlds import World

STATIC = Path(__file__).with_name("static")
SOCKETS = 64
SILENT_SECONDS = 30.0
"""A page silent for so long makes room for another; pages ping every few seconds."""
BODY_SECONDS = 20.0
"""Time in which the body of a request must arrive."""
REQUESTS = 256
SCAN_SECONDS = 3.0
HEARTBEAT_SECONDS = 60.0
UNCHANGED = {"Cache-Control": "no-cache"}
"""Headers of what a browser may keep, but must revalidate each time."""
UNKEPT = {"Cache-Control": "no-store"}


class Explorer:
    """The web application of one server, ``app``."""

    def __init__(self, services: Services, access: Access) -> None:
        self.services = services
        self.sessions: set[Session] = set()
        self._requests = 0
        self.connections = Connections()
        self.app = web.Application(
            middlewares=[self._answering, self._bounding, access.check], client_max_size=MESSAGE_BYTES
        )
        self.app.on_response_prepare.append(_add_headers)
        images, tiles = ImageDownloads(services), Tiles(services, access)
        self.app.router.add_get("/", self._page)
        self.app.router.add_get("/static/{name}", self._static)
        self.app.router.add_get("/ws", self._socket, allow_head=False)
        self.app.router.add_get("/api/info", self._info)
        self.app.router.add_get("/api/image.png", images.get, allow_head=False)
        self.app.router.add_get("/api/site.zip", services.sites.get, allow_head=False)
        self.app.router.add_post("/api/films", self._start_film)
        self.app.router.add_get("/api/films/{id}", self._film)
        self.app.router.add_delete("/api/films/{id}", self._remove_film)
        self.app.router.add_get("/api/films/{id}/film.mp4", self._film_file)
        tiles.add_to(self.app.router)

    async def watch(self) -> None:
        """Watch for new snapshots while the server runs."""
        while True:
            await asyncio.sleep(SCAN_SECONDS)
            try:
                self.services.films.forget_oldest()
                if await self.services.on_disk(self.services.library.scan):
                    networks = self.services.library.listing()
                    for session in self.sessions:
                        session.announce(networks)
            except Exception as error:
                self.services.note(error)

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(session.close() for session in self.sessions), return_exceptions=True)

    async def _page(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(STATIC / "index.html", headers=UNCHANGED)

    async def _static(self, request: web.Request) -> web.StreamResponse:
        files = {path.name: path for path in STATIC.iterdir() if path.is_file()}
        if request.match_info["name"] not in files:  # the name in a request never becomes a path
            raise web.HTTPNotFound
        return web.FileResponse(files[request.match_info["name"]], headers=UNCHANGED)

    async def _info(self, request: web.Request) -> web.Response:
        library = self.services.library
        facts = {
            "networks": library.listing(),
            "run": library.run.resolve().name if library.run is not None else None,
            "default": library.default,
            "device": device_name(library.device),
            "version": importlib.metadata.version("multiscale-gan"),
            "limits": LIMITS,
        }
        return web.json_response(facts, headers=UNKEPT)

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        if len(self.sessions) >= SOCKETS and not await self._make_room():
            raise web.HTTPServiceUnavailable(text=f"{SOCKETS} pages are connected already; close one of them.")
        answer = web.WebSocketResponse(max_msg_size=MESSAGE_BYTES, heartbeat=HEARTBEAT_SECONDS, compress=False)
        session = Session(self.services, answer, request.transport)
        self.sessions.add(session)
        try:
            await answer.prepare(request)
            await session.run()
        finally:
            self.sessions.discard(session)
        return answer

    async def _make_room(self) -> bool:
        """Close the connection that has been silent longest; False if none has been silent for long."""
        silent = min(self.sessions, key=lambda session: session.heard)
        if time.monotonic() - silent.heard < SILENT_SECONDS:
            return False
        self.sessions.discard(silent)
        silent.end()
        return True

    async def _start_film(self, request: web.Request) -> web.Response:
        try:
            body = await asyncio.wait_for(request.read(), BODY_SECONDS)
        except asyncio.TimeoutError:
            raise web.HTTPRequestTimeout(text="The request did not arrive in time.") from None
        wanted = parse_json(FilmRequest, body)
        network = await self.services.library.get(wanted.network)
        film = self.services.films.start(network, World.parse(wanted.world), wanted)
        return web.json_response(film.facts(), status=202, headers=UNKEPT)

    async def _film(self, request: web.Request) -> web.Response:
        return web.json_response(self._named_film(request).facts(), headers=UNKEPT)

    async def _remove_film(self, request: web.Request) -> web.Response:
        film = self._named_film(request)
        self.services.films.remove(film)
        return web.json_response(film.facts(), headers=UNKEPT)

    async def _film_file(self, request: web.Request) -> web.StreamResponse:
        film = self._named_film(request)
        if film.state != "done":
            raise web.HTTPNotFound(text="This film is not finished.")
        headers = {"Content-Disposition": f'attachment; filename="film-{film.id[:8]}.mp4"', **UNKEPT}
        return web.FileResponse(film.path, headers=headers)

    def _named_film(self, request: web.Request) -> Film:
        film = self.services.films.get(request.match_info["id"])
        if film is None:
            raise web.HTTPNotFound(text="There is no such film (any more).")
        return film

    @web.middleware
    async def _answering(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer every refusal and failure with a JSON object that has a message."""
        try:
            return await handler(request)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            given = error.text if error.text and not error.text.startswith(f"{error.status}:") else f"{error.reason}."
            return _message(error.status, given)
        except UserError as error:
            return _message(400, str(error))
        except Cancelled:
            return _message(503, "The server is shutting down.")
        except ConnectionError:
            raise
        except Exception as error:
            self.services.note(error)
            return _message(500, "The server failed; its log says why.")

    @web.middleware
    async def _bounding(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._requests >= REQUESTS:
            raise web.HTTPServiceUnavailable(text="The server is busy; try again.")
        self._requests += 1
        self.connections.begin(request.protocol)
        try:
            return await handler(request)
        finally:
            self._requests -= 1
            self.connections.end(request.protocol)


def device_name(device: torch.device) -> str:
    """``"CPU"``, or what the GPU calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def _message(status: int, text: str) -> web.Response:
    return web.json_response({"message": text}, status=status)


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
    response.headers.pop("Server", None)
