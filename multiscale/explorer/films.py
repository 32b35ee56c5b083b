"""Films that clients have ordered: rendered one at a time, in between everybody's frames, and kept in a temporary folder."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dnnlib.errors import UserError
from dnnlib.files import new_temporary_folder
from multiscale.explorer.messages import FilmRequest
from multiscale.explorer.networks import Network
from multiscale.explorer.scheduler import Cancelling, Owner, Rank, RenderQueue
from multiscale.rendering.flights import Keyframe
from multiscale.rendering.renderer import Cancelled, Renderer, Tile
from multiscale.rendering.video import write_film
from multiscale.rendering.worlds import World
from multiscale.view import Region

UNFINISHED = 8
KEPT = 16
KEPT_BYTES = 2 << 30
FILM_BYTES = 1 << 29
"""Limit of one film; together with the finished ones it stays within ``KEPT_BYTES``."""
KEPT_SECONDS = 3600.0
"""How long a finished film can be fetched."""

log = logging.getLogger(__name__)


@dataclass
class Film:
    """A film, finished or not."""

    id: str
    path: Path
    state: Literal["rendering", "done", "failed", "cancelled"] = "rendering"
    progress: float = 0.0
    message: str = ""
    ended: float = math.inf
    """When it was finished, in seconds of ``time.monotonic``."""
    owner: Owner = field(default_factory=Owner)

    def facts(self) -> dict[str, Any]:
        """What clients are told."""
        return {"id": self.id, "state": self.state, "progress": self.progress, "message": self.message}


class Films:
    """All films of a server; methods are for the event loop."""

    def __init__(self, queue: RenderQueue) -> None:
        self._queue = queue
        self._films: dict[str, Film] = {}
        self.folder: Path | None = None
        """Where the files are; created with the first film."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="film")

    def start(self, network: Network, world: World, request: FilmRequest) -> Film:
        """Queue a film.

        Raises:
            UserError: too many are queued already, or the disk is full.
        """
        if sum(film.state == "rendering" for film in self._films.values()) >= UNFINISHED:
            raise UserError(f"{UNFINISHED} films are waiting or being rendered; wait for one, or cancel it.")
        if self.folder is None:
            self.folder = new_temporary_folder("multiscale-films")
        self.forget_oldest()
        if shutil.disk_usage(self.folder).free < 2 * FILM_BYTES:
            raise UserError("The server's disk has no space for a film; try again later.")
        name = secrets.token_hex(12)
        film = self._films[name] = Film(name, self.folder / f"{name}.mp4")
        loop = asyncio.get_running_loop()
        loop.run_in_executor(self._thread, self._render, film, network, world, request)
        return film

    def get(self, name: str) -> Film | None:
        """A film by its id."""
        return self._films.get(name)

    def remove(self, film: Film) -> None:
        """Cancel a film that is not finished; forget one that is."""
        if film.state == "rendering":
            film.state = "cancelled"
        else:
            self._forget(film)

    def close(self) -> None:
        """Cancel all films and remove their files."""
        for film in self._films.values():
            if film.state == "rendering":
                film.state = "cancelled"
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _render(self, film: Film, network: Network, world: World, request: FilmRequest) -> None:
        """Runs on the films' thread."""

        def cancelled() -> bool:
            return film.state != "rendering" or self._queue.stopped

        def advance(fraction: float) -> None:
            film.progress = min(fraction, 1.0)
            check_room()

        def check_room() -> None:
            if _bytes_below(film.path.parent) > KEPT_BYTES:
                raise UserError("The film takes too much space on the server; ask for fewer or smaller frames.")

        renderer = QueuedRenderer(network.renderer, self._queue, film.owner)
        keyframes = [Keyframe(keyframe.zoom, keyframe.x, keyframe.y) for keyframe in request.keyframes]
        try:
            if cancelled():
                return
            write_film(
                film.path,
                renderer,
                world,
                request.trunc,
                keyframes,
                width=request.width,
                height=request.height,
                fps=request.fps,
                seconds=request.seconds,
                facts={"world": str(world), "truncation_psi": request.trunc, **network.provenance},
                progress=advance,
                cancelled=cancelled,
            )
            check_room()
            if film.state == "rendering":
                film.progress, film.state = 1.0, "done"
        except Cancelled:
            film.state = "cancelled"
        except UserError as error:
            log.info("A film failed: %s", error)
            film.message, film.state = str(error).replace(str(film.path), "the film"), "failed"
        except Exception:
            log.exception("A film failed.")
            film.message, film.state = "The film failed; the server's log says why.", "failed"
        finally:
            film.ended = time.monotonic()
            if film.state != "done":
                film.path.unlink(missing_ok=True)

    def forget_oldest(self) -> None:
        """Enforce the limits of number, bytes and age; films being rendered stay."""
        finished = [film for film in self._films.values() if film.state != "rendering"]
        sizes = [film.path.stat().st_size if film.path.exists() else 0 for film in finished]
        latest = time.monotonic() - KEPT_SECONDS
        while finished and (len(finished) > KEPT or sum(sizes) > KEPT_BYTES - FILM_BYTES or finished[0].ended < latest):
            self._forget(finished.pop(0))
            sizes.pop(0)

    def _forget(self, film: Film) -> None:
        del self._films[film.id]
        film.path.unlink(missing_ok=True)


def _bytes_below(folder: Path) -> int:
    """Bytes of a folder's files, except those that disappear meanwhile."""
    total = 0
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):
            total += entry.stat().st_size
    return total


class QueuedRenderer(Renderer):
    """A renderer for other threads: each tile is one piece of work in the queue, so that frames can go in between."""

    def __init__(self, renderer: Renderer, queue: RenderQueue, owner: Owner) -> None:
        super().__init__(renderer.generator, renderer.device)
        self._inner = renderer
        self._queue = queue
        self._owner = owner

    def tiles(self, world: World | int, region: Region, truncation_psi: float = 1.0, **options: Any) -> Iterator[Tile]:
        """As :meth:`Renderer.tiles`."""
        tiles = self._inner.tiles(world, region, truncation_psi, **options)
        while (tile := self._on_queue(tiles)) is not None:
            yield tile

    def _on_queue(self, tiles: Iterator[Tile]) -> Tile | None:
        def piece(_: Cancelling) -> Tile | None:
            tile = next(tiles, None)
            return tile and Tile(tile.x, tile.y, tile.pixels.cpu())

        job = self._queue.call(self._owner, Rank.LONG, piece)
        try:
            return job.future.result()
        finally:
            job.close()
