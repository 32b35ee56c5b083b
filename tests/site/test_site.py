"""The exported page in a real Chromium, from a plain static server below a sub-path: the same pixels as here."""

from __future__ import annotations

import functools
import html
import http.server
import io
import json
import shutil
import sys
import threading
import time
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import calibrated_generator, small_config
from PIL import Image

import multiscale
from dnnlib.errors import UserError
from multiscale.cli.zoom import main as zoom
from multiscale.rendering.worlds import World
from multiscale.runs.headers import BUNDLED, read_header
from multiscale.runs.snapshots import load_snapshot, save_snapshot
from multiscale.site import packages
from multiscale.site import write as site_write
from multiscale.site.packages import RUNTIME, copy_from
from multiscale.site.weights import MOST_LEVELS
from multiscale.site.write import RUNTIME_FILES, export_site, export_tiles, file_name_of, title_of, zip_site

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install selenium")
from selenium.webdriver.common.keys import Keys  # noqa: E402

pytest.importorskip("onnx", reason="needs onnx: pip install onnx")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update"
)
WAIT_SEC = 110
"""Just less than selenium waits for chromedriver."""
VIEWS = [
    {"world": "3", "zoom": 1, "x": 0, "y": 0},
    {"world": "0", "zoom": 64, "x": 0.1, "y": -0.2},
    {"world": "4294967295", "zoom": 64, "x": -0.492, "y": 0.492, "trunc": 0.7},
    {"world": "7d0.4:-0.2~9:0.25_5@2-4", "zoom": 20.5, "x": 0.3, "y": 0.3, "trunc": 1.2, "width": 96, "height": 40},
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The bundled model's page below a sub-path of a folder."""
    folder = tmp_path_factory.mktemp("www") / "museum" / "earth"
    try:
        copy_from(RUNTIME, RUNTIME_FILES, tmp_path_factory.mktemp("runtime"))
    except UserError as error:
        pytest.skip(f"needs npm and its registry: {error}")
    done = CliRunner().invoke(zoom, ["--network", str(BUNDLED), "--export", str(folder)])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def network(tmp_path_factory):
    """A small network's file."""
    path = tmp_path_factory.mktemp("run") / "generator-000000000.safetensors"
    save_snapshot(path, calibrated_generator(small_config(octaves=3, num_layers=6, num_critical=1)), {})
    return path


class Quiet(http.server.SimpleHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012

    def log_message(self, *_):
        self.asked.append(self.path)


@pytest.fixture(scope="module")
def driver(site):
    if not (CHROMIUM and CHROMEDRIVER):
        pytest.skip("needs chromium and chromedriver on the PATH")
    handler = functools.partial(Quiet, directory=site.parents[1])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")  # offline
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    driver.set_window_size(640, 480)
    driver.set_script_timeout(WAIT_SEC)
    driver.address = f"http://127.0.0.1:{server.server_port}/museum/earth/"
    yield driver
    driver.quit()
    server.shutdown()
    thread.join()
    server.server_close()


def wait(driver, condition: str, handle: str = "site") -> None:
    end = time.monotonic() + WAIT_SEC
    while not driver.execute_script(f"return window.{handle} && ({condition})"):
        message = driver.execute_script("return document.getElementById('message')?.textContent")
        assert time.monotonic() < end, f"waited in vain for {condition}: {message}"
        time.sleep(0.1)


def size_of(view: dict) -> tuple[int, int]:
    width = view.get("width", 64)
    return width, view.get("height", width)


def rendered(driver, view: dict) -> np.ndarray:
    """The page's picture of a view, [height, width, 3]."""
    script = "const [view, done] = arguments; site.render(view).then(done, (error) => done({error: String(error)}))"
    answer = driver.execute_async_script(script, view)
    assert "error" not in answer, answer
    width, height = size_of(view)
    return np.array(answer["pixels"]).reshape(height, width, 4)[..., :3]


def picture(model, view: dict) -> np.ndarray:
    """The program's picture of the same."""
    world = model.world(view["world"], view.get("trunc", 1))
    return np.asarray(world.view(view["zoom"], (view["x"], view["y"]), size_of(view))).astype(int)


@pytest.mark.slow
def test_the_page_renders_what_the_program_renders(driver):
    driver.get(driver.address)
    wait(driver, "site.idle()")
    model = multiscale.load(BUNDLED, device="cpu")
    for view in VIEWS:
        assert np.abs(rendered(driver, view) - picture(model, view)).max() <= 2


@pytest.mark.slow
def test_the_page_flies_mixes_and_keeps_its_address(driver):
    driver.get(driver.address + "#z=8&x=0.1&y=0.05&w=5&t=0.8")
    wait(driver, "site.idle(1)")
    assert driver.execute_script("return site.state()") == {
        "view": {"zoom": 8, "x": 0.1, "y": 0.05},
        "world": "5",
        "trunc": 0.8,
    }
    canvas = driver.find_element("id", "view")
    actions = webdriver.ActionChains(driver)
    assert driver.execute_script("return [document.title, document.querySelector('h1').textContent]") == ["Earth"] * 2
    assert driver.execute_script("return document.getElementById('place').textContent") == "8.00× at 0.100, 0.050"
    assert not driver.find_element("id", "ms").is_displayed()
    hint = "return getComputedStyle(document.getElementById('hint')).opacity"
    assert driver.execute_script(hint) == "1"
    actions.move_to_element(canvas).click_and_hold().move_by_offset(-60, 20).pause(0.3).release().perform()
    state = driver.execute_script("return site.state()")
    side = driver.execute_script("return Math.min(view.clientWidth, view.clientHeight)")
    assert state["view"]["x"] == pytest.approx(0.1 + 60 / (8 * side))
    assert state["view"]["y"] == pytest.approx(0.05 - 20 / (8 * side))
    canvas.send_keys("+")
    wait(driver, "site.idle(1)")
    assert driver.execute_script("return site.state().view.zoom") == pytest.approx(8 * 2**0.5)
    assert driver.execute_script(hint) == "0"
    driver.find_element("id", "mixed").click()
    state = driver.execute_script("return site.state()")
    assert state["world"].startswith("5~")
    wait(driver, "site.idle(1)")
    address = driver.execute_script("return location.href")
    driver.get("about:blank")
    driver.get(address)
    wait(driver, "site.idle(1)")
    again = driver.execute_script("return site.state()")
    assert (again["world"], again["trunc"]) == (state["world"], 0.8)
    assert again["view"]["x"] == pytest.approx(state["view"]["x"])
    box = driver.find_element("id", "world")
    box.clear()
    box.send_keys("not a world")
    assert driver.execute_script(
        "return !document.getElementById('world').checkValidity() && site.state().world !== 'not a world'"
    )
    assert not [path for path in Quiet.asked if path.startswith("http")]


@pytest.mark.slow
def test_wheel_pinch_and_keys_zoom_at_the_place_that_is_meant(driver):
    driver.get(driver.address + "#z=4&x=0.1&y=0.05&w=5")
    wait(driver, "site.idle(1)")
    side = driver.execute_script("return Math.min(view.clientWidth, view.clientHeight)")
    state, middle = (lambda: driver.execute_script("return site.state().view")), {"x": 0.1, "y": 0.05}

    def touch(kind, *points):
        points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    x, y = driver.execute_script(
        "const r = view.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]"
    )
    touch("touchStart", (x - 50, y), (x + 50, y))
    touch("touchMove", (x - 100, y), (x + 100, y))
    touch("touchEnd")
    assert state() == pytest.approx({"zoom": 8, **middle}, abs=1 / (8 * side))  # points are whole pixels
    wheel = {"type": "mouseWheel", "x": x + 60, "y": y, "deltaX": 0, "deltaY": -240}
    driver.execute_cdp_cmd("Input.dispatchMouseEvent", wheel)
    wait(driver, "site.idle(1)")
    assert state() == pytest.approx({"zoom": 16, "x": 0.1 + 60 / (16 * side), "y": 0.05}, abs=1 / (8 * side))
    canvas = driver.find_element("id", "view")
    canvas.send_keys("0")
    wait(driver, "site.idle(1)")
    assert state() == {"zoom": 1, "x": 0, "y": 0}
    canvas.send_keys("h")
    assert driver.execute_script("return document.getElementById('help').open")
    assert "SHA-256" in driver.find_element("id", "provenance").text


LATER = """
    const now = performance.now.bind(performance);
    window.later = 0;
    performance.now = () => now() + later;"""
"""Has the page's clock go forward by ``later`` ms."""


@pytest.mark.slow
def test_left_alone_an_exhibit_s_page_returns_to_its_first_view(driver):
    script = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": LATER})["identifier"]
    state = "return [site.state(), document.getElementById('help').open]"
    try:
        driver.get("about:blank")
        driver.get(driver.address + "?home=120#z=4&x=0.1&y=0.05&w=5")
        wait(driver, "site.idle(0)")
        first = driver.execute_script(state)
        canvas = driver.find_element("id", "view")
        driver.find_element("id", "mixed").click()
        webdriver.ActionChains(driver).click_and_hold(canvas).move_by_offset(-60, 20).perform()
        driver.execute_script("later += 1e6")
        time.sleep(0.5)
        moved, _ = driver.execute_script(state)
        assert moved["world"].startswith("5~"), "a drag is held"
        webdriver.ActionChains(driver).release(canvas).perform()
        canvas.send_keys("h")
        driver.execute_script("later += 60e3")
        time.sleep(0.5)
        assert driver.execute_script(state) == [{**moved, "view": driver.execute_script(state)[0]["view"]}, True]
        driver.execute_script("later += 60e3")
        wait(driver, "!document.getElementById('help').open && site.idle(0)")
        assert driver.execute_script(state) == first
        assert driver.execute_script("return location.search + location.hash") == "?home=120#z=4&x=0.1&y=0.05&w=5&t=1"
        for home in ("0", "-1", "soon", "1e999", ""):
            driver.get("about:blank")
            driver.get(f"{driver.address}?home={home}")
            wait(driver, "true")
            driver.find_element("id", "view").send_keys("h")
            driver.execute_script("later += 1e12")
            time.sleep(0.5)
            assert driver.execute_script(state)[1], f"home={home} is ignored"
    finally:
        driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": script})


SLOW = """
    window.asked = [];
    window.Worker = class extends Worker {
        postMessage(message) { asked.push(message.region); super.postMessage(message); }
        set onmessage(listener) {
            super.onmessage = (event) => {
                if (event.data.ms) event.data.ms = (event.data.width + 32) * (event.data.height + 32) / 50;
                listener(event);
            };
        }
    };"""
"""A machine that takes 1 ms for 50 pixels, the halo of 16 included, for the page; ``asked`` is what it asks of its worker."""


@pytest.mark.slow
def test_at_rest_frames_become_as_fine_as_the_canvas_and_gestures_come_in_between(driver):
    metrics = {"width": 300, "height": 420, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    script = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": SLOW})["identifier"]
    try:
        driver.get("about:blank")
        driver.get(driver.address + "?debug#z=8&x=0.1&y=0.05&w=5")
        wait(driver, "site.idle()")
        frame = """const { image, region } = site.frame(), { width, height } = image;
            return [region, width, height, [...image.getContext("2d").getImageData(0, 0, width, height).data]]"""
        region, width, height, pixels = driver.execute_script(frame)
        canvas = driver.execute_script("return [view.width, view.height]")
        assert [width, height] == canvas
        pitch = region["pitch"]
        assert pitch == pytest.approx(1 / (8 * min(canvas)))
        tiles = [part for part in driver.execute_script("return asked") if part["pitch"] == pitch]
        assert len(tiles) >= 4
        assert max((part["width"] + 32) * (part["height"] + 32) for part in tiles) <= 500 * 50 * 1.2  # half a second
        first, last = (
            np.hypot(part["left"] + pitch * part["width"] / 2 - 0.1, part["top"] + pitch * part["height"] / 2 - 0.05)
            for part in (tiles[0], tiles[-1])
        )
        assert first < last  # from the middle outwards
        world = multiscale.load(BUNDLED, device="cpu").world("5")
        view = world.view(8 * min(canvas) / max(canvas), (0.1, 0.05), canvas)
        pixels = np.array(pixels).reshape(height, width, 4)[..., :3]
        errors = np.abs(pixels - np.asarray(view).astype(int))
        assert errors.max() <= 2
        assert errors.mean() < 0.3
        assert f"of {width} × {height} pixels" in driver.find_element("id", "ms").text
        assert driver.find_element("id", "progress").text == ""
        driver.execute_script("location.hash = '#z=4&x=0.1&y=0.05&w=5'")
        wait(driver, "site.frame().under && site.frame().missing.length > 1")
        *_, pixels = driver.execute_script(frame)
        assert min(pixels[3::4]) >= 254  # no holes where tiles are missing
        said = """const { region, missing } = site.frame();
            const sum = missing.reduce((sum, tile) => sum + tile.width * tile.height, 0);
            const last = region.pitch < 1.0001 / (4 * Math.min(view.width, view.height));
            return [last ? Math.floor(100 * (1 - sum / region.width / region.height)) : 0, progress.textContent]"""
        told = []
        while not driver.execute_script("return site.idle()"):
            told.append(driver.execute_script(said))
        parts, texts = zip(*told, strict=True)
        said = [int(text.removeprefix("· sharpening ").removesuffix(" %")) for text in texts if text]
        assert said == sorted(said)
        assert len(set(said)) > 3
        assert set(said) <= {0, *parts}
        driver.execute_script("location.hash = '#z=4&x=0.105&y=0.05&w=5'")
        wait(driver, "site.frame().under && site.frame().missing.length > 1")
        driver.execute_script("asked.length = 0; location.hash = '#z=4&x=0.11&y=0.05&w=5'")
        wait(driver, "asked.length > 2")
        parts = driver.execute_script("return asked")
        middles = [part["left"] + part["pitch"] * part["width"] / 2 for part in parts]
        is_draft = [max(part["width"], part["height"]) == 64 for part in parts]
        assert any(
            is_draft[i] and middles[i] == pytest.approx(0.11, abs=0.005) for i in (0, 1)
        )  # at most one tile before it
        driver.execute_script("location.hash = '#z=4&x=0.1&y=0.05&w=5_3@99'")
        wait(driver, "document.getElementById('message').textContent.includes('names layer 99')")
        driver.execute_script("asked.length = 0")
        time.sleep(0.5)
        assert driver.execute_script("return asked") == []  # what fails is not asked for again
    finally:
        driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": script})
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.slow
def test_frames_of_the_canvas_s_pitch_lie_on_its_pixels(driver):
    driver.get(driver.address)
    script = """const done = arguments[0];
        import("./refine.js").then(({ paint }) => {
            const [image, canvas] = [new OffscreenCanvas(5, 5), new OffscreenCanvas(8, 5)];
            const noise = new ImageData(5, 5);
            for (let i = 0; i < 100; i++) noise.data[i] = i % 4 === 3 ? 255 : (i * 89) % 256;
            image.getContext("2d").putImageData(noise, 0, 0);
            const region = { left: -0.5, top: -0.5, pitch: 0.2, width: 5, height: 5 };
            paint(canvas.getContext("2d"), { image, region }, { left: -0.8, top: -0.5, pitch: 0.2 }); // 1.5 pixels away
            done([[...canvas.getContext("2d").getImageData(2, 0, 5, 5).data], [...noise.data]]);
        });"""
    painted, drawn = driver.execute_async_script(script)
    assert painted == drawn


@pytest.mark.slow
def test_worlds_in_frames_of_their_own_are_turned_and_shifted_as_here(driver, site, tmp_path):
    torch.manual_seed(0)
    config = small_config(
        octaves=3, num_layers=6, num_critical=1, fourier_features=96, feature_style=True, world_frame=True
    )
    generator = calibrated_generator(config)
    torch.nn.init.normal_(generator.synthesis.frame.weight, std=0.3)
    network = tmp_path / "framed.safetensors"
    save_snapshot(network, generator, {})
    export_site(network, site.parent / "framed")
    driver.get(driver.address.replace("earth", "framed"))
    wait(driver, "site.idle()")
    model = multiscale.load(network, device="cpu")
    for view in (
        {"world": "3", "zoom": 1, "x": 0, "y": 0, "width": 32},
        {"world": "7~9:0.25", "zoom": 8, "x": 0.1, "y": -0.2, "width": 32},
        {"world": "5", "zoom": 3, "x": 0.3, "y": 0.2, "trunc": 0.7, "width": 40, "height": 16},
    ):
        here = picture(model, view)
        assert np.abs(rendered(driver, view) - here).max() <= 2
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model.generator.synthesis, "framed", lambda transform, _: transform.double())
            assert np.abs(picture(model, view) - here).max() > 20


def begin(driver):
    """Open the page anew, eight times enlarged, until its script is there."""
    driver.get("about:blank")
    driver.get(driver.address + "#z=8")
    end = time.monotonic() + WAIT_SEC
    while not driver.execute_script("return window.site !== undefined"):
        assert time.monotonic() < end
        time.sleep(0.05)


COVERED = """return [...document.querySelectorAll("#tools button")].filter((button) => {
    const box = button.getBoundingClientRect();
    return !button.contains(document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2));
}).map((button) => button.id)"""
"""Buttons over the picture of which something else is hit."""


@pytest.mark.slow
def test_a_screen_enlarged_four_times_is_scrolled(driver):
    metrics = {"width": 320, "height": 256, "deviceScaleFactor": 4, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        begin(driver)
        assert driver.execute_script(COVERED) == []
        assert driver.execute_script("return stage.getBoundingClientRect().height") > 160
        driver.execute_script("save.scrollIntoView()")
        top, bottom = driver.execute_script("const box = save.getBoundingClientRect(); return [box.top, box.bottom]")
        assert 0 <= top < bottom <= 256
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1280, 800), (390, 844), (844, 390), (568, 320), (320, 568), (3840, 2160)])
def test_the_page_fits_any_screen(driver, size):
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    script = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": SLOW})["identifier"]
    try:
        begin(driver)
        outside = """const controls = "#tools button, #controls input, #controls button, h1, #credit";
            return [...document.querySelectorAll(controls)].filter((element) => {
                const box = element.getBoundingClientRect();
                return box.left < 0 || box.top < 0 || box.right > innerWidth || box.bottom > innerHeight || !box.width;
            }).map((element) => element.id || element.textContent)"""
        assert driver.execute_script(outside) == []
        assert driver.execute_script(COVERED) == []
        canvas, first = driver.execute_script("return [[view.width, view.height], asked[0]]")
        assert canvas[1] / size[1] > 0.4
        shown = [first["pitch"] * first[side] for side in ("width", "height")]
        assert shown == pytest.approx([side / (8 * min(canvas)) for side in canvas], abs=first["pitch"])
    finally:
        driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": script})
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.slow
def test_a_missing_part_is_said(driver, site):
    (site / "model.bin").rename(site / "elsewhere")
    try:
        driver.get("about:blank")
        driver.get(driver.address)
        end = time.monotonic() + WAIT_SEC
        while "model.bin is missing (404)" not in driver.find_element("id", "message").text:
            assert time.monotonic() < end
            time.sleep(0.1)
    finally:
        (site / "elsewhere").rename(site / "model.bin")


