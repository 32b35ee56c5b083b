"""The WebSocket: the right picture for each request, the newest first, and nobody in another's way."""

import asyncio
import io
import json
import logging
import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from serving import PATIENCE_SEC, WORLD_PX, frame, run, serving, small_run, until

from dnnlib.errors import UserError
from multiscale.explorer import app, networks, scheduler
from multiscale.explorer.networks import Network
from multiscale.explorer.scheduler import UNSENT
from multiscale.rendering.renderer import Cancelled, Renderer, Tile, to_uint8
from multiscale.runs.headers import snapshots_of
from multiscale.runs.snapshots import load_snapshot
from multiscale.view import Region


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("session") / "run")


class SlowRenderer:
    """Renders noise; each tile waits until the gate is open. It notes when it begins, ends and is cancelled."""

    def __init__(self, tiles=1, error=None):
        self.generator = SimpleNamespace(config=SimpleNamespace(img_channels=3))
        self.log = []
        self.gate = threading.Event()
        self.tiles_each = tiles
        self.error = error
        self.noise = np.random.default_rng(0).uniform(-1, 1, (3, 768, 768)).astype(np.float32)

    def check(self, region, *, extrapolate=False):
        pass

    def extrapolation(self, region):
        return 1.0

    def tiles(self, world, region, truncation_psi=1.0, *, extrapolate=False, cancelled=None):
        self.log.append(f"begin {world}")
        rows = region.height // self.tiles_each
        for i in range(self.tiles_each):
            while not self.gate.wait(0.002):
                if cancelled():
                    self.log.append(f"cancelled {world}")
                    raise Cancelled
            if self.error is not None:
                raise self.error
            self.log.append(f"tile {world}")
            yield Tile(0, i * rows, torch.from_numpy(self.noise[:, :rows, : region.width].copy()))

    async def until(self, entry):
        await until(lambda: entry in self.log)


class OneNetwork:
    """A library of one network."""

    def __init__(self, renderer):
        self.network = Network("fake", "0" * 64, {}, renderer, renderer)
        self.device, self.run, self.default = torch.device("cpu"), None, "fake"

    async def get(self, name):
        return self.network

    def listing(self):
        return []


def slow(tmp_path, work, **options):
    """Run ``work(served, renderer)`` on a server whose renderer is slow."""
    renderer = SlowRenderer(**options)

    async def main():
        async with serving(None, tmp_path, library=OneNetwork(renderer)) as served:
            try:
                await work(served, renderer)
            finally:
                renderer.gate.set()

    run(main())
    return renderer


# The newest wins ---------------------------------------------------------------------------------------------------


def test_of_many_drafts_the_one_that_has_begun_and_the_newest_are_shown(tmp_path):
    async def work(served, renderer):
        async with served.socket() as socket:
            await socket.ask(0, world="0")
            await renderer.until("begin 0")
            for i in range(1, 20):
                await socket.ask(i, world=str(i))
            await socket.heard()
            renderer.gate.set()
            assert [(await socket.hear())[0]["id"] for _ in range(2)] == [0, 19]
            assert await socket.silent()

    assert [entry for entry in slow(tmp_path, work).log if "begin" in entry] == ["begin 0", "begin 19"]


@pytest.mark.parametrize("quality", ["draft", "sharp"])
def test_a_sharp_image_that_has_begun_is_given_up_for_anything_newer(tmp_path, quality):
    async def work(served, renderer):
        async with served.socket() as socket:
            await socket.ask(0, world="0", quality="sharp")
            await renderer.until("begin 0")
            await socket.ask(1, world="1", quality=quality)
            await renderer.until("cancelled 0")
            renderer.gate.set()
            assert (await socket.hear())[0]["id"] == 1
            assert await socket.silent()

    slow(tmp_path, work)


