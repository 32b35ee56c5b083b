"""The world as tiles for other viewers: XYZ (Leaflet, QGIS), Deep Zoom and IIIF Image API 3 (OpenSeadragon), cached on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from dnnlib.errors import UserError
from multiscale.explorer import frames
from multiscale.explorer.messages import TileQuery, parse_query, parse_world
from multiscale.explorer.networks import Network
from multiscale.explorer.scheduler import Owner, Rank
from multiscale.explorer.services import Services
from multiscale.rendering.files import encode_png
from multiscale.rendering.pyramid import Pyramid
from multiscale.view import Region

FORMAT = 1
"""Part of every key of the cache; to be raised when tiles are to look otherwise."""
FRESH_SECONDS = 3600
INFO_TYPE = 'application/ld+json;profile="http://iiif.io/api/image/3/context.json"'
_NUMBER = r"\d{1,7}"


@dataclass(frozen=True)
class Asked:
    """What every request for tiles means."""

    network: Network
    pyramid: Pyramid
    headers: dict[str, str]
    """Of the answer."""


class Tiles:
    """The handlers of tiles; all viewers together have one turn on the render thread.

    Args:
        services: The server's.
        public: Whether pages of other sites may read tiles.
    """

    def __init__(self, services: Services, *, public: bool) -> None:
        self._services = services
        self._owner = Owner()
        self._shared = {"Access-Control-Allow-Origin": "*"} if public else {}

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        for path, handler in {
            f"/tiles/{{world}}/{{z:{_NUMBER}}}/{{x:{_NUMBER}}}/{{y:{_NUMBER}}}.png": self._xyz,
            f"/tiles/{{world}}_files/{{level:{_NUMBER}}}/{{x:{_NUMBER}}}_{{y:{_NUMBER}}}.png": self._deep_zoom,
            "/tiles/{world}.dzi": self._dzi,
            "/iiif/{world}": self._iiif,
            "/iiif/{world}/info.json": self._iiif_info,
            "/iiif/{world}/{region}/{size}/0/default.png": self._iiif_image,
        }.items():
            router.add_get(path, handler)

    async def _xyz(self, request: web.Request) -> web.Response:
        asked = await self._asked(request)
        z, x, y = (int(request.match_info[name]) for name in "zxy")
        coarsest = asked.pyramid.finest - asked.pyramid.max_level
        with _found():
            region = asked.pyramid.region(coarsest + z, x, y)
        return await self._tile(request, asked, region)

    async def _deep_zoom(self, request: web.Request) -> web.Response:
        asked = await self._asked(request)
        level, x, y = (int(request.match_info[name]) for name in ("level", "x", "y"))
        with _found():
            region = asked.pyramid.region(level, x, y)
        return await self._tile(request, asked, region)

    async def _iiif_image(self, request: web.Request) -> web.Response:
        asked = await self._asked(request)
        with _found():
            region = asked.pyramid.iiif_region(request.match_info["region"], request.match_info["size"])
        return await self._tile(request, asked, region)

    async def _dzi(self, request: web.Request) -> web.Response:
        asked = await self._asked(request)
        return web.Response(text=asked.pyramid.dzi(), content_type="application/xml", headers=asked.headers)

    async def _iiif(self, request: web.Request) -> web.Response:
        return web.Response(status=303, headers={**self._shared, "Location": f"{request.rel_url.raw_path}/info.json"})

    async def _iiif_info(self, request: web.Request) -> web.Response:
        asked = await self._asked(request)
        own = str(request.url.with_query(None)).removesuffix("/info.json")
        text = json.dumps(asked.pyramid.iiif_info(own))
        return web.Response(text=text, headers={**asked.headers, "Content-Type": INFO_TYPE})

    async def _asked(self, request: web.Request) -> Asked:
        query = parse_query(TileQuery, request.query)
        world = parse_world(request.match_info["world"])
        network = await self._services.library.get(query.network)
        whose = "public" if self._shared else "private"
        fresh = f"max-age={FRESH_SECONDS}" if query.network else "no-cache"  # the default may be another one soon
        headers = {**self._shared, "Cache-Control": f"{whose}, {fresh}"}
        return Asked(network, Pyramid(network.renderer, world, query.trunc), headers)

    async def _tile(self, request: web.Request, asked: Asked, region: Region) -> web.Response:
        """A tile out of the cache, or a new one."""
        pyramid, services = asked.pyramid, self._services
        key = f"{FORMAT} {asked.network.digest} {pyramid.world} {pyramid.truncation_psi!r} {region}"
        tag = hashlib.sha256(key.encode()).hexdigest()[:32]
        headers = {**asked.headers, "ETag": f'"{tag}"'}
        if any(known.value == tag for known in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        png = await services.on_disk(partial(services.cache.get, key))
        if png is None:
            work = partial(frames.image, pyramid.renderer, pyramid.world, region, pyramid.truncation_psi)
            pixels = await services.rendered(self._owner, Rank.LONG, work)
            png = await services.encoded(partial(encode_png, pixels))
            await services.on_disk(partial(services.cache.put, key, png))
        return web.Response(body=png, content_type="image/png", headers=headers)


@contextlib.contextmanager
def _found() -> Iterator[None]:
    """A tile that there is not is not found."""
    try:
        yield
    except UserError as error:
        raise web.HTTPNotFound(text=str(error)) from None