@pytest.mark.slow
def test_opened_as_a_file_it_says_what_to_do(driver, site):
    driver.get((site / "index.html").as_uri())
    end = time.monotonic() + WAIT_SEC
    while "browsers run no model from a file; serve the folder" not in driver.find_element("id", "message").text:
        assert time.monotonic() < end, driver.find_element("id", "message").text
        time.sleep(0.1)


def test_the_folder_is_whole_and_small(site):
    files = {path.relative_to(site).as_posix(): path.stat().st_size for path in site.rglob("*") if path.is_file()}
    assert sum(size for name, size in files.items() if not name.startswith("runtime/")) < 1_000_000
    facts = json.loads((site / "model.json").read_text())
    config, _ = read_header(BUNDLED)
    assert (facts["resolution"], facts["octaves"]) == (config.img_resolution, config.octaves)
    assert facts["provenance"]["network"] == BUNDLED.name
    assert facts["levels"] <= MOST_LEVELS
    licences = html.escape((site / "LICENCES.txt").read_text())
    assert "onnxruntime-web 1.30.0, MIT" in licences
    page = (site / "index.html").read_text()
    assert licences in page
    assert "<a " not in page, "a screen without a bar of addresses cannot come back from another page"
    for name, text in ((name, (site / name).read_text()) for name in files if name.endswith((".js", ".html", ".css"))):
        text = text.replace(licences, "").replace("* //", "").replace("// ", "")
        assert "//" not in text, f"{name} loads from elsewhere"
    assert "Microsoft Corporation" in (site / "runtime/LICENSE.txt").read_text()


