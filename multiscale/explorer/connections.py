"""Connections share the server: idle ones make room for new ones, and clients that do not read are cut off.

A stranger may open any number of them, send half of a request, or leave an answer unread. No such connection is kept for long,
and none keeps others out.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import ipaddress
import sys
import time
from collections import defaultdict
from typing import Any

from aiohttp import web

CONNECTIONS = 512
"""Open at once, of any kind, at most."""
ADDRESS_CONNECTIONS = 256
"""Of one address; idle ones beyond are closed. A proxy's clients have one address together."""
SPARE_DESCRIPTORS = 64
"""Files that the server has open beside connections, at most."""
IDLE_SECONDS = 15.0
"""Longest without a request, from the first byte to the end of its headers too."""
STALLED_SECONDS, STALLED_BYTES = 20.0, 1 << 16
"""An answer must be read by so many bytes in this time, or to its end."""
SWEEP_SECONDS = 0.5


class Connections:
    """The open connections of one server; methods are for the event loop."""

    def __init__(self) -> None:
        self.limit = min(CONNECTIONS, _descriptors() - SPARE_DESCRIPTORS)
        self._server: web.Server | None = None
        self._busy: dict[Any, int] = defaultdict(int)
        self._idle_since: dict[Any, float] = {}
        self._unread: dict[Any, tuple[int, float]] = {}

    def protocol_for(self, server: web.Server) -> asyncio.BaseProtocol:
        """What serves a new connection: where there are too many, one that is idle makes room, or the new one is closed."""
        self._server = server
        found = server.connections
        if len(found) >= self.limit and not self._make_room(found):
            return _Refusal()
        return server()

    def begin(self, protocol: Any) -> None:
        """A request has come whole."""
        self._busy[protocol] += 1

    def end(self, protocol: Any) -> None:
        """It has been answered, but for what lies in the connection's buffer."""
        self._busy[protocol] -= 1
        if not self._busy[protocol]:
            del self._busy[protocol]
        self._idle_since[protocol] = time.monotonic()

    async def watch(self) -> None:
        """Close what has been idle or unread for too long, for as long as the server runs."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.sweep()

    def sweep(self) -> None:
        """Look at all connections once."""
        now, found = time.monotonic(), [] if self._server is None else self._server.connections
        self._idle_since = {each: self._idle_since.get(each, now) for each in found}
        self._unread = {each: self._read(each, now) for each in found if _buffered(each)}
        for each in found:
            idle = self._is_idle(each) and now - self._idle_since[each] > IDLE_SECONDS
            if idle or (each in self._unread and now - self._unread[each][1] > STALLED_SECONDS):
                _abort(each)
        by_address = defaultdict(list)
        for each in found:
            by_address[_address(each)].append(each)
        for those in by_address.values():
            if len(those) > ADDRESS_CONNECTIONS:
                self._make_room(those, len(those) - ADDRESS_CONNECTIONS)

    def _read(self, protocol: Any, now: float) -> tuple[int, float]:
        """Bytes in a connection's buffer when it was last seen to be read, and when that was."""
        size = _buffered(protocol)
        before, since = self._unread.get(protocol, (size, now))
        return (size, now) if size <= before - STALLED_BYTES or size > before else (before, since)

    def _is_idle(self, protocol: Any) -> bool:
        return protocol not in self._busy and not _buffered(protocol)

    def _make_room(self, those: list[Any], count: int = 1) -> bool:
        """Close those of some connections which have been idle longest, ``count`` at most; False if none is idle."""
        now = time.monotonic()
        idle = [each for each in those if self._is_idle(each) and not _is_closing(each)]
        for each in heapq.nsmallest(count, idle, key=lambda each: self._idle_since.setdefault(each, now)):
            _abort(each)
        return bool(idle)


class _Refusal(asyncio.Protocol):
    """Ends a connection as soon as it is made."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _descriptors() -> int:
    """Files that this process may have open, after asking for as many as it needs."""
    if sys.platform == "win32":
        return 1 << 20
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard) if hard >= 0 else wanted, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if soft == resource.RLIM_INFINITY else max(soft, SPARE_DESCRIPTORS + 16)


def _buffered(protocol: Any) -> int:
    transport = protocol.transport
    return 0 if transport is None else transport.get_write_buffer_size()


def _is_closing(protocol: Any) -> bool:
    return protocol.transport is None or protocol.transport.is_closing()


def _abort(protocol: Any) -> None:
    if protocol.transport is not None:
        protocol.transport.abort()


def _address(protocol: Any) -> str:
    """Who is at the other end: an address, of version 6 without the half that anybody may choose."""
    name = None if protocol.transport is None else protocol.transport.get_extra_info("peername")
    if not name:
        return ""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(name[0].partition("%")[0])
        if address.version == 6 and address.ipv4_mapped is None:
            return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(name[0])
