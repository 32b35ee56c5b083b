"""The life of the explorer's server: from the first look at the networks to the last connection."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from urllib.parse import quote

import torch
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from dnnlib.cache import DiskCache
from dnnlib.console import say
from dnnlib.errors import UserError
from dnnlib.files import cache_folder
from dnnlib.signals import are_heard
from multiscale.explorer.access import Access
from multiscale.explorer.app import Explorer
from multiscale.explorer.connections import Connections
from multiscale.explorer.films import Films
from multiscale.explorer.networks import Library, Network
from multiscale.explorer.options import Options
from multiscale.explorer.scheduler import Owner, Rank, RenderQueue
from multiscale.explorer.services import Services
from multiscale.runs.headers import choice
from torch_utils.devices import default_device, keep_freed_memory

FIRST_PORT, PORTS = 8000, 100
END_SECONDS = 0.4
"""Grace period of connections, then of requests, then of the render thread."""


def serve(options: Options, ready: Callable[[str], None]) -> None:
    """Run a server until SIGINT, SIGTERM, SIGHUP or SIGUSR1. Threads inside a layer or an encoder may outlast it for a while.

    Args:
        options: What to show, and where.
        ready: Called with the address of the page, with its token, when it can be opened.

    Raises:
        UserError: no network, or no address to listen on.
    """
    logging.getLogger("aiohttp.server").addFilter(is_news)
    keep_freed_memory()
    _leave_a_core()
    asyncio.run(_serve(options, ready))


def _leave_a_core() -> None:
    """Render on one core fewer than there are, unless the environment says how many.

    Threads of one layer wait for each other: with the browser or the encoder on one of their cores, all are as slow as that
    one (measured on 4: a frame of 256 x 256 then takes 287 ms on four threads, 119 ms on three; 122 and 116 ms alone).
    """
    threads = torch.get_num_threads()
    if threads > 2 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads - 1)


async def _serve(options: Options, ready: Callable[[str], None]) -> None:
    queue = RenderQueue()
    library = Library(options.network, default_device(), queue)
    network = await library.first()  # reports what is wrong with it now
    if (sentence := choice(library.entries[network.name].path, options.network)) is not None:
        say(sentence)
    services = Services(library, queue, Films(queue), DiskCache(cache_folder() / "tiles", options.cache_mb << 20))
    access = Access(options.token, origins=options.origins, public_url=options.public_url)
    explorer = Explorer(services, access)
    runner = web.AppRunner(explorer.app, access_log=None, handler_cancellation=True, shutdown_timeout=END_SECONDS)
    await runner.setup()
    try:
        listener, port = await _listen(runner, explorer.connections, options.host, options.port)
        stop = _stop_event()
        watching = [asyncio.create_task(watch()) for watch in (explorer.watch, explorer.connections.watch)]
        _warm_up(queue, network)
        ready(address(options.host, port, options.token, options.public_url))
        await stop.wait()
        for watch in watching:
            watch.cancel()
        listener.close()
        queue.stop(0)
        await asyncio.wait([asyncio.create_task(explorer.close())], timeout=END_SECONDS)
    finally:
        await runner.cleanup()
        services.close(END_SECONDS)


def _warm_up(queue: RenderQueue, network: Network) -> None:
    """Render a view before anybody asks, so that kernels are built and loaded."""
    job = queue.call(Owner(), Rank.DRAFT, lambda _: network.renderer.render([0], [1.0], [(0.0, 0.0)]))
    job.future.add_done_callback(lambda _: job.close())


async def _listen(
    runner: web.AppRunner, connections: Connections, host: str, port: int | None
) -> tuple[asyncio.Server, int]:
    """Listen on a port, or on the first free one; the listener, and the port."""
    assert runner.server is not None
    connected = partial(connections.protocol_for, runner.server)
    for candidate in [port] if port is not None else range(FIRST_PORT, FIRST_PORT + PORTS):
        try:
            return await asyncio.get_running_loop().create_server(connected, host, candidate), candidate
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            if taken and port is None:
                continue
            reason = "it is taken" if taken else error.strerror or error
            advice = "give another --port, or none for the first free one" if taken else "give another --host or --port"
            raise UserError(f"Cannot listen on {host} port {candidate}: {reason}; {advice}.") from error
    raise UserError(f"No port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} is free; give one with --port.")


def _stop_event() -> asyncio.Event:
    """Set by SIGINT (Ctrl-C), SIGTERM, SIGHUP or SIGUSR1."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, *are_heard()):
        with contextlib.suppress(NotImplementedError):  # Windows interrupts the loop instead
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def is_news(record: logging.LogRecord) -> bool:
    """Whether a record of aiohttp's log is about more than a request that is not HTTP."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def address(host: str, port: int, token: str | None, public_url: str | None = None) -> str:
    """What to open in a browser."""
    query = f"?token={quote(token)}" if token else ""
    if public_url is not None:
        return f"{public_url}/{query}"
    if host in ("0.0.0.0", "::", ""):
        host = socket.gethostname()
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/{query}"
