"""The world as tiles for other viewers: XYZ (Leaflet, QGIS), Deep Zoom and IIIF Image API 3 (OpenSeadragon), cached on disk.

The explorer's own page gets frames (``session``, ``frames``)."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from aiohttp import web

from dnnlib.errors import UserError
from multiscale.explorer import frames
from multiscale.explorer.access import Access
from multiscale.explorer.messages import TileQuery, join_options, parse_query, parse_world, split_options
from multiscale.explorer.networks import Network
from multiscale.explorer.scheduler import Owner, Rank
from multiscale.explorer.services import Services
from multiscale.rendering.files import encode_jpeg, encode_png
from multiscale.rendering.pyramid import Pyramid
from multiscale.view import Region

FORMAT = 1
"""Part of every cache key; raised when tiles of the same region change their look."""
FRESH_SECONDS = 3600
INFO_TYPE = 'application/ld+json;profile="http://iiif.io/api/image/3/context.json"'
_NUMBER = r"\d{1,7}"
Cut = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Asked:
    """What a request for tiles asks for."""

    network: Network
    pyramid: Pyramid
    world: str
    options: dict[str, str]
    """Those given in the address, for further addresses."""
    headers: dict[str, str]
    """Of the answer."""


class Tiles:
    """The handlers of tiles; on the render thread all viewers together are one owner.

    Args:
        services: The server's.
        access: Which sites may read tiles, and the server's public address.
    """

    def __init__(self, services: Services, access: Access) -> None:
        self._services = services
        self._access = access
        self._owner = Owner()

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        for path, handler in {
            f"/tiles/{{world}}/{{z:{_NUMBER}}}/{{x:{_NUMBER}}}/{{y:{_NUMBER}}}.png": self._xyz,
            f"/tiles/{{world}}_files/{{level:{_NUMBER}}}/{{x:{_NUMBER}}}_{{y:{_NUMBER}}}.png": self._deep_zoom,
            "/tiles/{world}.dzi": self._dzi,
            "/iiif/{world}": self._iiif,
            "/iiif/{world}/info.json": self._iiif_info,
            "/iiif/{world}/{region}/{size}/0/default.{format:png|jpg}": self._iiif_image,
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
            block = asked.pyramid.block(level, range(x, x + 1), range(y, y + 1))
        return await self._tile(request, asked, block.region, cut=partial(block.tile, column=x, row=y))

    async def _iiif_image(self, request: web.Request) -> web.Response:
        asked = await self._asked(request)
        with _found():
            region = asked.pyramid.iiif_region(request.match_info["region"], request.match_info["size"])
        return await self._tile(request, asked, region, request.match_info["format"])

    async def _dzi(self, request: web.Request) -> web.Response:
        asked = await self._asked(request)
        return web.Response(text=asked.pyramid.dzi(), content_type="application/xml", headers=asked.headers)

    async def _iiif(self, request: web.Request) -> web.Response:
        world, options = _with_options(request)
        headers = {**self._access.shared_headers(request), "Location": f"{join_options(world, options)}/info.json"}
        return web.Response(status=303, headers=headers)

    async def _iiif_info(self, request: web.Request) -> web.Response:
        asked = await self._asked(request)
        base = self._access.public_url or str(request.url.origin())
        text = json.dumps(asked.pyramid.iiif_info(f"{base}/iiif/{join_options(asked.world, asked.options)}"))
        return web.Response(text=text, headers={**asked.headers, "Content-Type": INFO_TYPE})

    async def _asked(self, request: web.Request) -> Asked:
        text, options = _with_options(request)
        world, query = parse_world(text), parse_query(TileQuery, options)
        network = await self._services.library.get(query.network)
        whose = "public" if self._access.token is None else "private"
        fresh = f"max-age={FRESH_SECONDS}" if query.network else "no-cache"  # the default may change
        headers = {**self._access.shared_headers(request), "Cache-Control": f"{whose}, {fresh}"}
        return Asked(network, Pyramid(network.renderer, world, query.trunc), str(world), options, headers)

    async def _tile(
        self, request: web.Request, asked: Asked, region: Region, kind: str = "png", cut: Cut = lambda pixels: pixels
    ) -> web.Response:
        """A tile from the cache, or a new one: what ``cut`` takes of the region's pixels."""
        pyramid, services = asked.pyramid, self._services
        key = f"{FORMAT} {asked.network.digest} {pyramid.world} {pyramid.truncation_psi!r} {region}"
        key += "" if kind == "png" else f" {kind}"
        tag = hashlib.sha256(key.encode()).hexdigest()[:32]
        headers = {**asked.headers, "ETag": f'"{tag}"'}
        if any(known.value == tag for known in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        data = await services.on_disk(partial(services.cache.get, key))
        if data is None:
            work = partial(frames.image, pyramid.renderer, pyramid.world, region, pyramid.truncation_psi)
            pixels = await services.rendered(self._owner, Rank.LONG, work)
            encode = encode_png if kind == "png" else encode_jpeg
            data = await services.encoded(partial(encode, cut(pixels)))
            await services.on_disk(partial(services.cache.put, key, data))
        content_type = "image/png" if kind == "png" else "image/jpeg"
        return web.Response(body=data, content_type=content_type, headers=headers)


def _with_options(request: web.Request) -> tuple[str, dict[str, str]]:
    """The text of a request's world, and the options that came with it, in the path or in the query."""
    world, options = split_options(request.match_info["world"])
    given = {**options, **request.query}
    return world, {name: given[name] for name in (*TileQuery.model_fields, "token") if given.get(name)}


@contextlib.contextmanager
def _found() -> Iterator[None]:
    """Answer 404 for a tile that does not exist."""
    try:
        yield
    except UserError as error:
        raise web.HTTPNotFound(text=str(error)) from None
