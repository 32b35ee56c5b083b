"""A proxy with a path prefix, as nginx and others serve the explorer: it takes the prefix off and passes all else on."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

import aiohttp
from aiohttp import web


@contextlib.contextmanager
def proxying(inner: str, port: int, prefix: str) -> Iterator[None]:
    """Serve ``inner`` below ``prefix`` at a port of this machine, from a thread."""
    started, loop = threading.Event(), asyncio.new_event_loop()

    async def serve() -> None:
        async with aiohttp.ClientSession(auto_decompress=False) as client:

            async def passed_on(request: web.Request) -> web.StreamResponse:
                address = inner + request.rel_url.raw_path_qs.removeprefix(f"{prefix}/")
                headers = {name: value for name, value in request.headers.items() if name.lower() not in SKIPPED}
                if "Upgrade" in request.headers:
                    return await sockets(request, address, headers)
                body = await request.read()
                async with client.request(
                    request.method, address, headers=headers, data=body, allow_redirects=False
                ) as answer:
                    kept = [(name, value) for name, value in answer.headers.items() if name.lower() not in SKIPPED]
                    return web.Response(status=answer.status, headers=dict(kept), body=await answer.read())

            async def sockets(request: web.Request, address: str, headers: dict[str, str]) -> web.StreamResponse:
                outer = web.WebSocketResponse(max_msg_size=0)
                async with client.ws_connect(address, headers=headers, max_msg_size=0) as socket:
                    await outer.prepare(request)

                    async def pump(source, target) -> None:
                        async for message in source:
                            if message.type is aiohttp.WSMsgType.TEXT:
                                await target.send_str(message.data)
                            else:
                                await target.send_bytes(message.data)
                        await target.close()

                    await asyncio.wait(
                        [asyncio.ensure_future(pump(outer, socket)), asyncio.ensure_future(pump(socket, outer))],
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                return outer

            app = web.Application()
            app.router.add_route("*", f"{prefix}/{{rest:.*}}", passed_on)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            started.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            await runner.cleanup()

    task = loop.create_task(serve())
    thread = threading.Thread(target=loop.run_until_complete, args=[task], daemon=True)
    thread.start()
    assert started.wait(60)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(10)


SKIPPED = {
    *("host", "connection", "upgrade", "content-length", "transfer-encoding", "content-encoding"),
    *("sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions"),
}
"""Headers of one connection; the Host is the inner server's, as many proxies have it."""
