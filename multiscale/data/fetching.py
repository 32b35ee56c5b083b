"""Pictures fetched by HTTP: few at a time, tried again, kept on disk, and looked at before they are kept.

Nothing but ``http`` and ``https`` is followed, redirects included; anything but a picture of the expected size is not kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import aiohttp
from PIL import Image

from dnnlib.cache import DiskCache
from dnnlib.errors import UserError
from dnnlib.reading import regular_size, short_reason
from multiscale.data.xml import XML_BYTES

USER_AGENT = "multiscale-gan (dataset_tool.py)"
ATTEMPTS = 5
BACKOFF_SEC = 0.5
"""Before the second attempt; each further one waits twice as long."""
LONGEST_WAIT_SEC = 60.0
"""That a server may ask for."""
TIMEOUT_SEC = 60.0
"""Without a byte; and twice that for all of an answer."""
TILE_BYTES = 1 << 26
REDIRECTS = 5
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF")
_FINAL = (
    aiohttp.InvalidURL,
    aiohttp.NonHttpUrlClientError,
    aiohttp.TooManyRedirects,
    ssl.SSLError,
    aiohttp.ClientSSLError,
)
"""Errors that do not pass; a redirect to another scheme is an address that is not valid."""
_PASSING = {408, 425, 429, 500, 502, 503, 504}
"""States of a server that may be over soon."""


@dataclass(frozen=True)
class Web:
    """How servers are asked; picklable.

    Attributes:
        connections: Requests at a time.
        rate: Requests a second, at most; 0: no bound.
        cache: Folder for what was fetched.
        cache_bytes: Its bound.
    """

    connections: int
    rate: float
    cache: Path
    cache_bytes: int


class Wanted(NamedTuple):
    """A picture to fetch: its address, the size that it must have, and by how many pixels it may have fewer or more."""

    address: str
    width: int
    height: int
    slack: int


class Refused(Exception):
    """It will not be given, however often it is asked for; the end of "ADDRESS ..."."""


class _NotNow(Exception):
    """It may be given later."""

    def __init__(self, reason: str, wait_sec: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_sec = wait_sec


def is_address(source: str) -> bool:
    """Whether it is an address of the web and no file. UserError for a scheme that is neither http nor https."""
    scheme, mark, _ = source.partition("://")
    if not mark or not scheme.replace("+", "").replace("-", "").replace(".", "").isalnum():
        return False
    if scheme.lower() not in ("http", "https"):
        raise UserError(f"{source} is not allowed; give an address of http or https, or a file.")
    return True


class Fetcher:
    """Fetches pictures and keeps them; what is kept is not fetched again.

    Args:
        web: Connections, rate, cache.
        version: Of what is fetched: part of every key of the cache.
    """

    def __init__(self, web: Web, version: str) -> None:
        self._web, self._version = web, version
        self._cache = DiskCache(web.cache / "tiles", web.cache_bytes)

    def kept(self, wanted: Wanted) -> bytes | None:
        """A picture that was fetched before, or lies in a folder of this machine; None if it has to be fetched."""
        if not is_address(wanted.address):
            return _read_local(wanted)
        return self._cache.get(f"{self._version} {wanted.address}")

    def get(self, wanted: Wanted) -> bytes:
        """A picture, kept or fetched now; UserError if it is not given."""
        data = self.kept(wanted)
        if data is None:
            self.fetch([wanted])
            data = self.kept(wanted)
        if data is None:
            raise UserError(
                f"{wanted.address} was fetched and could not be kept; give more --cache, or free some disk."
            )
        return data

    def fetch(self, pictures: Sequence[Wanted], advance: Callable[[int], object] = lambda size: None) -> None:
        """Fetch and keep what is not there.

        Args:
            pictures: What.
            advance: Told the bytes of each that has come.

        Raises:
            UserError: one is not given, or not what it must be; those that have come are kept.
        """
        asyncio.run(self._fetch_all(pictures, advance))

    async def _fetch_all(self, pictures: Sequence[Wanted], advance: Callable[[int], object]) -> None:
        pace = _Pace(self._web.rate)
        todo = iter(pictures)

        async def work(session: aiohttp.ClientSession) -> None:
            for wanted in todo:
                data = await _patiently(session, wanted, pace)
                self._cache.put(f"{self._version} {wanted.address}", data)
                advance(len(data))

        async with _session(self._web.connections) as session:
            workers = [asyncio.ensure_future(work(session)) for _ in range(self._web.connections)]
            try:
                await asyncio.gather(*workers)
            except Refused as error:
                raise UserError(
                    f"{error}; what has come is kept: once that is mended, the same command goes on."
                ) from error
            except _NotNow as error:
                raise UserError(f"{error}; what has come is kept, and the same command goes on.") from error
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)


def fetch_description(address: str) -> bytes:
    """A small text, not kept. UserError if it is not given."""

    async def fetch() -> bytes:
        async with _session(1) as session:
            return await _retried(
                lambda: _ask(session, address, XML_BYTES, "text/*, application/json, application/xml")
            )

    try:
        return asyncio.run(fetch())
    except (Refused, _NotNow) as error:
        raise UserError(f"{address} {error}.") from error


def _session(connections: int) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        headers={"User-Agent": USER_AGENT},
        timeout=aiohttp.ClientTimeout(total=2 * TIMEOUT_SEC, sock_read=TIMEOUT_SEC, sock_connect=TIMEOUT_SEC),
        connector=aiohttp.TCPConnector(limit=connections),
        trust_env=True,
    )


class _Pace:
    """Lets one pass each 1/rate seconds."""

    def __init__(self, rate: float) -> None:
        self._step = 1 / rate if rate else 0.0
        self._next = 0.0

    async def turn(self) -> None:
        now = asyncio.get_running_loop().time()
        mine = max(self._next, now)
        self._next = mine + self._step
        await asyncio.sleep(mine - now)


async def _patiently(session: aiohttp.ClientSession, wanted: Wanted, pace: _Pace) -> bytes:
    async def attempt() -> bytes:
        await pace.turn()
        data = await _ask(session, wanted.address, TILE_BYTES, "image/*")
        check_picture(data, wanted)
        return data

    try:
        return await _retried(attempt)
    except (Refused, _NotNow) as error:
        raise Refused(f"{wanted.address} {error}") from error


async def _retried(attempt: Callable[[], Awaitable[bytes]]) -> bytes:
    for number in range(ATTEMPTS):
        try:
            return await attempt()
        except _NotNow as error:
            if number == ATTEMPTS - 1:
                raise Refused(f"{error}, {ATTEMPTS} times") from error
            await asyncio.sleep(max(min(error.wait_sec, LONGEST_WAIT_SEC), BACKOFF_SEC * 2**number))
    raise AssertionError


async def _ask(session: aiohttp.ClientSession, address: str, limit: int, accept: str) -> bytes:
    try:
        async with session.get(address, max_redirects=REDIRECTS, headers={"Accept": accept}) as answer:
            if answer.status in _PASSING:
                raise _NotNow(f"was answered {answer.status} {answer.reason}", _retry_after(answer))
            if answer.status != 200:
                raise Refused(f"was answered {answer.status} {answer.reason}")
            data = await answer.content.read(1)
            async for part in answer.content.iter_any():
                data += part
                if len(data) > limit:
                    raise Refused(f"is answered with more than {limit >> 20} MB")
            return data
    except _FINAL as error:
        raise Refused(f"cannot be asked for ({_named(error)})") from error
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
        raise _NotNow(f"did not come ({_named(error)})") from error


def _named(error: BaseException) -> str:
    """What came between, in words: aiohttp's own hold names of classes and of calls."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"no host called {error.host} is known here; check the address, and the connection"
    if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(error, aiohttp.ClientSSLError):
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else short_reason(error)
        return f"no connection to {error.host}: {reason}"
    if isinstance(error, asyncio.TimeoutError):
        return "it took too long"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the server closed the connection"
    return short_reason(error)


def _retry_after(answer: aiohttp.ClientResponse) -> float:
    with contextlib.suppress(ValueError):
        return max(float(answer.headers.get("Retry-After", "0")), 0.0)
    return 0.0


def check_picture(data: bytes, wanted: Wanted) -> None:
    """Look at what came, and decode it, so that nothing broken is kept.

    Raises:
        Refused: it is not a picture, or has another size.
        _NotNow: it is cut off.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:
        begin = data[:40].decode("latin-1").split()
        raise Refused(f"is not a picture (it begins with {' '.join(begin)[:40]!r})") from error
    if max(abs(image.width - wanted.width), abs(image.height - wanted.height)) > wanted.slack:
        raise Refused(f"has {image.width} x {image.height} pixels, and {wanted.width} x {wanted.height} are right")
    try:
        image.load()
    except Exception as error:
        raise _NotNow(f"came damaged ({_named(error)})") from error


def _read_local(wanted: Wanted) -> bytes:
    path = Path(wanted.address)
    size = regular_size(path, "the tile")
    if size > TILE_BYTES:
        raise UserError(f"The tile {path} has {size >> 20} MB, and {TILE_BYTES >> 20} are allowed.")
    return path.read_bytes()
