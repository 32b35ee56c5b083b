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
"""Limit of open connections of any kind."""
ADDRESS_CONNECTIONS = 256
"""Limit for one address, beyond which idle ones are closed. A proxy's clients share one address."""
SPARE_DESCRIPTORS = 64
"""File descriptors reserved for what is not a connection."""
IDLE_SECONDS = 15.0
"""Longest wait for a request, and from its first byte to the end of its headers."""
STALLED_SECONDS, STALLED_BYTES = 20.0, 1 << 16
"""In this time a client must read so many bytes of an answer, or the rest of it."""
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
        """The protocol of a new connection; where there are too many, an idle one is closed, or else the new one."""
        self._server = server
        found = server.connections
        if len(found) >= self.limit and not self._make_room(found):
            return _Refusal()
        return server()

    def begin(self, protocol: Any) -> None:
        """A request has arrived."""
        self._busy[protocol] += 1

    def end(self, protocol: Any) -> None:
        """It has been answered, except for what is still in the connection's buffer."""
        self._busy[protocol] -= 1
        if not self._busy[protocol]:
            del self._busy[protocol]
        self._idle_since[protocol] = time.monotonic()

    async def watch(self) -> None:
        """Close what has been idle or unread for too long, while the server runs."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.sweep()

    def sweep(self) -> None:
        """Check all connections once."""
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
        """Close up to ``count`` of ``those`` that have been idle longest; False if none is idle."""
        now = time.monotonic()
        idle = [each for each in those if self._is_idle(each) and not _is_closing(each)]
        for each in heapq.nsmallest(count, idle, key=lambda each: self._idle_since.setdefault(each, now)):
            _abort(each)
        return bool(idle)


class _Refusal(asyncio.Protocol):
    """Closes a connection as soon as it is made."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _descriptors() -> int:
    """Limit of this process's open files, raised to what the server needs if the system allows it."""
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
    """The client's address; of IPv6 its /64 network, as clients choose the rest freely."""
    name = None if protocol.transport is None else protocol.transport.get_extra_info("peername")
    if not name:
        return ""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(name[0].partition("%")[0])
        if address.version == 6 and address.ipv4_mapped is None:
            return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(name[0])