def test_slots_do_not_disturb_each_other(tmp_path):
    async def work(served, renderer):
        async with served.socket() as socket:
            for i, slot in enumerate("abc"):
                await socket.ask(i, slot=slot, quality="sharp")
            renderer.gate.set()
            assert {(await socket.hear())[0]["slot"] for _ in range(3)} == {"a", "b", "c"}

    slow(tmp_path, work)


@pytest.mark.parametrize("quality", ["draft", "sharp"])
def test_a_cancelled_slot_is_silent_and_can_ask_again(tmp_path, quality):
    async def work(served, renderer):
        async with served.socket() as socket:
            await socket.ask(0, world="0", quality=quality)
            await renderer.until("begin 0")
            await socket.say({"type": "cancel", "slot": "main", "id": 7})
            await socket.say({"type": "cancel", "slot": "other"})
            await renderer.until("cancelled 0")
            renderer.gate.set()
            assert await socket.silent()
            await socket.ask(1)
            assert (await socket.hear())[0]["id"] == 1

    slow(tmp_path, work)


def test_a_closed_connection_renders_nothing_more(tmp_path):
    async def work(served, renderer):
        async with served.socket() as socket:
            await socket.ask(0, world="0", slot="a")
            await socket.ask(1, world="1", slot="b")
            await renderer.until("begin 0")
        await renderer.until("cancelled 0")
        renderer.gate.set()
        await until(lambda: not served.explorer.sessions)

    assert "begin 1" not in slow(tmp_path, work).log


# Several clients -----------------------------------------------------------------------------------------------------


@pytest.fixture
def turns_alone(monkeypatch):
    """Whoever has had more of the thread than others does not come after them: the first image waits for the gate."""
    monkeypatch.setattr(scheduler, "SHARE_SECONDS", float("inf"))


def test_two_clients_take_turns_though_one_asks_for_more(tmp_path, turns_alone):
    async def work(served, renderer):
        async with served.socket() as greedy, served.socket() as modest:
            await greedy.ask(0, world="0", quality="sharp", slot="first")
            await renderer.until("begin 0")
            for i in range(8):
                await greedy.ask(i, world="1", quality="sharp", slot=str(i))
            for i in range(3):
                await modest.ask(i, world="2", quality="sharp", slot=str(i))
            await until(lambda: len(served.queue._jobs) == 12)
            renderer.gate.set()
            for _ in range(3):
                await modest.hear()
            for _ in range(9):
                await greedy.hear()

    begun = [entry for entry in slow(tmp_path, work).log if "begin" in entry]
    assert begun[1:7] in (["begin 2", "begin 1"] * 3, ["begin 1", "begin 2"] * 3)


def test_a_draft_slips_into_anothers_large_image(tmp_path, turns_alone):
    async def work(served, renderer):
        async with served.socket() as large, served.socket() as small:
            await large.ask(0, world="0", quality="sharp", height=30, width=30)
            await renderer.until("begin 0")
            await small.ask(1, world="1", height=30, width=30)
            await until(lambda: len(served.queue._jobs) == 2)
            renderer.gate.set()
            await asyncio.gather(large.hear(), small.hear())

    log = slow(tmp_path, work, tiles=10).log
    assert log.index("tile 1") == 3, "after the first tile of the other, and before its second"
    assert log[-1] == "tile 0"


def test_nothing_piles_up_for_a_client_that_does_not_read(tmp_path):
    async def work(served, renderer):
        renderer.gate.set()
        asked = 0
        async with served.socket() as deaf, served.socket() as other:
            last, unchanged = 0, 0
            while unchanged < 40:  # until the buffers on the way are full of images, of 0.6 MB each
                asked += 1
                await deaf.ask(asked, width=768, height=768, pitch=1e-4, world="0")
                await asyncio.sleep(0.01)
                rendered = renderer.log.count("begin 0")
                is_full = any(
                    s._transport.get_write_buffer_size() and s._owner.unsent for s in served.explorer.sessions
                )
                last, unchanged = rendered, unchanged + 1 if is_full and rendered == last else 0
                assert rendered < 60
            await other.ask(0)
            await other.hear()
            [session] = [s for s in served.explorer.sessions if s._owner.unsent]
            assert session._owner.unsent <= UNSENT
            while (await deaf.hear())[0]["id"] != asked:
                pass

    slow(tmp_path, work)


