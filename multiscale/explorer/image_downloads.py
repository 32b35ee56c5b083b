"""Downloads of images of any size: ``/api/image.png``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial

import numpy as np
from aiohttp import web

from multiscale.explorer import frames
from multiscale.explorer.messages import ImageQuery, parse_query
from multiscale.explorer.scheduler import Owner, Rank
from multiscale.explorer.services import Services
from multiscale.rendering.files import encode_png
from multiscale.rendering.renderer import to_uint8, to_uint16
from multiscale.rendering.worlds import World

AT_ONCE = 2
"""Images rendered at a time; others wait."""
HELD_BYTES = 1 << 29
"""Limit of the pixels of all images being rendered or sent; a single one may exceed it."""


class ImageDownloads:
    """The handler of ``/api/image.png``."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._places = asyncio.Semaphore(AT_ONCE)
        self._changed = asyncio.Condition()
        self._bytes = 0

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Render an image and send it as a PNG file whose metadata say what it shows."""
        query = parse_query(ImageQuery, request.query)
        network = await self._services.library.get(query.network)
        world, region = World.parse(query.world), query.region
        network.renderer.check(region, extrapolate=query.extrapolate)
        convert, dtype = (to_uint16, np.uint16) if query.depth == "16" else (to_uint8, np.uint8)
        work = partial(
            frames.image,
            network.renderer,
            world,
            region,
            query.trunc,
            extrapolate=query.extrapolate,
            convert=convert,
            dtype=dtype,
        )
        facts = {
            "world": str(world),
            "scale": region.zoom,
            "centre": region.centre,
            "truncation_psi": query.trunc,
            **network.provenance,
        }
        name = f"world-{world}-{region.zoom:.6g}x-{region.width}x{region.height}.png".replace(":", "=")
        headers = {"Content-Disposition": f'attachment; filename="{name[-200:]}"', "Cache-Control": "no-store"}
        size = region.width * region.height * network.renderer.generator.config.img_channels * np.dtype(dtype).itemsize
        async with self._held(size):
            async with self._places:
                pixels = await self._services.rendered(Owner(), Rank.LONG, work)
                png = await self._services.encoded(partial(encode_png, pixels, facts))
                del pixels
            answer = web.Response(body=png, content_type="image/png", headers=headers)
            await answer.prepare(request)
            await answer.write_eof()  # until the client has read all but the last bytes; one that does not is cut off
        return answer

    @contextlib.asynccontextmanager
    async def _held(self, size: int) -> AsyncIterator[None]:
        """Wait until there is room for an image of ``size`` bytes, and hold it."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._bytes or self._bytes + size <= HELD_BYTES)
            self._bytes += size
        try:
            yield
        finally:
            async with self._changed:
                self._bytes -= size
                self._changed.notify_all()
