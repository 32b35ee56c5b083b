"""Ten thousand messages and requests that nobody in their senses would send."""

import asyncio
import json
import logging
import random
from pathlib import Path

from serving import Served, frame, run, serving, small_run, until

from multiscale.explorer.server import is_news

MESSAGES, REQUESTS = 6000, 4000
SECRET = b"the canary sings"

NUMBERS = [0, -0.0, 1, -1, 0.5, 1e-9, 1e-300, 1e300, 2**31, 2**53, 2**64, 10**40, -(10**400), 8192, 8193, 1 / 3]
TEXTS = [
    "",
    "3",
    "3~7:0.5",
    "3d1:1_4@0-3",
    "~",
    "3~",
    "9" * 400,
    "3" + "_3@0" * 90,
    "\0",
    "\ud800",
    "ä",
    "../" * 9,
    "null",
    "x" * 9000,
]
ANYTHING = [None, True, False, [], {}, [[]], {"a": 1}, float("nan"), float("inf"), *NUMBERS, *TEXTS]


def message(rng: random.Random) -> str | bytes:
    """Something to say on the WebSocket; now and then it is right."""
    kind = rng.random()
    if kind < 0.1:
        return rng.randbytes(rng.randrange(200))
    if kind < 0.2:
        return "".join(rng.choice('{}[]",:0123456789.eE+-nulltruefalse "\\u') for _ in range(rng.randrange(300)))
    request = frame(
        rng.randrange(100), slot=rng.choice("abc"), quality=rng.choice(["draft", "sharp"]), width=8, height=8
    )
    if rng.random() < 0.1:
        request = rng.choice([{"type": "cancel", "slot": "a"}, {"type": "ping", "id": 1}])
    for _ in range(rng.choice([0, 1, 1, 1, 2, 5])):
        key = rng.choice([*request, "more"])
        if rng.random() < 0.15:
            request.pop(key, None)
        else:
            request[key] = rng.choice(ANYTHING)
    text = json.dumps(request)
    if kind < 0.3:
        place = rng.randrange(len(text) + 1)
        text = (
            text[:place]
            + rng.choice(["", "\0", "}", '"', "NaN", "1e9999", "[" * 500])
            + text[place + rng.randrange(3) :]
        )
    return text.encode("utf-8", "replace").decode()


def request(rng: random.Random, canary: Path) -> bytes:
    """An HTTP request, as bytes."""
    world = rng.choice(
        [
            "3",
            "3",
            "3",
            "3~7:0.5",
            "../..",
            "%2e%2e",
            "..%2f..%2f",
            "%00",
            "3" * 500,
            "a b",
            "{world}",
            "_files",
            ".dzi",
        ]
    )

    def number() -> str:
        return rng.choice(["0", "0", "0", "1", "-1", "9" * 30, "1.5", "x", "", "%2e%2e", "٣"])

    up = "/".join([rng.choice(["..", "%2e%2e", "..%2f..", "....//", "..;", "..\\"])] * rng.randrange(1, 12))
    secret = rng.choice([str(canary), canary.name, str(canary).lstrip("/"), "etc/passwd"])
    path = rng.choice(
        [
            f"/static/{up}/{secret}",
            f"/static/{secret}",
            f"/{up}/{secret}",
            f"/tiles/{world}/{number()}/{number()}/{number()}.png",
            f"/tiles/{world}_files/{number()}/{number()}_{number()}.png",
            f"/tiles/{world}.dzi?trunc={number()}&network={secret}",
            f"/tiles/{up}/{secret}",
            f"/iiif/{world}/info.json",
            f"/iiif/{world}/{number()},0,256,256/{number()},256/0/default.png",
            f"/iiif/{up}{secret}/full/8,8/0/default.png",
            f"/api/films/{up}/{secret}",
            f"/api/films/{secret}/film.mp4",
            f"/api/image.png?world={world}&left={number()}&top=-.5&pitch={number()}&width=8&height={number()}",
            f"/api/image.png?world=3&left=-.5&top=-.5&pitch=0.01&width=8&height=8&network={up}/{secret}",
            f"file://{secret}",
            "/?" + "&".join(f"a{i}={i}" for i in range(rng.randrange(300))),
            "".join(chr(rng.randrange(33, 256)) for _ in range(rng.randrange(1, 80))),
        ]
    )
    method = rng.choice(["GET"] * 8 + ["HEAD", "POST", "DELETE", "PUT", "OPTIONS", "TRACE", "X"])
    host = rng.choice(["127.0.0.1"] * 8 + ["example.com", "[::", "", "a\0b"])
    body = (
        rng.choice([b"", b"{}", b"[" * 1000, b'{"world": "3", "fps": 1e999}', rng.randbytes(50)])
        if method == "POST"
        else b""
    )
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}", "Connection: close"]
    if rng.random() < 0.1:
        lines.append(
            rng.choice(
                [
                    "Range: bytes=5-1",
                    "If-None-Match: *",
                    "Transfer-Encoding: chunked",
                    "Cookie: ===;;;",
                    "Upgrade: websocket",
                ]
            )
        )
    data = "\r\n".join([*lines, "", ""]).encode("utf-8") + body
    return rng.randbytes(rng.randrange(100)) + b"\r\n\r\n" if rng.random() < 0.05 else data


