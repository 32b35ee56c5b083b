"""zoom.py as users type it: the address that it prints, how it ends, and one sentence for each mistake."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web
from click.testing import CliRunner
from serving import PATIENCE_SEC, Socket, small_run, until

from multiscale.cli import zoom
from multiscale.explorer import connections, server

ROOT = Path(__file__).parent.parent.parent
ATONCE_SEC = 30
"""A second on an idle machine; aiohttp would wait a minute for its clients, and the film takes many."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("zoom") / "run", (1,))


@contextlib.contextmanager
def started(folder, tmp_path, *options, **environment):
    """The running command, and its address."""
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION")
    inherited = {name: value for name, value in os.environ.items() if name not in hidden}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "zoom.py"), "--network", str(folder), *options],
        cwd=tmp_path,
        env={**inherited, "TMPDIR": str(tmp_path), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            said = ""
            while not (found := re.search(r"http://\S+", said)):  # kernels may be built meanwhile, which it says
                line = process.stdout.readline()
                assert line, said
                said += line
            yield process, found[0]
        finally:
            process.kill()


async def film_and_large_image(session, web_socket, url):
    """Have the server work on something that takes many minutes."""
    await web_socket.ask(0)
    await web_socket.hear(5 * PATIENCE_SEC)  # kernels may have to be built first
    film = {"world": "3", "width": 512, "height": 512, "fps": 30, "seconds": 1200}
    film["keyframes"] = [{"zoom": 1, "x": 0, "y": 0}, {"zoom": 9, "x": 0, "y": 0}]
    async with session.post(url.replace("?", "api/films?"), json=film) as answer:
        assert answer.status == 202
    await web_socket.ask(1, width=2048, height=2048, pitch=1 / 2048, extrapolate=True, quality="sharp")
    await asyncio.sleep(0.5)


def test_sigterm_ends_it_at_once_while_clients_wait_for_large_images(folder, tmp_path):
    token = "token-of-the-test"

    async def wait_in_vain(process, url):
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
            session.ws_connect(url.replace("?", "ws?"), max_msg_size=0) as raw,
        ):
            await film_and_large_image(session, Socket(raw), url)
            start = time.perf_counter()
            process.send_signal(signal.SIGTERM)
            message = await raw.receive(ATONCE_SEC)
            assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED), message
            await asyncio.to_thread(process.wait, ATONCE_SEC)
            return time.perf_counter() - start

    with started(folder, tmp_path, "--token", token, "--no-browser", SSH_CONNECTION="1 2 3 4") as (process, url):
        assert url.endswith(f"/?token={token}")
        took = asyncio.run(wait_in_vain(process, url))
        output = process.communicate()[0]
        assert process.returncode == 0, output
    assert took < ATONCE_SEC
    port = urlsplit(url).port
    assert f"ssh -L {port}:localhost:{port}" in output
    assert "Traceback" not in output
    assert not list(tmp_path.glob(".multiscale-films.*"))


def test_ctrl_c_ends_it(folder, tmp_path):
    with started(folder, tmp_path, "--no-browser") as (process, url):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.communicate(timeout=PATIENCE_SEC)[0]
        assert process.returncode == 0


def refused(*arguments):
    result = CliRunner().invoke(zoom.main, ["--no-browser", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.stderr.strip().splitlines()[-1]


def test_a_port_that_is_taken(folder, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert refused("--network", folder, "--port", port) == (
            f"Error: Cannot listen on 127.0.0.1 port {port}: it is taken; give another --port, or none for the first free one."
        )
        monkeypatch.setattr(server, "FIRST_PORT", port)
        monkeypatch.setattr(server, "PORTS", 1)
        assert f"No port from {port} to {port} is free" in refused("--network", folder)


def test_a_network_that_nobody_named_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(zoom.main, ["--no-browser", "--host", "no such host"])
    assert re.match(r"Using the bundled model \([\d.]+ kimg\); --network takes another\.\n", result.stderr)


@pytest.mark.parametrize(
    "arguments, what",
    [
        (["--network", "nowhere"], "There is no network nowhere"),
        (["--network", "."], "holds no snapshot"),
        (["--token", "short"], "--token must have 8 to 200"),
        (["--port", 0], "--port"),
        (["--host", "no such host"], "Cannot listen on no such host port"),
        (["--cache-mb", -1], "--cache-mb"),
    ],
)
def test_mistakes_cost_one_sentence(folder, tmp_path, monkeypatch, arguments, what):
    monkeypatch.chdir(tmp_path)
    given = arguments if "--network" in arguments else ["--network", folder, *arguments]
    assert what in refused(*given)


def test_a_broken_network_is_said_at_the_start(folder, tmp_path):
    broken = tmp_path / "generator-000000001.safetensors"
    broken.write_bytes(b"nothing")
    assert "is not a whole safetensors file" in refused("--network", broken)


def test_connections_of_any_kind_are_bounded(folder, monkeypatch):
    monkeypatch.setattr(connections, "CONNECTIONS", 3)

    async def work():
        async def forever(_):
            await asyncio.Event().wait()

        app, kept = web.Application(), connections.Connections()

        @web.middleware
        async def counted(request, handler):
            kept.begin(request.protocol)
            try:
                return await handler(request)
            finally:
                kept.end(request.protocol)

        app.middlewares.append(counted)
        app.router.add_get("/busy", forever)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        listener, port = await server._listen(runner, kept, "127.0.0.1", None)
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        for _, other in silent:
            other.write(b"GET /busy HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await until(lambda: len(kept._busy) == 3)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), PATIENCE_SEC) == b""
        writer.close()
        silent[0][1].close()
        await until(lambda: len(runner.server.connections) == 2)
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/") as answer:
            assert answer.status == 404
        for _, other in silent[1:]:
            other.close()
        listener.close()
        await runner.cleanup()

    asyncio.run(work())


@pytest.mark.parametrize(
    "host, token, url",
    [
        ("127.0.0.1", None, "http://127.0.0.1:8000/"),
        ("::1", "abc", "http://[::1]:8000/?token=abc"),
        ("0.0.0.0", "a&b=%", f"http://{socket.gethostname()}:8000/?token=a%26b%3D%25"),
    ],
)
def test_addresses(host, token, url):
    assert server.address(host, 8000, token) == url