def test_connections_are_counted(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(app, "SOCKETS", 2)

    async def work():
        async with serving(folder, tmp_path) as served:
            async with served.socket(), served.socket():
                answer = await served.client.get("/ws", headers={"Connection": "Upgrade", "Upgrade": "websocket"})
                assert answer.status == 503
                assert "close one" in (await answer.json())["message"]
            for _ in range(5):
                async with served.socket() as socket:
                    await socket.say({"type": "ping", "id": 3})
                    assert (await socket.hear())[0] == {"type": "pong", "id": 3}

    run(work())


# What is shown ---------------------------------------------------------------------------------------------------------


def with_network(folder, tmp_path, work):
    async def main():
        async with serving(folder, tmp_path) as served, served.socket() as socket:
            return await work(socket, served)

    return run(main())


def direct(folder):
    return Renderer(load_snapshot(snapshots_of(folder)[-1]).generator, torch.device("cpu"))


REGION = {"left": 0.125, "top": -0.25, "pitch": 1 / 256, "width": 80, "height": 49}


@pytest.mark.parametrize("quality, tolerance", [("draft", 12), ("sharp", 4)])
def test_a_frame_is_the_renderers_image(folder, tmp_path, quality, tolerance):
    async def work(socket, served):
        await socket.ask(5, quality=quality, trunc=0.5, world="3~7:0.25", **REGION)
        return await socket.hear()

    header, jpeg = with_network(folder, tmp_path, work)
    assert {key: header[key] for key in REGION} == REGION
    assert (header["type"], header["id"], header["slot"], header["mime"]) == ("frame", 5, "main", "image/jpeg")
    assert header["render_ms"] > 0
    assert header["wait_ms"] >= 0
    assert header["extrapolation"] == 1.0
    assert header["error_db"] is None
    shown = np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)
    truth = to_uint8(direct(folder).image("3~7:0.25", Region(**REGION), 0.5)).astype(int)
    assert shown.shape == truth.shape
    assert np.abs(shown - truth).mean() < tolerance


def test_grey_networks_have_grey_frames(tmp_path):
    async def work(socket, served):
        await socket.ask(1)
        await socket.ask(2, quality="sharp", error=True, slot="b")
        return [await socket.hear() for _ in range(2)]

    plain, error = with_network(small_run(tmp_path / "run", channels=1), tmp_path / "cache", work)
    assert Image.open(io.BytesIO(plain[1])).mode == "L"
    assert Image.open(io.BytesIO(error[1])).mode == "RGB"


def test_the_error_between_scales(folder, tmp_path):
    async def work(socket, served):
        await socket.ask(1, quality="sharp", error=True, **REGION)
        return await socket.hear()

    header, jpeg = with_network(folder, tmp_path, work)
    assert (header["width"], header["height"], header["pitch"]) == (40, 24, 1 / 128)
    assert Image.open(io.BytesIO(jpeg)).size == (40, 24)
    renderer = direct(folder)
    fine = renderer.image(3, Region(**{**REGION, "height": 48}))
    coarse = renderer.image(3, Region(**{**REGION, "pitch": 1 / 128, "width": 40, "height": 24}))
    difference = torch.nn.functional.avg_pool2d(fine, 2).clamp(-1, 1) - coarse.clamp(-1, 1)
    expected = min(10 * math.log10(4 / difference.double().square().mean().item()), 120)
    assert abs(header["error_db"] - expected) < 0.05