def test_an_export_replaces_an_earlier_one_and_nothing_else(site, network, tmp_path):
    earlier = tmp_path / "earlier"
    shutil.copytree(site, earlier)
    (earlier / "old").write_text("left behind")
    done = CliRunner().invoke(zoom, ["--network", str(network), "--export", str(earlier), "--title", 'Lee & "<b>"'])
    assert done.exit_code == 0, done.output
    assert not (earlier / "old").exists()
    assert json.loads((earlier / "model.json").read_text())["title"] == 'Lee & "<b>"'
    assert "<title>Lee &amp; &quot;&lt;b&gt;&quot;</title>" in (earlier / "index.html").read_text()
    assert "TITLE" not in (earlier / "index.html").read_text()
    shutil.rmtree(earlier)
    (tmp_path / "photo.jpg").write_text("mine")
    with pytest.raises(UserError, match="holds something else than an earlier export"):
        export_site(BUNDLED, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_of_two_exports_at_once_the_second_replaces_nothing_that_has_come_meanwhile(network, tmp_path, monkeypatch):
    page = tmp_path / "page"

    def slowly(text, meanwhile):
        def write(place, *_):
            (place / "model.json").write_text(json.dumps({"format": "multiscale-site", "text": text}))
            meanwhile()

        monkeypatch.setattr(site_write, "_write_model", write)
        return export_site(network, page)

    with pytest.raises(UserError, match="has come into being meanwhile"):
        slowly("second", lambda: slowly("first", lambda: None))
    assert json.loads((page / "model.json").read_text())["text"] == "first"
    slowly("third", lambda: None)
    assert json.loads((page / "model.json").read_text())["text"] == "third"
    with pytest.raises(UserError, match="page holds something else than an earlier export"):
        slowly("fourth", lambda: (page / "model.json").rename(page / "mine.json"))
    assert [path.name for path in page.iterdir()] == ["mine.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


@pytest.mark.parametrize(
    ("file", "info", "title"),
    [
        (
            "00003-planet-moon/generator-000002000.safetensors",
            {"title": " The Moon & its craters "},
            "The Moon & its craters",
        ),
        ("00003-planet-moon/generator-000002000.safetensors", {"data": "lunar_maps.zip"}, "Lunar maps"),
        ("00003-planet-moon/generator-000002000.safetensors", {"title": "", "data": 3}, "Planet moon"),
        ("3f1c/generator-000002000.safetensors", {}, "Generator 000002000"),
        ("downloads/moon-v2.safetensors", {}, "Moon v2"),
        ("downloads/-.safetensors", {}, "A world"),
    ],
)
def test_pages_are_called_after_what_the_model_shows(tmp_path, network, file, info, title):
    snapshot = replace(load_snapshot(network), path=tmp_path / file, info=info)
    snapshot.path.parent.mkdir()
    if "planet" in file:
        (snapshot.path.parent / "config.yaml").touch()
    assert title_of(snapshot) == title


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("The Moon & its craters", "the-moon-its-craters"),
        ("../Élysée.v2/", "elysee-v2"),
        ("月", "world"),
        ("a" * 200, "a" * 60),
        ("b" * 59 + "-c", "b" * 59),
    ],
)
def test_files_to_take_home_are_called_after_the_title(title, name):
    assert file_name_of(title) == name


