"""What HTTP serves: the page, images, tiles for other viewers and their cache, films."""

import asyncio
import io
import json
import xml.etree.ElementTree as ElementTree

import av
import numpy as np
import png
import pytest
import torch
from PIL import Image
from serving import WORLD_PX, run, serving, small_run, until
from yarl import URL

from multiscale.explorer import app, films, image_downloads
from multiscale.explorer.app import STATIC
from multiscale.rendering.renderer import Renderer, to_uint8, to_uint16
from multiscale.runs.headers import snapshots_of
from multiscale.runs.snapshots import load_snapshot
from multiscale.view import Region

WHOLE = {"world": "3", "left": -0.5, "top": -0.5, "pitch": 1 / 64, "width": 64, "height": 64}
FILM = {
    "network": None,
    "world": "3",
    "trunc": 0.7,
    "width": 48,
    "height": 32,
    "fps": 10,
    "seconds": 0.8,
    "keyframes": [{"zoom": 1.5, "x": 0, "y": 0}, {"zoom": 8, "x": 0.2, "y": 0.1}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("routes") / "run")


@pytest.fixture(scope="module")
def direct(folder):
    return Renderer(load_snapshot(snapshots_of(folder)[-1]).generator, torch.device("cpu"))


def with_server(folder, tmp_path, work, **options):
    async def main():
        async with serving(folder, tmp_path / "cache", **options) as served:
            return await work(served)

    return run(main())


def fetched(folder, tmp_path, *addresses, **options):
    """Status, headers and body of each address."""

    async def work(served):
        found = []
        for address in addresses:
            answer = await served.client.get(address)
            found.append((answer.status, answer.headers, await answer.read()))
        return found

    return with_server(folder, tmp_path, work, **options)


def pixels_of(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def query(values):
    return "&".join(f"{key}={value}" for key, value in values.items())


# Page and facts ------------------------------------------------------------------------------------------------------


def test_the_page_and_its_files(folder, tmp_path):
    names = sorted(path.name for path in STATIC.iterdir() if path.is_file())
    found = fetched(folder, tmp_path, "/", *(f"/static/{name}" for name in names))
    assert all(status == 200 for status, _, _ in found)
    assert found[0][2] == (STATIC / "index.html").read_bytes()
    for name, (_, headers, body) in zip(names, found[1:], strict=True):
        assert body == (STATIC / name).read_bytes()
        if name.endswith(".js"):
            assert "javascript" in headers["Content-Type"]


@pytest.mark.parametrize(
    "path",
    [
        "/static/..%2f..%2f..%2fzoom.py",
        "/static/..%2fserver.py",
        "/static/%2e%2e/server.py",
        "/static/%2fetc%2fpasswd",
        "/static/",
        "/static/.",
        "/static/index.html%00",
        "/zoom.py",
        "/tiles/..%2f..%2fzoom/0/0/0.png",
        "/api/films/..%2f..%2fetc/film.mp4",
    ],
)
def test_no_path_leads_out(folder, tmp_path, path):
    [(status, _, body)] = fetched(folder, tmp_path, path)
    assert status in (400, 404)
    assert set(json.loads(body)) == {"message"}


def test_facts(folder, tmp_path):
    [(status, _, body)] = fetched(folder, tmp_path, "/api/info")
    facts = json.loads(body)
    assert status == 200
    assert facts["networks"][-1] == {
        "name": "generator-000002000",
        "kimg": 2,
        "resolution": 32,
        "octaves": 4,
        "world_px": WORLD_PX,
        "layers": 7,
        "channels": 3,
        "licence": None,
        "credit": None,
        "current": True,
    }
    assert [network["current"] for network in facts["networks"]] == [False, True]
    assert (facts["run"], facts["default"], facts["device"]) == ("run", "generator-000002000", "CPU")
    assert facts["limits"] == {"frame_px": 4194304, "side_px": 8192, "image_px": 67108864}


def test_a_file_is_shown_alone(folder, tmp_path):
    [(_, _, body)] = fetched(snapshots_of(folder)[0], tmp_path, "/api/info")
    facts = json.loads(body)
    assert [network["name"] for network in facts["networks"]] == ["generator-000001000"]
    assert facts["run"] is None


# Images --------------------------------------------------------------------------------------------------------------


def test_images_to_take_home(folder, tmp_path, direct):
    wanted = {**WHOLE, "world": "3~7:0.5", "trunc": 0.7, "width": 40, "height": 50}
    [(status, headers, body), (_, _, deep)] = fetched(
        folder, tmp_path, f"/api/image.png?{query(wanted)}", f"/api/image.png?{query(wanted)}&depth=16"
    )
    assert status == 200
    assert headers["Content-Type"] == "image/png"
    assert headers["Content-Disposition"].startswith('attachment; filename="world-3~7=0.5-')
    region = Region(left=-0.5, top=-0.5, pitch=1 / 64, width=40, height=50)
    image = direct.image("3~7:0.5", region, 0.7)
    assert np.abs(pixels_of(body).astype(int) - to_uint8(image)).max() <= 1
    width, height, rows, facts = png.Reader(bytes=deep).read()
    assert (width, height, facts["bitdepth"]) == (40, 50, 16)
    assert np.abs(np.array(list(rows)).reshape(50, 40, 3).astype(int) - to_uint16(image)).max() <= 2
    says = json.loads(Image.open(io.BytesIO(body)).text["multiscale"])
    assert (says["world"], says["truncation_psi"], says["network"]) == (
        "3~7:0.5",
        0.7,
        "generator-000002000.safetensors",
    )


@pytest.mark.parametrize(
    "change, what",
    [
        ({"width": 9000}, "width"),
        ({"width": 8192, "height": 8193}, "height"),
        ({"width": ""}, "width"),
        ({"width": "1e3"}, "width"),
        ({"left": "nan"}, "left"),
        ({"left": "inf"}, "left"),
        ({"pitch": 1e-12}, "pitch"),
        ({"pitch": 1e-5}, "finer than this model"),
        ({"left": 0.9}, "outside the world"),
        ({"depth": 12}, "depth"),
        ({"extrapolate": "maybe"}, "extrapolate"),
        ({"world": ""}, "world"),
        ({"world": "x" * 401}, "world"),
        ({"network": "nosuch"}, "no network"),
        ({"trunc": 3}, "trunc"),
    ],
)
def test_images_that_cannot_be_made(folder, tmp_path, change, what):
    [(status, _, body)] = fetched(folder, tmp_path, f"/api/image.png?{query({**WHOLE, **change})}")
    assert status == 400
    assert what in json.loads(body)["message"]


def test_an_image_nobody_waits_for_is_given_up(folder, tmp_path, monkeypatch):
    encoded = []
    monkeypatch.setattr(image_downloads, "encode_png", lambda *_: encoded.append(1))

    async def work(served):
        large = {**WHOLE, "pitch": 1 / 4096, "width": 4096, "height": 4096, "extrapolate": 1}
        asking = asyncio.create_task(served.client.get(f"/api/image.png?{query(large)}"))
        await until(lambda: served.queue._jobs and served.queue._jobs[0].began)
        asking.cancel()
        small = {**WHOLE, "width": 8, "height": 8}
        await until(lambda: not served.queue._jobs)
        return await served.client.get(f"/tiles/3_files/3/0_0.png?{query(small)}")

    assert with_server(folder, tmp_path, work).status == 200
    assert not encoded


# Tiles -----------------------------------------------------------------------------------------------------------------

DEEP_ZOOM = ("/tiles/3_files/9/1_0.png", "/tiles/3_files/9/0_1.png", "/tiles/3_files/8/0_0.png")


def files_of(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_tiles_are_the_same_for_all_viewers_and_rendered_once(folder, tmp_path, direct):
    found = fetched(
        folder,
        tmp_path,
        "/tiles/3/1/1/0.png",
        "/iiif/3/256,0,256,256/256,256/0/default.png",
    )
    for status, headers, body in found:
        assert (status, headers["Content-Type"]) == (200, "image/png")
        assert "Access-Control-Allow-Origin" not in headers
        assert body == found[0][2]
    assert len({headers["ETag"] for _, headers, _ in found}) == 1
    assert len(files_of(tmp_path / "cache")) == 1
    region = Region(left=0, top=-0.5, pitch=1 / 512, width=256, height=256)
    assert np.abs(pixels_of(found[0][2]).astype(int) - to_uint8(direct.image(3, region))).max() <= 1


def test_deep_zooms_tiles_overlap_by_one_pixel(folder, tmp_path, direct):
    found = [pixels_of(body).astype(int) for _, _, body in fetched(folder, tmp_path, *DEEP_ZOOM, *DEEP_ZOOM[:1])]
    whole = to_uint8(direct.image(3, Region(left=-0.5, top=-0.5, pitch=1 / 512, width=512, height=512)))
    for tile, expected in zip(found, [whole[:257, 255:], whole[255:, :257]], strict=False):
        assert tile.shape == expected.shape
        assert np.abs(tile - expected).max() <= 1
    assert found[2].shape == (256, 256, 3)  # level 8 has no other tile
    np.testing.assert_array_equal(found[0], found[3])  # from the cache
    assert len(files_of(tmp_path / "cache")) == 3


def test_tiles_differ_by_world_truncation_and_network(folder, tmp_path):
    found = fetched(
        folder,
        tmp_path,
        "/tiles/3/0/0/0.png",
        "/tiles/4/0/0/0.png",
        "/tiles/3/0/0/0.png?trunc=0.5",
        "/tiles/3/0/0/0.png?network=generator-000001000",
        "/tiles/3_files/7/0_0.png",
    )
    assert len({body for _, _, body in found}) == 5
    assert len({headers["ETag"] for _, headers, _ in found}) == 5
    cached = ["no-cache" in headers["Cache-Control"] for _, headers, _ in found]
    assert cached == [True, True, True, False, True]


def test_a_tile_that_is_known_is_neither_rendered_nor_sent(folder, tmp_path):
    async def work(served):
        first = await served.client.get("/tiles/3/0/0/0.png")
        tag = first.headers["ETag"]
        known = await served.client.get("/tiles/3/0/0/0.png", headers={"If-None-Match": tag})
        other = await served.client.get("/tiles/3/1/0/0.png", headers={"If-None-Match": tag})
        return first, known, await known.read(), other

    first, known, body, other = with_server(folder, tmp_path, work)
    assert (first.status, known.status, other.status) == (200, 304, 200)
    assert body == b""
    assert known.headers["ETag"] == first.headers["ETag"]


def test_two_servers_share_a_cache(folder, tmp_path, monkeypatch):
    address = "/tiles/3/1/0/1.png"

    async def work():
        async with (
            serving(folder, tmp_path / "cache") as one,
            serving(snapshots_of(folder)[-1], tmp_path / "cache") as other,
        ):
            both = await asyncio.gather(*(served.client.get(address) for served in (one, other) for _ in range(4)))
            bodies = {await answer.read() for answer in both}
            before = other.queue._count
            again = await (await other.client.get(address)).read()
            return bodies, again, other.queue._count - before

    bodies, again, rendered = run(work())
    assert bodies == {again}
    assert rendered == 0
    assert len(files_of(tmp_path / "cache")) == 1


def test_a_cache_that_cannot_be_used_is_done_without(folder, tmp_path, caplog):
    (tmp_path / "cache").write_text("in the way")
    found = fetched(folder, tmp_path, "/tiles/3/0/0/0.png", "/tiles/3/0/0/0.png", "/tiles/3/1/0/0.png")
    assert [status for status, _, _ in found] == [200, 200, 200]
    assert len([record for record in caplog.records if "cannot be used" in record.message]) == 1


@pytest.mark.parametrize(
    "path",
    [
        "/tiles/3/2/0/0.png",
        "/tiles/3/0/1/0.png",
        "/tiles/3/1/0/9999999.png",
        "/tiles/3/1/0/99999999999999999999.png",
        "/tiles/3/-1/0/0.png",
        "/tiles/3_files/10/0_0.png",
        "/tiles/3_files/3/1_0.png",
        "/iiif/3/full/600,600/0/default.png",
        "/iiif/3/1,0,256,256/256,256/0/default.png",
        "/iiif/3/0,0,256,256/256,256/90/default.png",
        "/iiif/3/0,0,256,256/256,256/0/default.gif",
        "/iiif/3/0,0,512,128/max/0/default.png",
    ],
)
def test_tiles_that_there_are_not(folder, tmp_path, path):
    [(status, _, body)] = fetched(folder, tmp_path, path)
    assert status == 404
    assert json.loads(body)["message"]


def test_tiles_of_what_is_no_world_or_network(folder, tmp_path):
    found = fetched(
        folder,
        tmp_path,
        "/tiles/three/0/0/0.png",
        f"/tiles/{'1~' * 500}.dzi",
        "/iiif/3/info.json?network=x",
        "/tiles/3.dzi?trunc=9",
    )
    assert [status for status, _, _ in found] == [400] * 4


def test_descriptions_for_deep_zoom_and_iiif(folder, tmp_path):
    async def work(served):
        dzi = await served.client.get("/tiles/3_7@4-5.dzi")
        info = await served.client.get("/iiif/3d0.5:0~7:0.25/info.json")
        redirect = await served.client.get("/iiif/3", allow_redirects=False)
        described = json.loads(await info.text())
        image = await served.client.get(f"{URL(described['id']).path}/full/256,256/0/default.png")
        return await dzi.text(), info.headers, described, redirect, image.status

    dzi, headers, info, redirect, status = with_server(folder, tmp_path, work)
    image = ElementTree.fromstring(dzi)
    assert (image.attrib["TileSize"], image.attrib["Overlap"]) == ("256", "1")
    assert image[0].attrib == {"Width": str(WORLD_PX), "Height": str(WORLD_PX)}
    assert headers["Content-Type"].startswith("application/ld+json")
    assert (info["type"], info["profile"], info["width"]) == ("ImageService3", "level0", WORLD_PX)
    assert info["id"].startswith("http://127.0.0.1")
    assert info["id"].endswith("/iiif/3d0.5:0~7:0.25")
    assert status == 200
    assert (redirect.status, redirect.headers["Location"]) == (303, "3/info.json")


# Films ---------------------------------------------------------------------------------------------------------------


async def film_of(served, **changes):
    answer = await served.client.post("/api/films", json={**FILM, **changes})
    return answer.status, await answer.json()


async def ended(served, name):
    while True:
        state = await (await served.client.get(f"/api/films/{name}")).json()
        if state["state"] != "rendering":
            return state
        assert 0 <= state["progress"] <= 1
        await asyncio.sleep(0.02)


def test_a_film_from_the_request_to_the_file(folder, tmp_path):
    async def work(served):
        status, film = await film_of(served)
        assert status == 202
        early = await served.client.get(f"/api/films/{film['id']}/film.mp4")
        assert early.status == 404
        state = await ended(served, film["id"])
        answer = await served.client.get(f"/api/films/{film['id']}/film.mp4")
        part = await served.client.get(f"/api/films/{film['id']}/film.mp4", headers={"Range": "bytes=0-99"})
        data = await answer.read()
        assert (answer.content_type, part.status, len(await part.read())) == ("video/mp4", 206, 100)
        assert (await served.client.delete(f"/api/films/{film['id']}")).status == 200
        for path in (f"/api/films/{film['id']}", f"/api/films/{film['id']}/film.mp4"):
            assert (await served.client.get(path)).status == 404
        assert not list(served.explorer.services.films.folder.iterdir())
        return state, data

    state, data = with_server(folder, tmp_path, work)
    assert (state["state"], state["progress"]) == ("done", 1.0)
    with av.open(io.BytesIO(data)) as film:
        decoded = [frame.to_ndarray(format="rgb24").shape for frame in film.decode(video=0)]
    assert decoded == [(32, 48, 3)] * 8


def test_frames_come_while_a_film_is_rendered_and_a_film_can_be_cancelled(folder, tmp_path):
    async def work(served):
        _, film = await film_of(served, seconds=3600, width=512, height=512)
        _, waiting = await film_of(served)
        async with served.socket() as socket:
            for i in range(5):
                await socket.ask(i)
                assert (await socket.hear())[0]["id"] == i
        state = await (await served.client.get(f"/api/films/{film['id']}")).json()
        assert state["state"] == "rendering"
        for name in (film["id"], waiting["id"]):
            assert (await (await served.client.delete(f"/api/films/{name}")).json())["state"] == "cancelled"
        states = [await ended(served, name) for name in (film["id"], waiting["id"])]
        await until(lambda: not list(served.explorer.services.films.folder.iterdir()))
        _, next_film = await film_of(served)
        return states, await ended(served, next_film["id"])

    states, next_state = with_server(folder, tmp_path, work)
    assert [state["state"] for state in states] == ["cancelled", "cancelled"]
    assert next_state["state"] == "done"


@pytest.mark.parametrize(
    "changes, what",
    [
        ({"keyframes": FILM["keyframes"][:1]}, "keyframes"),
        ({"keyframes": FILM["keyframes"] * 40}, "keyframes"),
        ({"keyframes": [{"zoom": 0.5, "x": 0, "y": 0}] * 2}, "keyframes.0.zoom"),
        ({"width": 8192, "height": 8192}, "more than"),
        ({"seconds": 3600, "fps": 120}, "432000 frames are more than 36000"),
        ({"seconds": 0}, "seconds"),
        ({"fps": 0}, "fps"),
        ({"world": "three"}, "World 'three'"),
        ({"network": "x"}, "no network"),
    ],
)
def test_films_that_cannot_be_made(folder, tmp_path, changes, what):
    async def work(served):
        return await film_of(served, **changes)

    status, answer = with_server(folder, tmp_path, work)
    assert status == 400
    assert what in answer["message"]


def test_films_that_fail_say_why(folder, tmp_path, monkeypatch):
    async def work(served):
        _, outside = await film_of(served, keyframes=[{"zoom": 1, "x": 0.4, "y": 0}] * 2)
        _, odd = await film_of(served, width=49)
        states = [await ended(served, film["id"]) for film in (outside, odd)]
        monkeypatch.setattr(films, "write_film", lambda *_, **__: 1 / 0)
        _, broken = await film_of(served)
        return [*states, await ended(served, broken["id"])]

    states = with_server(folder, tmp_path, work)
    assert [state["state"] for state in states] == ["failed"] * 3
    for state, what in zip(states, ("outside the world", "even sides", "log says why"), strict=True):
        assert what in state["message"]


def test_films_are_bounded_in_number(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(films, "UNFINISHED", 2)
    monkeypatch.setattr(films, "KEPT", 3)

    async def work(served):
        made = [await film_of(served, seconds=300) for _ in range(3)]
        for _, film in made[:2]:
            await served.client.delete(f"/api/films/{film['id']}")
        names = []
        for _ in range(6):
            _, film = await film_of(served, seconds=0.1)
            names.append(film["id"])
            await ended(served, film["id"])
        states = [(await served.client.get(f"/api/films/{name}")).status for name in names]
        return [status for status, _ in made], states, len(list(served.explorer.services.films.folder.iterdir()))

    statuses, states, files = with_server(folder, tmp_path, work)
    assert statuses == [202, 202, 400]
    assert states == [404, 404, 200, 200, 200, 200]
    assert files == 4


# Failures ------------------------------------------------------------------------------------------------------------


def test_failures_are_answered_without_a_traceback(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(app, "device_name", lambda _: 1 / 0)
    found = fetched(folder, tmp_path, "/api/info", "/api/info", "/")
    assert [status for status, _, _ in found] == [500, 500, 200]
    assert json.loads(found[0][2]) == {"message": "The server failed; its log says why."}
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_too_many_requests_at_once_are_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(app, "REQUESTS", 1)

    async def work(served):
        async with served.socket():
            busy = await served.client.get("/api/info")
        await until(lambda: not served.explorer._requests)
        return busy.status, (await served.client.get("/api/info")).status

    assert with_server(folder, tmp_path, work) == (503, 200)


@pytest.mark.parametrize(
    "method, path", [("POST", "/"), ("PUT", "/api/films"), ("DELETE", "/tiles/3.dzi"), ("GET", "/api/films")]
)
def test_other_methods_are_refused(folder, tmp_path, method, path):
    async def work(served):
        answer = await served.client.request(method, path)
        return answer.status, await answer.json()

    status, body = with_server(folder, tmp_path, work)
    assert status == 405
    assert body["message"]


def test_large_bodies_are_refused(folder, tmp_path):
    async def work(served):
        answer = await served.client.post("/api/films", data=b"x" * 100_000)
        return answer.status

    assert with_server(folder, tmp_path, work) == 413