def test_beyond_what_was_learned_only_on_demand(folder, tmp_path):
    beyond = {"left": 0.0, "top": 0.0, "pitch": 1 / WORLD_PX / 4, "width": 32, "height": 32}

    async def work(socket, served):
        await socket.ask(1, **beyond)
        await socket.ask(2, slot="b", extrapolate=True, **beyond)
        return [(await socket.hear())[0] for _ in range(2)]

    refused, shown = with_network(folder, tmp_path, work)
    assert (refused["type"], refused["id"], refused["slot"]) == ("error", 1, "main")
    assert "4 times finer" in refused["message"]
    assert shown["extrapolation"] == 4.0


@pytest.mark.parametrize(
    "changes, what",
    [
        ({"world": "three"}, "World 'three' cannot be read"),
        ({"world": "3_7@4-80"}, "names layer 80; this network has layers 0 to 6"),
        ({"network": "../../secret"}, "There is no network '../../secret' here"),
        ({"left": 0.2}, "outside the world"),
        ({"width": 8192, "height": 8192}, "more than 4194304"),
        ({"width": 0}, "width"),
        ({"width": 2.5}, "width"),
        ({"width": True}, "width"),
        ({"pitch": 0}, "pitch"),
        ({"pitch": "1"}, "pitch"),
        ({"left": None}, "left"),
        ({"trunc": 1e300}, "trunc"),
        ({"quality": "best"}, "quality"),
        ({"slot": "x" * 33}, "slot"),
        ({"id": -1}, "id"),
        ({"error": True, "height": 1}, "at least 2 x 2"),
    ],
)
def test_what_cannot_be_shown_is_said_in_a_sentence(folder, tmp_path, changes, what):
    async def work(socket, served):
        await socket.ask(9, **changes)
        answer = (await socket.hear())[0]
        await socket.ask(10)
        return answer, (await socket.hear())[0]

    answer, next_answer = with_network(folder, tmp_path, work)
    assert answer["type"] == "error"
    assert what in answer["message"]
    assert answer["id"] == (9 if changes.get("id") is None else None)
    assert next_answer["id"] == 10


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999", "1" * 5000])
def test_numbers_that_are_none_are_refused(folder, tmp_path, literal):
    async def work(socket, served):
        for name in ("left", "pitch", "trunc", "width", "id"):
            text = json.dumps(frame(1))
            wrong = text.replace(f'"{name}": {frame(1)[name]}', f'"{name}": {literal}')
            assert wrong != text
            await socket.say(wrong)
            assert (await socket.hear())[0]["type"] == "error"

    with_network(folder, tmp_path, work)


@pytest.mark.parametrize(
    "text", ["", "hello", "[]", "null", "{}", '{"type":"frame"}', "[" * 60000, '{"type":"x"}', '"\\ud800"']
)
def test_messages_that_mean_nothing_are_answered(folder, tmp_path, text):
    async def work(socket, served):
        await socket.say(text)
        assert (await socket.hear())[0]["type"] == "error"
        await socket.raw.send_bytes(b"\0\1\2")
        assert (await socket.hear())[0]["message"] == "Messages must be JSON text."
        await socket.say({"type": "ping", "id": 1})
        assert (await socket.hear())[0] == {"type": "pong", "id": 1}

    with_network(folder, tmp_path, work)


def test_messages_that_are_too_long_end_the_connection(folder, tmp_path):
    async def work(socket, served):
        await socket.say('"' + "x" * 70_000 + '"')
        message = await socket.raw.receive(PATIENCE_SEC)
        assert socket.raw.close_code == 1009, message

    with_network(folder, tmp_path, work)


def test_too_many_slots_are_refused(tmp_path):
    async def work(served, renderer):
        async with served.socket() as socket:
            for i in range(17):
                await socket.ask(i, slot=str(i))
            answer = (await socket.hear())[0]
            assert (answer["type"], answer["id"]) == ("error", 16)

    slow(tmp_path, work)