async def send(served: Served, data: bytes) -> bytes:
    """All that a server answers on a connection of its own."""
    reader, writer = await asyncio.open_connection(served.client.host, served.client.port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(), 3)  # some are never answered
    except (ConnectionError, asyncio.TimeoutError):
        return b""
    finally:
        writer.close()


async def talk(served: Served, rng: random.Random, count: int) -> int:
    """Say things on WebSockets without waiting for answers, which are all well-formed; how many frames came."""
    done, frames = 0, 0
    while done < count:
        async with served.socket() as socket:

            async def listen():
                nonlocal frames
                while not socket.raw.closed:
                    try:
                        header, image = await socket.hear()
                    except (AssertionError, TypeError):
                        return  # closed
                    assert header["type"] in ("frame", "error", "pong")
                    frames += header["type"] == "frame"
                    assert SECRET not in image
                    assert "Traceback" not in json.dumps(header)

            listening = asyncio.create_task(listen())
            for _ in range(min(500, count - done)):
                said = message(rng)
                done += 1
                try:
                    await (socket.raw.send_bytes(said) if isinstance(said, bytes) else socket.raw.send_str(said))
                except ConnectionError:
                    break  # it was too long
                if done % 20 == 0:
                    await asyncio.sleep(0)
            else:
                if not frames:  # so soon
                    await socket.ask(1)
                    await until(lambda: frames or socket.raw.closed)
            await socket.raw.close()
            await listening
    return frames


def listing(*folders: Path) -> set[tuple[Path, int]]:
    return {(path, path.stat().st_mtime_ns) for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_nothing_that_is_said_or_asked_does_harm(tmp_path, monkeypatch, caplog):
    folder, outside = small_run(tmp_path / "run", (1,)), tmp_path / "outside"
    outside.mkdir()
    canary = tmp_path / "canary.txt"
    canary.write_bytes(SECRET)
    monkeypatch.chdir(outside)
    before = listing(folder, outside)
    rng = random.Random(0)
    statuses: set[bytes] = set()

    async def asking(served):
        for _ in range(REQUESTS // 20):
            for answer in await asyncio.gather(*(send(served, request(rng, canary)) for _ in range(20))):
                assert SECRET not in answer
                assert b"Traceback" not in answer
                assert b"root:" not in answer
                statuses.add(answer[9:12])

    async def work():
        async with serving(folder, tmp_path / "cache") as served:
            talks = [talk(served, random.Random(i), MESSAGES // 4) for i in range(4)]
            _, *frames = await asyncio.gather(asking(served), *talks)
            assert min(frames) > 0
            assert (await served.client.get("/api/info")).status == 200
            async with served.socket() as socket:
                await socket.ask(1)
                assert (await socket.hear())[0]["type"] == "frame"
            await until(lambda: not (served.explorer.sessions or served.queue._jobs))

    with caplog.at_level(logging.WARNING):
        run(work())
    assert listing(folder, outside) == before
    assert {path.name for path in tmp_path.iterdir()} == {"run", "outside", "cache", "canary.txt"}
    assert all(len(path.name) == 64 for path, _ in listing(tmp_path / "cache"))
    assert {b"200", b"400", b"403", b"404", b"405"} <= statuses
    assert b"500" not in statuses
    assert not [record for record in caplog.records if record.exc_info and is_news(record)]
