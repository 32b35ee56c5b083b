"""The server shares itself fairly and keeps bounds; other sites' pages cannot use it, proxies are understood."""

import asyncio
import contextlib
import io
import json
import re
import struct
import threading
import time
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from explorer.serving import PATIENCE_SEC, Clock, run, serving, small_run, until
from PIL import Image
from safetensors.torch import load_file, save_file
from yarl import URL

from dnnlib.errors import UserError
from multiscale.cli import zoom
from multiscale.explorer import app, connections, films, image_downloads, scheduler, server, session
from multiscale.explorer.app import STATIC
from multiscale.explorer.messages import join_options, split_options
from multiscale.explorer.networks import Library
from multiscale.explorer.options import parse_origin, parse_public_url
from multiscale.explorer.scheduler import Owner, Rank, RenderQueue
from multiscale.runs.headers import snapshots_of

ROOT = Path(__file__).parents[2]
TOKEN = "correct-horse;battery/9="
FILM = {"world": "3", "width": 32, "height": 32, "fps": 5, "seconds": 1}
FILM["keyframes"] = [{"zoom": 1, "x": 0, "y": 0}, {"zoom": 2, "x": 0, "y": 0}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("server") / "run")


def with_server(folder, tmp_path, work, **options):
    async def main():
        async with serving(folder, tmp_path / "cache", **options) as served:
            return await work(served)

    return run(main())


# Connections ---------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def listening(folder, tmp_path):
    """The server as ``zoom.py`` has it, with its watch over connections; its port."""
    async with serving(folder, tmp_path / "cache") as served:
        inner = served.client.server.runner.server
        kept = served.explorer.connections
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(lambda: kept.protocol_for(inner), "127.0.0.1", 0)
        watching = asyncio.create_task(kept.watch())
        try:
            yield served, listener.sockets[0].getsockname()[1]
        finally:
            watching.cancel()
            listener.close()


async def asked(port, path="/api/info"):
    timeout = aiohttp.ClientTimeout(PATIENCE_SEC)
    async with aiohttp.ClientSession(timeout=timeout) as client, client.get(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.status


def test_any_number_of_idle_connections_locks_nobody_out(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(connections, "CONNECTIONS", 24)

    async def main():
        async with listening(folder, tmp_path) as (_, port):
            idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(60)]
            for i, (_, writer) in enumerate(idle):
                with contextlib.suppress(ConnectionError):
                    writer.write([b"", b"GET / HTTP/1.1\r\nHost: loc", b"POST /api/films HTTP/1.1\r\n"][i % 3])
            statuses = [await asked(port) for _ in range(30)]
            for _, writer in idle:
                writer.close()
            return statuses

    assert run(main()) == [200] * 30


WHOLE = b"GET /api/info HTTP/1.1\r\nHost: localhost\r\n\r\n"
BODILESS = b"POST /api/films HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"


@pytest.mark.parametrize(
    "sent", [b"", WHOLE[:30], WHOLE, b"POST /api/films HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"]
)
def test_connections_without_a_request_are_closed_in_time_and_working_ones_are_not(folder, tmp_path, monkeypatch, sent):
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(app, "BODY_SECONDS", 0.3)

    async def main():
        async with (
            listening(folder, tmp_path) as (_, port),
            aiohttp.ClientSession() as client,
            client.ws_connect(f"http://127.0.0.1:{port}/ws") as socket,
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), PATIENCE_SEC)  # to the end
            await socket.send_json({"type": "ping", "id": 7})
            assert (await socket.receive_json(timeout=PATIENCE_SEC))["id"] == 7
            writer.close()

    run(main())


def test_one_address_has_a_part_of_the_connections(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(connections, "ADDRESS_CONNECTIONS", 5)
    monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.05)

    async def main():
        async with listening(folder, tmp_path) as (served, port):
            idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
            ends = [asyncio.create_task(reader.read()) for reader, _ in idle]
            await until(lambda: sum(end.done() for end in ends) >= 15)
            left = len(served.client.server.runner.server.connections)
            for _, writer in idle:
                writer.close()
            await asyncio.gather(*ends, return_exceptions=True)
            return left

    assert run(main()) <= 5