def test_failures_are_logged_once_and_told_without_a_traceback(tmp_path, caplog):
    async def work(served, renderer):
        renderer.gate.set()
        async with served.socket() as socket:
            for i in range(3):
                await socket.ask(i)
                answer = (await socket.hear())[0]
                assert (answer["type"], answer["id"]) == ("error", i)
                assert "log" in answer["message"]
                assert "secret" not in answer["message"]
            renderer.error = None
            await socket.ask(4)
            assert (await socket.hear())[0]["id"] == 4

    with caplog.at_level(logging.ERROR):
        slow(tmp_path, work, error=RuntimeError("secret"))
    assert len([record for record in caplog.records if record.exc_info]) == 1


# Networks ------------------------------------------------------------------------------------------------------------


def test_new_snapshots_are_announced_and_become_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr(app, "SCAN_SECONDS", 0.02)
    folder = small_run(tmp_path / "run", (1,))

    async def work(socket, served):
        watching = asyncio.create_task(served.explorer.watch())
        await socket.ask(1)
        assert (await socket.hear())[0]["id"] == 1
        small_run(folder, (2,))
        message = (await socket.hear())[0]
        assert message["type"] == "networks"
        assert [(n["name"], n["kimg"], n["current"]) for n in message["networks"]] == [
            ("generator-000001000", 1, False),
            ("generator-000002000", 2, True),
        ]
        await socket.ask(2)
        assert (await socket.hear())[0]["id"] == 2
        watching.cancel()
        return list(served.explorer.services.library._loaded)

    loaded = with_network(folder, tmp_path / "cache", work)
    assert [name for name, _ in loaded] == ["generator-000001000", "generator-000002000"]


def test_a_snapshot_that_is_broken_or_gone_is_an_error_for_who_asks(tmp_path):
    folder = small_run(tmp_path / "run", (1, 2, 3))
    first, second, third = snapshots_of(folder)
    data = second.read_bytes()

    async def work(socket, served):
        second.write_bytes(data[: len(data) // 2])
        first.unlink()
        answers = []
        for i, path in enumerate((first, second, third)):
            await socket.ask(i, network=path.stem)
            answers.append((await socket.hear())[0])
        served.explorer.services.library.scan()
        await socket.ask(9, network=first.stem)
        answers.append((await socket.hear())[0])
        listing = await (await served.client.get("/api/info")).json()
        second.write_bytes(data)
        served.explorer.services.library.scan()
        await socket.ask(10, network=second.stem)
        answers.append((await socket.hear())[0])
        return answers, listing

    answers, listing = with_network(folder, tmp_path / "cache", work)
    assert [answer["type"] for answer in answers] == ["error", "error", "frame", "error", "frame"]
    assert "Cannot read the network generator-000001000" in answers[0]["message"]
    assert "not a whole safetensors file" in answers[1]["message"]
    assert str(tmp_path) not in str(answers)
    broken = listing["networks"][0]
    assert (broken["name"], broken["octaves"]) == (second.stem, None)


def test_few_networks_are_loaded_at_once_and_each_once(tmp_path, monkeypatch):
    folder = small_run(tmp_path / "run", (1, 2, 3, 4, 5))
    loads, may = [], threading.Event()
    original = networks.load_snapshot

    def load(path):
        loads.append(path.stem)
        assert may.wait(PATIENCE_SEC)
        return original(path)

    monkeypatch.setattr(networks, "load_snapshot", load)

    async def work(socket, served):
        for name in [path.stem for path in snapshots_of(folder)]:
            may.clear()
            for i in range(6):
                await socket.ask(i, network=name)
            await socket.ask(0, network=name, slot="b")
            await socket.heard()
            may.set()
            heard = [(await socket.hear())[0]["id"] for _ in range(2)]
            assert sorted(heard) == [0, 5]
        return served.explorer.services.library._loaded

    loaded = with_network(folder, tmp_path / "cache", work)
    assert len(loaded) == networks.LOADED
    assert loads == [path.stem for path in snapshots_of(folder)]


def test_without_a_network_there_is_no_server(tmp_path):
    with pytest.raises(UserError, match="There is no network"):
        with_network(tmp_path / "nowhere", tmp_path, None)