def test_a_page_to_take_home_is_one_folder_called_after_the_title(site, network, tmp_path):
    titled = tmp_path / "generator-000000000.safetensors"
    save_snapshot(titled, load_snapshot(network).generator, {"title": "Old Map"})
    path = zip_site(titled, tmp_path / "new")
    assert [path] == list((tmp_path / "new").iterdir())
    assert path.name == "old-map.zip"
    with zipfile.ZipFile(path) as archive:
        assert {"old-map/index.html", "old-map/model.bin", "old-map/runtime/LICENSE.txt"} <= set(archive.namelist())
        assert {name.partition("/")[0] for name in archive.namelist()} == {"old-map"}


def test_without_onnx_it_says_so_before_the_work(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setattr("multiscale.site.write.rounded", lambda _: pytest.fail("minutes of work in vain"))
    with pytest.raises(UserError, match="pip install onnx"):
        export_site(BUNDLED, tmp_path / "site")
    assert list(tmp_path.iterdir()) == []


def test_without_npm_it_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("MULTISCALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packages.shutil, "which", lambda _: None)
    with pytest.raises(UserError, match=r"onnxruntime-web 1\.30\.0 is needed and npm is not there"):
        export_site(BUNDLED, tmp_path / "site")
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    "options", [["--tiles"], ["--export", "x", "--world", "3"], ["--world", "3"], ["--title", "Moon"]]
)
def test_options_that_do_not_belong_together(options):
    done = CliRunner().invoke(zoom, options)
    assert done.exit_code == 2
    assert f"{options[0] if '--title' in options else '--tiles'} goes with --export" in done.output


@pytest.mark.parametrize("words", [["--token", "abc"], ["--allow-origin", "*"], ["--no-browser"]])
def test_options_of_the_server_do_not_go_with_an_export(tmp_path, words):
    done = CliRunner().invoke(zoom, ["--export", str(tmp_path / "page"), *words])
    assert done.exit_code == 2
    assert f"--export writes a page and serves nothing; leave out {words[0]}" in done.output
    assert not (tmp_path / "page").exists()


def test_tiles_are_a_pyramid_with_its_viewer(tmp_path, network):
    folder = tmp_path / "tiles"
    done = CliRunner().invoke(
        zoom, ["--network", str(network), "--export", str(folder), "--tiles", "--world", "3~7:0.5"]
    )
    if "npm" in done.output and done.exit_code:
        pytest.skip(f"needs npm and its registry: {done.output}")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{folder}\n"
    assert f"python -m http.server -d {folder}, then open http://localhost:8000.\n" in done.stderr
    assert (folder / "viewer/openseadragon.min.js").is_file()
    assert "OpenSeadragon contributors" in (folder / "viewer/LICENSE.txt").read_text()
    assert "openseadragon 6.1.1, BSD-3-Clause" in (folder / "LICENCES.txt").read_text()
    assert len(list((folder / "world_files").rglob("*.png"))) == 9
    assert "export" not in (folder / "tiles.js").read_text(), "a script from a file is no module"
    assert json.loads((folder / "model.json").read_text())["world"] == "3~7:0.5"


@pytest.mark.slow
def test_left_alone_tiles_return_to_the_whole_world_even_from_a_file(driver, tmp_path, network):
    folder = export_tiles(network, tmp_path / "tiles", World.parse("3"))
    script = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": LATER})["identifier"]
    try:
        driver.get((folder / "index.html").as_uri() + "?home=120")
        wait(driver, "window.viewer?.world.getItemCount()", "viewer")
        zoom = "viewer.viewport.getZoom(true)"
        whole = driver.execute_script(f"return {zoom}")
        driver.find_element("id", "view").click()
        wait(driver, f"{zoom} > {1.9 * whole}", "viewer")
        driver.execute_script("later += 60e3")
        time.sleep(0.5)
        assert driver.execute_script(f"return {zoom}") > 1.9 * whole
        driver.execute_script("later += 60e3")
        wait(driver, f"Math.abs({zoom} - {whole}) < 1e-3", "viewer")
    finally:
        driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": script})


LOOK = """
const view = viewer.viewport;
viewer.navigator.element.style.display = "none";
viewer.setControlsEnabled(false);
for (const control of viewer.controls) control.wrapper.style.display = "none";
view.zoomTo(view.imageToViewportZoom(arguments[0]), null, true);
view.panTo(new OpenSeadragon.Point(0.5031, 0.4952), true);
viewer.forceRedraw();
const box = viewer.element.getBoundingClientRect();
const {x, y} = view.viewerElementToImageCoordinates(new OpenSeadragon.Point(0, 0));
return {box: [box.left, box.top, box.right, box.bottom].map(Math.floor), x, y};
"""
"""Shows the middle, enlarged so many times, and says where on the screen, and which place is in its corner."""


@pytest.mark.slow
def test_tiles_are_shown_even_from_a_file_and_as_one_picture(driver, tmp_path):
    network = tmp_path / "earth.safetensors"
    config = small_config(octaves=4, num_layers=6, num_critical=1)
    terms = {"licence": "CC BY 4.0", "credit": "City Museum"}
    save_snapshot(network, calibrated_generator(config), terms)
    folder = export_tiles(network, tmp_path / "tiles", World.parse("3"))
    driver.get((folder / "index.html").as_uri())
    end = time.monotonic() + WAIT_SEC
    while not driver.execute_script("return viewer.world.getItemCount() && viewer.world.getItemAt(0).getFullyLoaded()"):
        assert time.monotonic() < end, "no tiles came"
        time.sleep(0.1)
    assert (
        driver.find_element("id", "about").text
        == "World 3 of a generative model. Under: CC BY 4.0. Credit: City Museum."
    )
    zoomed = driver.execute_script("return viewer.viewport.getZoom()")
    reached = []
    for _ in range(6):
        driver.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(driver.switch_to.active_element.get_attribute("aria-label"))
    assert {"Zoom in", "Zoom out", "Go home", "Toggle full page"} <= set(reached)
    driver.find_element("css selector", "[aria-label='Zoom in']").send_keys(Keys.ENTER)
    assert driver.execute_script("return viewer.viewport.getZoom()") > zoomed
    seen = "return [viewer.source.width, viewer.world.getItemAt(0).lastDrawn.map((tile) => tile.level)]"
    side, levels = driver.execute_script(seen)
    assert (side, max(levels)) == (512, 9)
    whole = np.zeros((512, 512, 3), np.uint8)
    for x, y in ((0, 0), (1, 0), (0, 1), (1, 1)):
        tile = np.asarray(Image.open(folder / f"world_files/9/{x}_{y}.png"))
        whole[256 * y :, 256 * x :][:256, :256] = tile[y : y + 256, x : x + 256]
    for times in (1.4, 2.7):
        place = driver.execute_script(LOOK, times)
        time.sleep(1)  # until it is on the screen
        shot = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB").crop(place["box"])
        at = (1 / times, 0, place["x"], 0, 1 / times, place["y"])
        one = Image.fromarray(whole).transform(shot.size, Image.Transform.AFFINE, at, Image.Resampling.BILINEAR)
        error = np.abs(np.asarray(shot, int) - np.asarray(one, int))
        assert error.max() <= 3, (
            f"a crease at {np.argwhere(error.max(axis=2) > 3)[:5]} of {shot.size}, enlarged {times} times"
        )
