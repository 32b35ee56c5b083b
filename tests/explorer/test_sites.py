"""Networks as pages to take home: made once, bounded, for the server's own page only."""

import asyncio
import io
import threading
import zipfile

import pytest
from serving import PATIENCE_SEC, run, serving, small_run, until

from dnnlib.errors import UserError
from dnnlib.files import cache_folder
from multiscale.explorer import sites

ADDRESS = "/api/site.zip"
NAMES = [f"generator-{1000 * kimg:09d}" for kimg in (1, 2, 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("sites") / "run", kimgs=(1, 2, 3))


class Maker:
    """Stands in for the export: makes a ZIP with the network's name in it, when it may."""

    def __init__(self, monkeypatch):
        self.made = []
        self.may = threading.Event()
        self.may.set()
        monkeypatch.setattr(sites, "zip_site", self)

    def __call__(self, network, folder):
        self.made.append(network.stem)
        assert self.may.wait(PATIENCE_SEC)
        folder.mkdir()
        target = folder / f"page-of-{network.stem}.zip"
        with zipfile.ZipFile(target, "w") as archive:
            archive.writestr("name", network.stem)
        return target


@pytest.fixture
def maker(monkeypatch):
    return Maker(monkeypatch)


def with_server(folder, tmp_path, work, **options):
    async def main():
        async with serving(folder, tmp_path / "cache", **options) as served:
            result = await work(served)
            place = served.explorer.services.sites.folder
        assert place is None or not place.exists()
        return result

    return run(main())


async def got(served, name=None, **headers):
    answer = await served.client.get(ADDRESS, params={"network": name} if name else {}, headers=headers)
    return answer.status, answer.headers.get("Content-Disposition"), await answer.read()


def test_a_page_is_made_once_however_many_ask(folder, tmp_path, maker):
    async def work(served):
        first = await asyncio.gather(got(served), got(served, NAMES[2]))
        return [*first, await got(served)]

    for status, disposition, data in with_server(folder, tmp_path, work):
        assert (status, disposition) == (200, f'attachment; filename="page-of-{NAMES[2]}.zip"')
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.read("name") == NAMES[2].encode()
    assert maker.made == [NAMES[2]]


def test_pages_are_bounded_in_number(folder, tmp_path, maker, monkeypatch):
    monkeypatch.setattr(sites, "UNFINISHED", 2)
    monkeypatch.setattr(sites, "KEPT", 1)
    maker.may.clear()

    async def work(served):
        waiting = [asyncio.create_task(got(served, name)) for name in NAMES[:2]]
        await until(lambda: len(served.explorer.services.sites._made) == 2)
        refused = await got(served, NAMES[2])
        maker.may.set()
        found = [await page for page in waiting]
        place = served.explorer.services.sites.folder
        return refused, found, len(list(place.iterdir()))

    refused, found, files = with_server(folder, tmp_path, work)
    assert refused[0] == 400
    assert b"2 networks are being made or sent; wait for one" in refused[2]
    assert [status for status, *_ in found] == [200, 200]
    assert files == 1


def test_who_stops_waiting_leaves_the_page_to_others(folder, tmp_path, maker):
    maker.may.clear()

    async def work(served):
        impatient, other = (asyncio.create_task(got(served)) for _ in range(2))
        asked = served.explorer.services.sites._asked
        await until(lambda: sum(asked.values()) == 2)
        impatient.cancel()
        await until(lambda: sum(asked.values()) == 1)
        maker.may.set()
        return await other

    assert with_server(folder, tmp_path, work)[0] == 200
    assert len(maker.made) == 1


def test_what_fails_says_why_without_paths_and_is_tried_again(folder, tmp_path, monkeypatch, maker):
    def failing(network, folder):
        raise UserError(f"Cannot export {network}: see {cache_folder()}.")

    monkeypatch.setattr(sites, "zip_site", failing)

    async def work(served):
        failed = await got(served)
        monkeypatch.setattr(sites, "zip_site", maker)
        return failed, await got(served), await got(served, "x")

    failed, again, unknown = with_server(folder, tmp_path, work)
    text = f"The page cannot be made: Cannot export {NAMES[2]}.safetensors: see its cache folder."
    assert (failed[0], text.encode() in failed[2]) == (400, True)
    assert again[0] == 200
    assert (unknown[0], b"no network" in unknown[2]) == (400, True)


def test_a_full_disk_is_said(folder, tmp_path, monkeypatch, maker):
    monkeypatch.setattr(sites, "ROOM_BYTES", 1 << 62)
    status, _, data = with_server(folder, tmp_path, got)
    assert (status, b"no room" in data, maker.made) == (400, True, [])


def test_other_sites_and_those_without_the_token_have_none(folder, tmp_path, maker):
    async def work(served):
        return [
            (await got(served))[0],
            (await got(served, Authorization="Bearer long-enough"))[0],
            (await got(served, Authorization="Bearer long-enough", Origin="https://example.org"))[0],
        ]

    assert with_server(folder, tmp_path, work, token="long-enough", origins=["*"]) == [403, 200, 403]
    assert len(maker.made) == 1