def test_connections_stay_below_the_descriptors_that_there_may_be(monkeypatch):
    assert 16 <= connections.Connections().limit <= connections.CONNECTIONS
    monkeypatch.setattr(connections, "_descriptors", lambda: 200)
    assert connections.Connections().limit == 200 - connections.SPARE_DESCRIPTORS


def test_who_does_not_read_is_cut_off_and_images_in_memory_are_bounded_until_then(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(connections, "STALLED_SECONDS", 0.5)
    monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.05)
    side, most = 64, []
    monkeypatch.setattr(image_downloads, "HELD_BYTES", 3 * side * side)
    query = f"world=3&left=-0.5&top=-0.5&pitch={1 / side}&width={side}&height={side}&extrapolate=1"
    monkeypatch.setattr(
        image_downloads, "encode_png", lambda *_: bytes(30 << 20)
    )  # more than the system's buffers hold

    async def main():
        async with listening(folder, tmp_path) as (served, port):
            unread = [await asyncio.open_connection("127.0.0.1", port, limit=1 << 10) for _ in range(6)]
            for _, writer in unread:
                writer.write(f"GET /api/image.png?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            handlers = served.client.server.runner.server

            def unsent():
                return sum(each.transport.get_write_buffer_size() for each in handlers.connections if each.transport)

            def are_cut_off():
                most.append(unsent())
                return max(most) > 0 and not handlers.connections

            await until(are_cut_off)
            assert await asked(port) == 200
            for _, writer in unread:
                writer.close()
            return len(handlers.connections)

    run(main())
    assert 0 < max(most) <= 30 << 20
    assert most[-1] == 0


# Turns ---------------------------------------------------------------------------------------------------------------


def test_whoever_has_had_more_than_a_share_comes_after_those_who_have_not(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(scheduler, "time", clock)
    queue, order, held, asked = RenderQueue(), [], threading.Event(), []

    def piece(name):
        def work(_):
            clock.now += 0.02
            order.append(name)
            if len(order) == 40:  # each of the four has had 0.2 s
                asked.append(queue.call(Owner(), Rank.SHARP, piece("fair")))

        return work

    queue.call(Owner(), Rank.DRAFT, lambda _: held.wait(PATIENCE_SEC))
    floods = [Owner() for _ in range(4)]
    jobs = [queue.call(owner, Rank.DRAFT, piece("flood")) for _ in range(30) for owner in floods]
    for job in jobs:
        job.future.add_done_callback(lambda _, job=job: job.close())
    held.set()
    for job in jobs:
        job.future.result(PATIENCE_SEC)
    assert order == ["flood"] * 40 + ["fair"] + ["flood"] * 80
    assert queue.stop(PATIENCE_SEC)


def test_nothing_is_done_for_whoever_floods_while_others_wait(monkeypatch):
    """Frames that take so long that what each has had is forgotten before its next turn."""
    clock = Clock()
    monkeypatch.setattr(scheduler, "time", clock)
    queue, order = RenderQueue(), []

    def asked(owner, name, rank=Rank.DRAFT):
        def work(_):
            clock.now += 30 * scheduler.FORGET_SECONDS
            order.append(name)

        job = queue.call(owner, rank, work)
        job.future.add_done_callback(lambda _: job.close())
        return job

    floods, fair = [Owner() for _ in range(4)], [Owner() for _ in range(3)]
    for owner in floods:
        owner.floods = True
    held = threading.Event()
    queue.call(Owner(), Rank.DRAFT, lambda _: held.wait(PATIENCE_SEC))
    jobs = [asked(owner, "flood", rank) for _ in range(3) for owner in floods for rank in (Rank.DRAFT, Rank.SHARP)]
    jobs += [asked(owner, "fair", rank) for _ in range(2) for owner in fair for rank in (Rank.DRAFT, Rank.LONG)]
    queue._served_at[Rank.SHARP] -= 60  # theirs is a rank that has waited long
    held.set()
    for job in jobs:
        job.future.result(PATIENCE_SEC)
    assert order == ["fair"] * 12 + ["flood"] * 24
    assert queue.stop(PATIENCE_SEC)


def test_a_session_floods_for_as_long_as_it_says_more_than_is_heard(folder, tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(session, "time", clock)
    monkeypatch.setattr(session, "MESSAGES_A_SECOND", 50.0)
    monkeypatch.setattr(session, "BURST", 10.0)

    async def work(served):
        async with served.socket() as socket:
            said = []
            for count, pause in ((8, 0.3), (14, 0.3), (1, 0)):
                for i in range(count):
                    await socket.say({"type": "ping", "id": i})
                for _ in range(count):
                    await socket.hear()
                said.append(next(iter(served.explorer.sessions))._owner.floods)
                clock.now += pause
            return said

    assert with_server(folder, tmp_path, work) == [False, True, False]


def test_a_session_that_floods_is_heard_at_a_rate(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "MESSAGES_A_SECOND", 50.0)
    monkeypatch.setattr(session, "BURST", 10.0)

    async def work(served):
        async with served.socket() as flood, served.socket() as fair:
            start, heard = time.monotonic(), []

            async def listen():
                for i in range(60):
                    assert (await flood.hear())[0]["id"] == i
                    heard.append(i)

            for i in range(60):
                await flood.say({"type": "ping", "id": i})
            listening = asyncio.create_task(listen())
            await fair.say({"type": "ping", "id": 5})
            assert (await fair.hear())[0]["id"] == 5
            assert len(heard) < 60
            await listening
            return time.monotonic() - start

    assert with_server(folder, tmp_path, work) > 0.8


def test_of_a_flood_of_requests_few_are_taken_up_and_the_newest_of_each_slot_among_them(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "time", Clock())  # which stands still: places come of frames that have been sent
    monkeypatch.setattr(session, "REQUESTS_A_SECOND", 20.0)
    monkeypatch.setattr(session, "REQUESTS_BURST", 2.0)
    taken, held = [], threading.Event()
    take = session.Session._take
    monkeypatch.setattr(
        session.Session, "_take", lambda self, errand: (taken.append(errand.request.id), take(self, errand))
    )

    async def work(served):
        async with served.socket() as flood:
            served.queue.call(Owner(), Rank.DRAFT, lambda _: held.wait(PATIENCE_SEC))
            for i in range(100):
                await flood.ask(i, slot=f"slot {i % 2}", world=str(i))
            await flood.heard()
            held.set()
            newest = set()
            while newest != {98, 99}:
                newest |= {(await flood.hear())[0]["id"]} & {98, 99}
            await flood.say({"type": "cancel", "slot": "slot 1"})
            assert await flood.silent()

    with_server(folder, tmp_path, work)
    assert sorted(taken) == [0, 1, 98, 99]


def test_pages_that_say_nothing_make_room_for_others(folder, tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(app, "time", clock)
    monkeypatch.setattr(session, "time", clock)
    monkeypatch.setattr(app, "SOCKETS", 2)

    async def work(served):
        async with served.socket() as silent, served.socket() as talking:
            clock.now += 2 * app.SILENT_SECONDS
            await talking.heard()
            async with served.socket() as third:
                await third.say({"type": "ping", "id": 9})
                assert (await third.hear())[0]["id"] == 9
                with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
                    await served.client.ws_connect("/ws")
            await talking.say({"type": "ping", "id": 8})
            assert (await talking.hear())[0]["id"] == 8
            assert (await silent.raw.receive(PATIENCE_SEC)).type is not aiohttp.WSMsgType.TEXT

    with_server(folder, tmp_path, work)


# Films ---------------------------------------------------------------------------------------------------------------


def refuse(path, *_, **__):
    raise UserError(f"Cannot write {path}: no.")


async def ended(served, name):
    while (state := await (await served.client.get(f"/api/films/{name}")).json())["state"] == "rendering":
        await asyncio.sleep(0.02)
    return state


def test_films_are_bounded_on_disk_expire_and_say_nothing_of_the_server(folder, tmp_path, monkeypatch):
    async def work(served):
        post = served.client.post
        first = await (await post("/api/films", json=FILM)).json()
        assert (await ended(served, first["id"]))["state"] == "done"
        held = served.explorer.services.films
        path = held.get(first["id"]).path
        assert path.exists()

        monkeypatch.setattr(films, "KEPT_BYTES", 100)
        monkeypatch.setattr(films, "FILM_BYTES", 50)
        second = await (await post("/api/films", json=FILM)).json()
        assert not path.exists()  # it made room
        state = await ended(served, second["id"])
        assert state["state"] == "failed"
        assert "too much space" in state["message"]
        monkeypatch.setattr(films, "KEPT_BYTES", 1 << 30)

        third = await (await post("/api/films", json=FILM)).json()
        assert (await ended(served, third["id"]))["state"] == "done"
        monkeypatch.setattr(films, "KEPT_SECONDS", -1)
        held.forget_oldest()
        assert not list(held.folder.iterdir())
        assert (await served.client.get(f"/api/films/{third['id']}")).status == 404

        monkeypatch.setattr(films, "write_film", refuse)
        fourth = await (await post("/api/films", json=FILM)).json()
        state = await ended(served, fourth["id"])
        assert state["message"] == "Cannot write the film: no."

        usage = type(films.shutil.disk_usage(tmp_path))(1, 1, 10)
        monkeypatch.setattr(films.shutil, "disk_usage", lambda _: usage)
        refused = await post("/api/films", json=FILM)
        assert refused.status == 400
        assert "no space" in (await refused.json())["message"]

        huge = {**FILM, "width": 3840, "height": 2160, "fps": 60, "seconds": 600}
        refused = await post("/api/films", json=huge)
        assert "too many" in (await refused.json())["message"]

    with_server(folder, tmp_path, work)


# Networks ------------------------------------------------------------------------------------------------------------


def spoil(path, how):
    if how == "weights":
        tensors = load_file(path)
        with path.open("rb") as stream:
            metadata = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))["__metadata__"]
        next(iter(tensors.values())).fill_(float("nan"))
        save_file(tensors, path, metadata)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize("how", ["weights", "cut", "empty", "folder"])
def test_one_bad_snapshot_does_not_hide_the_others_nor_stop_the_start(tmp_path, capsys, how):
    folder = small_run(tmp_path / "run")
    bad = snapshots_of(folder)[-1]
    spoil(bad, how)
    queue = RenderQueue()
    library = Library(str(folder), torch.device("cpu"), queue)

    async def work():
        assert (await library.first()).name == "generator-000001000"
        facts = {network["name"]: network for network in library.listing()}
        assert facts["generator-000001000"]["current"]
        assert facts[bad.stem]["octaves"] is None
        with pytest.raises(UserError):
            await library.get(bad.stem)
        small_run(folder, (3,))  # the next one is good again
        assert library.scan()
        assert library.default == "generator-000003000"

    run(work())
    if how == "weights":
        assert "Showing an older one of the run." in capsys.readouterr().out
    for path in snapshots_of(folder):
        spoil(path, "empty") if path.is_file() else None
    library = Library(str(folder), torch.device("cpu"), queue)
    with pytest.raises(UserError):
        run(library.first())
    assert queue.stop(PATIENCE_SEC)


# Other sites ---------------------------------------------------------------------------------------------------------

IMAGE = "/api/image.png?world=3&left=-0.5&top=-0.5&pitch=0.1&width=4&height=4"
TILE = "/tiles/3/0/0/0.png"


@pytest.mark.parametrize("token", [None, TOKEN])
def test_pages_of_other_sites_cannot_make_it_render(folder, tmp_path, token):
    async def work(served):
        bearer = {"Authorization": f"Bearer {token}"} if token else {}
        own = f"http://{served.client.host}:{served.client.port}"
        for path in (IMAGE, TILE, "/api/info", "/iiif/3/info.json", "/tiles/3.dzi", "/static/main.js"):
            for headers, admitted in (
                ({}, True),
                ({"Sec-Fetch-Site": "none"}, True),
                ({"Sec-Fetch-Site": "same-origin"}, True),
                ({"Sec-Fetch-Site": "same-origin", "Origin": own}, True),
                ({"Sec-Fetch-Site": "same-site"}, False),
                ({"Sec-Fetch-Site": "cross-site"}, False),
                ({"Sec-Fetch-Site": "cross-site", "Referer": f"{own}/"}, False),
                ({"Origin": "https://example.org"}, False),
                ({"Origin": "null"}, False),
            ):
                answer = await served.client.get(path, headers={**headers, **bearer})
                assert answer.status == (200 if admitted else 403), (path, headers)
                assert "Access-Control-Allow-Origin" not in answer.headers
        answer = await served.client.get("/", headers={"Sec-Fetch-Site": "cross-site", **bearer})  # a link
        assert answer.status == 200
        assert served.queue._count < 8

    with_server(folder, tmp_path, work, token=token)


def test_tiles_are_for_the_pages_that_the_user_has_named(folder, tmp_path):
    mine, theirs = "https://maps.example.org", "https://example.com"

    async def work(served):
        for headers, allowed in (
            ({"Origin": mine}, mine),
            ({"Sec-Fetch-Site": "cross-site", "Referer": f"{mine}/map.html"}, None),
            ({"Origin": theirs}, False),
            ({"Sec-Fetch-Site": "cross-site", "Referer": f"{theirs}/{mine}"}, False),
            ({"Sec-Fetch-Site": "cross-site"}, False),
        ):
            for path in (TILE, "/iiif/3/info.json"):
                answer = await served.client.get(path, headers=headers)
                assert answer.status == (403 if allowed is False else 200), headers
                assert answer.headers.get("Access-Control-Allow-Origin") == (allowed or None)
                assert allowed is False or answer.headers["Vary"] == "Origin"
            for path in (IMAGE, "/api/info"):
                assert (
                    await served.client.get(path, headers={**headers, "Sec-Fetch-Site": "cross-site"})
                ).status == 403

    with_server(folder, tmp_path, work, origins=[parse_origin(f"{mine}/")])

    async def any_site(served):
        answer = await served.client.get(TILE, headers={"Origin": theirs, "Sec-Fetch-Site": "cross-site"})
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, "*")
        assert (await served.client.get(IMAGE, headers={"Origin": theirs})).status == 403

    with_server(folder, tmp_path, any_site, origins=["*"])


@pytest.mark.parametrize(
    "text", ["example.org", "https://", "ftp://example.org", "https://example.org/path", "", "https://[", "http://a?b"]
)
def test_origins_and_addresses_that_are_none_are_one_sentence(text):
    with pytest.raises(UserError, match="--allow-origin"):
        parse_origin(text)
    if "path" not in text:
        with pytest.raises(UserError, match="--public-url"):
            parse_public_url(text)


# Secrets -------------------------------------------------------------------------------------------------------------


def options_of(monkeypatch, *words, **environment):
    seen = []
    monkeypatch.setattr("multiscale.explorer.server.serve", lambda options, ready: seen.append(options))
    monkeypatch.setattr(zoom.os, "_exit", lambda code: None)
    result = CliRunner().invoke(zoom.main, words, env=environment)
    return seen[0] if seen else result


def test_a_token_comes_from_a_file_or_the_environment_too(tmp_path, monkeypatch):
    (tmp_path / "token").write_text("from-the-file-9\nanother line\n")
    assert options_of(monkeypatch, "--token-file", str(tmp_path / "token")).token == "from-the-file-9"
    assert options_of(monkeypatch, MULTISCALE_TOKEN="from-outside-9").token == "from-outside-9"
    assert (
        options_of(monkeypatch, "--token", "from-options-9", MULTISCALE_TOKEN="from-outside-9").token
        == "from-options-9"
    )
    assert options_of(monkeypatch).token is None
    assert len(options_of(monkeypatch, "--public-url", "https://example.org").token) > 20  # others can connect
    for words, text in (
        (["--token-file", str(tmp_path / "none")], "Cannot read the token"),
        (["--token-file", str(tmp_path)], "it is a folder"),
        (["--token-file", str(tmp_path / "token"), "--token", "x" * 9], "give one of them"),
    ):
        result = options_of(monkeypatch, *words)
        assert (result.exit_code, text in result.stderr) == (2, True)
    (tmp_path / "token").write_text("\n")
    assert "must have 8 to 200" in options_of(monkeypatch, "--token-file", str(tmp_path / "token")).stderr


# Proxies -------------------------------------------------------------------------------------------------------------

PUBLIC = "https://example.org/deep/worlds"


def test_behind_a_proxy_with_tls_and_a_path_all_addresses_lead_through_it(folder, tmp_path):
    async def work(served):
        get = served.client.get
        headers = {"Host": "inner:8000", "Authorization": f"Bearer {TOKEN}"}
        cookie = await get("/", params={"token": TOKEN}, allow_redirects=False)
        assert cookie.headers["Location"] == "./"
        assert {"Secure", "Path=/deep/worlds/"} <= {part.strip() for part in cookie.headers["Set-Cookie"].split(";")}
        info = await (await get("/iiif/3/info.json", headers=headers)).json(content_type=None)
        assert info["id"] == f"{PUBLIC}/iiif/3"
        redirect = await get("/iiif/3", headers=headers, allow_redirects=False)
        assert URL(f"{PUBLIC}/iiif/3").join(URL(redirect.headers["Location"])) == URL(f"{PUBLIC}/iiif/3/info.json")
        for origin, admitted in (
            ("https://example.org", True),
            ("https://example.com", False),
            ("http://example.org", False),
        ):
            answer = await served.client.post("/api/films", json=FILM, headers={**headers, "Origin": origin})
            assert answer.status == (202 if admitted else 403)

    with_server(folder, tmp_path, work, token=TOKEN, public_url=PUBLIC)
    assert server.address("127.0.0.1", 8000, "a&b", PUBLIC) == f"{PUBLIC}/?token=a%26b"
    assert parse_public_url(f"{PUBLIC}/") == PUBLIC


def test_nothing_on_the_page_is_addressed_from_the_root():
    for path in STATIC.iterdir():
        for address in re.findall(
            r"""(?:src|href|fetch|URL|import|from)\s*[=(]?\s*["'`](/[^"'`]*)""", path.read_text()
        ):
            pytest.fail(f"{path.name}: {address}")
        assert not re.search(r"""["'`]/(api|static|ws|tiles|iiif)\b""", path.read_text()), path.name


def test_options_survive_into_tiles_and_redirects(folder, tmp_path):
    async def work(served):
        query = {"trunc": "0.25", "network": "generator-000001000", "token": TOKEN}
        redirect = await served.client.get("/iiif/3", params=query, allow_redirects=False)
        assert redirect.status == 303
        place = URL("/iiif/3").join(URL(redirect.headers["Location"], encoded=True))
        direct = await (await served.client.get("/tiles/3/0/0/0.png", params=query)).read()
        plain = await (await served.client.get("/tiles/3/0/0/0.png", params={"token": TOKEN})).read()
        assert direct != plain
        for address in (place, URL("/iiif/3/info.json").with_query(query)):
            info = await (await served.client.get(address)).json(content_type=None)
            own = URL(info["id"], encoded=True)
            for size in ("256,256", "max"):
                tile = await served.client.get(own.raw_path + f"/full/{size}/0/default.png")
                assert tile.status == 404 if size != "256,256" and info["maxWidth"] != 256 else tile.status == 200
                assert await tile.read() == direct
        dzi = await served.client.get(URL(f"/tiles/{join_options('3', query)}_files/8/0_0.png", encoded=True))
        assert dzi.status in (200, 404)
        for wrong in ("", ";token=wrong-wrong"):
            assert (await served.client.get(f"/iiif/3{wrong}/info.json")).status == 403

    with_server(folder, tmp_path, work, token=TOKEN)
    options = {"network": "a;b/c=%d", "token": TOKEN}
    assert split_options(URL(join_options("3~7:0.5", options), encoded=True).path) == ("3~7:0.5", options)


def test_level_0_has_the_whole_as_max_and_as_jpeg(folder, tmp_path):
    async def work(served):
        info = await (await served.client.get("/iiif/3/info.json")).json(content_type=None)
        assert info["maxWidth"] == 256
        pictures = []
        for kind in ("png", "jpg"):
            answer = await served.client.get(f"/iiif/3/full/max/0/default.{kind}")
            assert (answer.status, answer.headers["Content-Type"]) == (
                200,
                f"image/{'jpeg' if kind == 'jpg' else 'png'}",
            )
            pictures.append(np.asarray(Image.open(io.BytesIO(await answer.read()))).astype(float))
        whole = await served.client.get("/iiif/3/full/256,256/0/default.png")
        assert (np.asarray(Image.open(io.BytesIO(await whole.read()))) == pictures[0]).all()
        assert pictures[0].shape == (256, 256, 3)
        assert np.abs(pictures[0] - pictures[1]).mean() < 8

    with_server(folder, tmp_path, work)
