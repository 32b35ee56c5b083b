"""The explorer's page in a real headless Chromium, against the real server with a tiny network."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import calibrated_generator, small_config
from PIL import Image
from proxy import proxying

from dnnlib.errors import UserError
from multiscale.rendering.worlds import World
from multiscale.runs.snapshots import load_snapshot, save_snapshot
from multiscale.site.packages import RUNTIME, copy_from
from multiscale.site.write import RUNTIME_FILES, file_name_of, title_of

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install selenium")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --force-device-scale-factor=1"
)
OCTAVES = 3
WIDTH, HEIGHT = 900, 560
WAIT_SEC = 110

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromedriver on the PATH"),
]


def free_port() -> int:
    """One that the system gives to nobody meanwhile: it takes those from 32768 on (Linux), or from 49152 on."""
    for port in random.SystemRandom().sample(range(20000, 32768), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


class Server:
    """``zoom.py`` as a process of its own; it can be killed and started again at the same address."""

    def __init__(self, network: Path, *options: str) -> None:
        self.network, self.options = network, options
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}/"

    def start(self, query: str = "") -> None:
        command = [sys.executable, "zoom.py", "--network", str(self.network), "--no-browser", "--port", str(self.port)]
        command += self.options
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        end = time.monotonic() + WAIT_SEC
        while True:
            assert self.process.poll() is None, "the server ended at once"
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.address}api/info{query}", timeout=5):
                return
            assert time.monotonic() < end, "the server did not answer"
            time.sleep(0.1)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Page:
    """One window of the browser."""

    def __init__(self, driver) -> None:
        self.driver = driver

    def open(self, address: str) -> None:
        self.driver.get("about:blank")
        self.driver.get(address)
        self.settle()

    def js(self, text: str, *arguments):
        return self.driver.execute_script(text, *arguments)

    def wait(self, condition: str, *arguments) -> None:
        end = time.monotonic() + WAIT_SEC
        while not self.js(f"return window.explorer && ({condition})", *arguments):
            assert time.monotonic() < end, f"waited in vain for {condition}"
            time.sleep(0.03)

    def settle(self) -> None:
        self.wait("explorer.idle()")

    @property
    def view(self) -> dict:
        return self.js("return explorer.view()")

    @property
    def state(self) -> dict:
        return self.js("return explorer.state()")

    def find(self, selector: str):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def canvas(self, panel: str = "a") -> np.ndarray:
        """The canvas's pixels, float [H, W, 3], as they are."""
        selector = f"#panel-{panel} canvas"
        data = self.js("return document.querySelector(arguments[0]).toDataURL('image/png')", selector)
        with urllib.request.urlopen(data) as stream:
            return np.asarray(Image.open(io.BytesIO(stream.read())).convert("RGB"), dtype=np.float64)

    def perform(self, chain: ActionChains, event: str) -> None:
        """Do it, and wait until the page has seen an event of this type (the browser does not)."""
        self.js(
            """window.seen = false;
            addEventListener(arguments[0], () => (window.seen = true), { capture: true, once: true });""",
            event,
        )
        chain.perform()
        self.wait("window.seen")

    def wheel(self, x: int, y: int, delta: int) -> None:
        origin = ScrollOrigin.from_viewport(x, y)
        self.perform(ActionChains(self.driver, 0).scroll_from_origin(origin, 0, delta), "wheel")

    def drag(self, start: tuple[int, int], by: tuple[int, int], *, hold: float = 0.0, button: int = 0) -> None:
        steps = 8
        chain = ActionChains(self.driver, 16)
        chain.w3c_actions.pointer_action.move_to_location(*start).pointer_down(button=button)
        for i in range(1, steps + 1):
            chain.w3c_actions.pointer_action.move_to_location(
                start[0] + by[0] * i // steps, start[1] + by[1] * i // steps
            )
        if hold:
            chain.w3c_actions.pointer_action.pause(hold)
        chain.w3c_actions.pointer_action.pointer_up(button=button)
        self.perform(chain, "pointerup")

    def press(self, *keys: str) -> None:
        self.js("document.activeElement?.blur()")
        chain = ActionChains(self.driver, 0)
        for key in keys[:-1]:
            chain.key_down(key)
        chain.send_keys(keys[-1])
        for key in keys[:-1]:
            chain.key_up(key)
        self.perform(chain, "keyup")

    def resize(self, width: int, height: int, *, touch: bool = False) -> None:
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": touch})

    def trace(self, x: int, y: int) -> None:
        """Note in each frame how far (pixels) the world's point that is now under (x, y) lies from there."""
        self.js(
            """const [x, y] = arguments, at = explorer.worldAt(x, y);
            window.trace = [];
            const note = () => {
              const now = explorer.screenAt(at.x, at.y);
              trace.push(Math.hypot(now.px - x, now.py - y));
              requestAnimationFrame(note);
            };
            note();""",
            x,
            y,
        )


def start_driver():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    torch.manual_seed(0)
    config = small_config(
        octaves=OCTAVES, num_layers=8, margin=4, channel_base=256, channel_max=16, output_scale=4.0
    )  # quick, and of strong contrast
    path = tmp_path_factory.mktemp("network") / "generator-000001000.safetensors"
    save_snapshot(path, calibrated_generator(config), {"kimg": 1.0})
    return path


@pytest.fixture(scope="module")
def server(network):
    server = Server(network)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def driver():
    driver = start_driver()
    yield driver
    driver.quit()


@pytest.fixture
def page(driver, server):
    """The page of world 3, open and at rest; the test fails where the browser's console has anything to say."""
    page = Page(driver)
    page.resize(WIDTH, HEIGHT)
    page.open(server.address + "#w=3")
    page.js("localStorage.clear()")
    driver.get_log("browser")
    yield page
    assert driver.get_log("browser") == []


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference of pixels in levels of 255."""
    assert a.shape == b.shape
    return float(np.abs(a - b).mean())


def world_part(page: Page) -> np.ndarray:
    """What the canvas shows of the world at zoom 1."""
    pixels = page.canvas()
    height, width = pixels.shape[:2]
    side = min(height, width) - 2
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def test_the_page_loads_and_shows_the_world(page):
    assert world_part(page).std() > 10
    assert "world 3" in page.find("#panel-a .label").text
    assert page.find("#s-state").text == "connected"
    assert page.find("#s-zoom").text == "1.00×"
    assert f"of {OCTAVES}" in page.find("#s-octave").text
    assert page.js("return explorer.progress()") == [1]
    assert page.js("return document.documentElement.scrollWidth") <= WIDTH


def test_the_point_under_the_cursor_stays_put_from_a_corner_to_the_limit_and_back(page):
    start = page.view
    corner = page.js("return explorer.screenAt(-0.4995, -0.4995)")
    x, y = round(corner["px"]), round(corner["py"])
    page.trace(x, y)
    for delta, limit in ((-90, 2**OCTAVES), (90, 1)):
        for _ in range(40):
            page.wheel(x, y, delta)
            if abs(page.view["zoom"] - limit) < 1e-9:
                break
        page.settle()
        assert page.view["zoom"] == pytest.approx(limit)
        if limit > 1:
            assert "enlarged" in page.find("#s-pixels").text
    trace = page.js("return trace")
    assert len(trace) > 20
    assert max(trace) < 1
    end = page.view
    assert (end["x"], end["y"]) == pytest.approx((start["x"], start["y"]), abs=1e-9)


def test_zooming_moves_the_picture_itself_about_the_cursor(page):
    page.open(page.driver.current_url.split("#")[0] + "#w=3&z=2&x=0.05&y=-0.03")
    x, y, half = 330, 290, 100
    before = page.canvas()[y - half : y + half, x - half : x + half]
    page.wheel(x, y, -240)
    page.wait("Math.abs(explorer.view().zoom - 4) < 1e-6")
    page.settle()
    after = page.canvas()
    fits = {}
    for dx in range(-4, 5):
        for dy in range(-4, 5):
            part = after[y + dy - 2 * half : y + dy + 2 * half, x + dx - 2 * half : x + dx + 2 * half]
            reduced = part.reshape(2 * half, 2, 2 * half, 2, 3).mean(axis=(1, 3))
            fits[dx, dy] = np.square(reduced - before).mean()
    dx, dy = min(fits, key=fits.__getitem__)
    assert np.hypot(dx, dy) <= 1
    assert before.std() > 2 * np.sqrt(fits[dx, dy])


def test_a_drag_moves_the_world_with_the_hand(page):
    page.press("+")
    page.press("+")
    page.settle()
    before = page.js("return explorer.worldAt(400, 300)")
    page.drag((400, 300), (-120, 60), hold=0.3)
    page.settle()
    after = page.js("return explorer.screenAt(arguments[0].x, arguments[0].y)", before)
    assert (after["px"], after["py"]) == pytest.approx((280, 360), abs=0.5)


def test_a_drag_in_motion_glides_on_and_comes_to_rest(page):
    page.press("+")
    page.press("+")
    page.press("+")
    page.settle()
    before = page.js("return explorer.worldAt(400, 300)")
    start = time.time()  # and at a hand's times, not at the machine's
    for i, kind in enumerate(["mousePressed", *["mouseMoved"] * 8, "mouseReleased"]):
        place = {"x": 400 - 100 * min(i, 8) // 8, "y": 300, "timestamp": start + 0.016 * i}
        page.driver.execute_cdp_cmd(
            "Input.dispatchMouseEvent", {"type": kind, "button": "left", "buttons": 1, "clickCount": 1, **place}
        )
    page.settle()
    rest = page.js("return explorer.screenAt(arguments[0].x, arguments[0].y)", before)
    assert rest["px"] < 290
    assert rest["py"] == pytest.approx(300, abs=0.5)
    view = page.view
    time.sleep(0.2)
    assert page.view == view


def test_double_click_zooms_in_at_the_cursor_and_with_shift_out(page):
    page.trace(300, 200)
    canvas = page.find("#panel-a canvas")
    offset = (300 - canvas.size["width"] // 2, 200 - canvas.size["height"] // 2)
    page.perform(ActionChains(page.driver, 0).move_to_element_with_offset(canvas, *offset).double_click(), "dblclick")
    page.wait("Math.abs(explorer.view().zoom - 2) < 1e-9")
    page.perform(ActionChains(page.driver, 0).key_down(Keys.SHIFT).double_click().key_up(Keys.SHIFT), "dblclick")
    page.wait("Math.abs(explorer.view().zoom - 1) < 1e-9")
    assert max(page.js("return trace")) < 1


def test_another_seed_shows_another_world_and_undo_brings_the_first_back(page):
    first = world_part(page)
    box = page.find("#world")
    box.clear()
    box.send_keys("12" + Keys.ENTER)
    page.settle()
    second = world_part(page)
    assert difference(first, second) > 5
    page.press(Keys.CONTROL, "z")
    page.wait("explorer.state().world === '3'")
    page.settle()
    assert difference(first, world_part(page)) < 1
    page.press(Keys.CONTROL, Keys.SHIFT, "z")
    page.wait("explorer.state().world === '12'")
    page.press("r")
    page.wait("!['3', '12'].includes(explorer.state().world)")
    page.press("p")
    page.wait("explorer.state().world === '12'")
    page.driver.back()
    page.settle()
    assert page.state["world"] != "12"


def test_text_that_is_no_world_is_refused_in_words(page):
    box = page.find("#world")
    box.clear()
    box.send_keys("seven" + Keys.ENTER)
    page.wait("!document.getElementById('toast').hidden")
    assert "seven" in page.find("#toast").text
    assert page.state["world"] == "3"


def test_world_texts_mean_the_same_to_the_page_and_to_the_program(page):
    good = ["3", "0", "4294967295", "3~7:0.25", "3d0.4:-0.2", "3_7@4-8", "3_7@4", "3d.5:0~7d1:2:-0.25~9:1_9@6-8_1@0-0"]
    bad = [
        "",
        "x",
        "4294967296",
        "3~7",
        "3~:0.5",
        "3d1",
        "3d101:0",
        "3_7@8-4",
        "3_@1-2",
        "-1",
        "3 4",
        "3" + "~1:0.1" * 16,
    ]
    for text in good + bad:
        try:
            there = str(World.parse(text))
        except UserError:
            there = None
        here = page.driver.execute_async_script(
            """const [text, done] = arguments;
            import("/static/worlds.js").then(({ parse, format }) => done(parse(text) && format(parse(text))));""",
            text,
        )
        assert here == there, text


def test_requests_lie_on_the_lattice_and_within_the_world(page):
    wrong = page.driver.execute_async_script(
        """const done = arguments[0];
        import("/static/view.js").then((v) => {
          const wrong = [];
          for (let i = 0; i < 3000; i++) {
            const size = { width: 50 + Math.floor(Math.random() * 2000), height: 50 + Math.floor(Math.random() * 1200) };
            const view = v.constrain({ zoom: 2 ** (Math.random() * 8), x: Math.random() - 0.5, y: Math.random() - 0.5 }, 256);
            const shown = v.intersect(v.extent(view, size), v.WORLD);
            const pitch = v.pitchOf(view, size) * 2 ** (Math.random() * 3 - 1);
            const [step, grain] = [4 * (1 + (i % 2)), 1 + (i % 4)];
            const region = v.regionOver(shown, pitch, step, grain);
            const rect = v.rectOf(region);
            const [column, row] = [(region.left + 0.5) / pitch / step, (region.top + 0.5) / pitch / step];
            const good =
              Math.abs(column - Math.round(column)) < 1e-6 &&
              Math.abs(row - Math.round(row)) < 1e-6 &&
              region.left >= -0.5 &&
              region.top >= -0.5 &&
              region.left + region.width * pitch <= 0.5 + 1e-9 &&
              region.top + region.height * pitch <= 0.5 + 1e-9 &&
              v.contains(rect, v.inflate(shown, -1e-9)) &&
              v.subtract(v.inflate(shown, -1e-9), [rect]).length === 0;
            if (!good) wrong.push({ size, view, pitch, step, grain, region });
          }
          done(wrong);
        });"""
    )
    assert wrong == []


def test_parts_of_a_sharper_picture_end_softly_and_leave_no_seams(page):
    """White parts on black, of a view of 600 x 300 pixels: what is on its middle row."""
    row = """const [parts, how, age, done] = arguments;
        import("/static/layers.js").then(async ({ Layers }) => {
            const context = document.createElement("canvas").getContext("2d");
            Object.assign(context.canvas, { width: 600, height: 300 });
            const rect = { left: -0.5, right: 0.5, top: -0.25, bottom: 0.25 };
            const camera = { rect, shown: rect, pitch: 1 / 600, width: 600, height: 300 };
            const layers = new Layers();
            const add = async (colour, x0, x1, pixels, born) => {
                const picture = new OffscreenCanvas(pixels * (x1 - x0), pixels / 2);
                const drawn = picture.getContext("2d");
                drawn.fillStyle = colour;
                drawn.fillRect(0, 0, picture.width, picture.height);
                const place = { left: x0 - 0.5, right: x1 - 0.5, top: -0.25, bottom: 0.25 };
                const more = { content: 1, backdrop: false, sharp: pixels === 600, born, fades: pixels === 600 };
                layers.add({ rect: place, pitch: 1 / pixels, bitmap: await createImageBitmap(picture), ...more }, camera);
            };
            await add("black", 0, 1, 60, 0);
            const born = (i) => (i === parts.length - 1 ? 1000 - age : 0);
            for (const [i, [x0, x1]] of parts.entries()) await add("white", x0, x1, 600, born(i));
            const fading = layers.paint(context, camera, 1000, how);
            done([fading, [...context.getImageData(0, 150, 600, 1).data].filter((_, i) => i % 4 === 0)]);
        });"""

    def painted(*parts, age=1000, **how):
        script = [list(parts), {"moving": False, "calm": False} | how, age]
        fading, values = page.driver.execute_async_script(row, *script)
        return fading, np.array(values)

    halves = ((0.1, 0.4), (0.38, 0.6))
    fading, soft = painted(*halves)
    assert not fading
    assert (soft[:60] == 0).all()
    assert (soft[360:] == 0).all()
    assert (soft[140:280] == 255).all()  # where they meet as well
    assert np.abs(np.diff(soft)).max() < 24
    assert soft[60:130].std() > 50
    hard = painted(*halves, moving=True)[1]
    assert set(hard[61:359]) == {255}
    assert np.abs(np.diff(hard)).max() > 200
    fading, half = painted((0, 0.52), (0.5, 1), age=100)
    assert fading
    assert 100 < half[500] < 155
    assert (half[:220] == 255).all()
    assert not painted((0, 0.52), (0.5, 1), age=100, calm=True)[0]
    assert (painted((0, 0.52), (0.5, 1))[1] == 255).all()


@pytest.mark.parametrize("scale", [1, 1.1, 5.7])
def test_parts_of_one_pitch_are_shown_as_one_picture_would_be(page, scale):
    """A picture of 200 x 120 random pixels in four parts, and in one, on a canvas of odd sides and half pixels."""
    script = """const [scale, done] = arguments;
        import("/static/layers.js").then(async ({ Layers }) => {
            const [wide, high, pitch] = [200, 120, 1 / 240];
            const picture = new OffscreenCanvas(wide, high);
            const noise = new ImageData(wide, high);
            for (let i = 0; i < noise.data.length; i++) noise.data[i] = i % 4 === 3 ? 255 : Math.random() * 256;
            picture.getContext("2d").putImageData(noise, 0, 0);
            const layer = async ([x0, y0, x1, y1], i) => {
                const [left, top, right, bottom] = [x0, y0, x1, y1].map((at) => -0.5 + (at + 20) * pitch);
                const bitmap = await createImageBitmap(picture, x0, y0, x1 - x0, y1 - y0);
                const more = { content: 1, backdrop: false, sharp: true, born: i, fades: false };
                return { rect: { left, top, right, bottom }, pitch: pitch * (1 + i * 1e-15), bitmap, ...more };
            };
            const painted = async (parts, moving) => {
                const context = document.createElement("canvas").getContext("2d");
                const [width, height] = [150, 81].map((side) => Math.round(side * scale) | 1);
                Object.assign(context.canvas, { width, height });
                const [left, top, fine] = [-0.5 + 35.5 * pitch, -0.5 + 30.5 * pitch, pitch / scale];
                const rect = { left, top, right: left + width * fine, bottom: top + height * fine };
                const camera = { rect, shown: rect, pitch: fine, width, height };
                const layers = new Layers();
                for (const [i, part] of parts.entries()) layers.add(await layer(part, i), camera);
                layers.paint(context, camera, 1000, { moving, calm: false });
                return [...context.getImageData(0, 0, width, height).data];
            };
            const parts = [[0, 0, 104, 64], [96, 0, 200, 64], [0, 60, 104, 120], [100, 60, 200, 120]];
            const one = await painted([[0, 0, wide, high]], false);
            const shown = [await painted(parts, false), await painted(parts, true)];
            const most = (pixels, of) => pixels.reduce((most, value, i) => Math.max(most, Math.abs(value - of(i))), 0);
            done([...shown.map((pixels) => most(pixels, (i) => one[i])), most(one, (i) => one[i - (i % 4)])]);
        });"""
    at_rest, moving, contrast = page.driver.execute_async_script(script, scale)
    assert max(at_rest, moving) <= (scale > 1)  # rounding
    assert contrast > 200


SMALL_PARTS = """
    window.sent = [];
    const { send } = WebSocket.prototype;
    WebSocket.prototype.send = function (text) {
        sent.push(JSON.parse(text));
        send.call(this, text);
    };
    const { fetch: ask } = window;
    window.fetch = async (address) => {
        const answer = await ask(address);
        if (address !== "api/info") return answer;
        const info = await answer.json();
        info.limits.frame_px = PIXELS;
        return Response.json(info);
    };"""
"""A server that renders PIXELS at a time, for the page; ``sent`` is what it asks."""


@pytest.mark.parametrize(
    ("size", "ratio", "address", "pixels"),
    [
        ((901, 561), 1, "w=3&z=4.1&x=0.05&y=-0.03", 5000),  # enlarged
        ((641, 480), 2, "w=3&z=1.13&x=0.01&y=-0.03", 30000),
        ((503, 391), 1, "w=3&z=2.37&x=0.05&y=-0.03&ext=1", 50000),  # not enlarged
    ],
)
def test_a_view_at_rest_has_no_seams_where_its_parts_meet(page, server, size, ratio, address, pixels):
    source = {"source": SMALL_PARTS.replace("PIXELS", str(pixels))}
    script = page.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", source)
    try:
        screen = {"width": size[0], "height": size[1], "deviceScaleFactor": ratio, "mobile": False}
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        page.open(f"{server.address}#{address}")
        assert ("enlarged" in page.find("#s-pixels").text) == ("ext" not in address)
        shown, view = page.canvas(), page.view
        pitch = 1 / (view["zoom"] * min(shown.shape[:2]))
        for axis, side, across in ((0, "top", "height"), (1, "left", "width")):
            centre = view["y" if axis == 0 else "x"]
            frames = [message for message in page.js("return sent") if message["type"] == "frame"]  # not "ping"
            parts = [part for part in frames if part["quality"] == "sharp"]
            edges = {part[side] + end * part[across] * part["pitch"] for part in parts for end in (0, 1)}
            edges = {edge for edge in edges if abs(edge) < 0.499}  # within the world
            places = {round((edge - centre) / pitch + shown.shape[axis] / 2) for edge in edges}
            places = {place for place in places if 8 < place < shown.shape[axis] - 8}
            assert places
            step = np.abs(np.diff(shown, axis=axis)).mean(axis=(1 - axis, 2))
            crease = np.abs(step[1:-1] - (step[:-2] + step[2:]) / 2)  # of pixels i + 1 and i + 2
            usual = np.percentile(crease, 99)
            assert all(crease[place - 3 : place + 1].max() < 1.5 * usual + 0.1 for place in places)
    finally:
        page.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


def test_mix_styles_truncation_and_drift_write_the_world_text(page):
    first = world_part(page)
    page.find("#mix-seed").send_keys("7")
    page.find("#style-seed").send_keys("9")
    page.settle()
    assert page.state["world"] == "3~7:0.5_9@0-4"
    assert page.find("#world").get_attribute("value") == "3~7:0.5_9@0-4"
    page.js(
        """const slider = document.getElementById("trunc");
        slider.value = 0.5;
        slider.dispatchEvent(new Event("input"));
        slider.dispatchEvent(new Event("change"));"""
    )
    assert page.state["trunc"] == 0.5
    page.settle()
    assert difference(first, world_part(page)) > 2
    page.drag((400, 300), (60, -30), button=2)
    page.settle()
    assert page.state["world"] == "3d0.2:-0.1~7:0.5_9@0-4"
    assert "3d0.2:-0.1" in page.find("#panel-a .label").text
    assert page.view["zoom"] == 1


def test_the_address_holds_the_whole_view(page, server):
    page.press("c")
    page.press("e")
    page.wheel(200, 300, -300)
    page.settle()
    page.wait(
        "Number(new URLSearchParams(location.hash.slice(1)).get('z')).toFixed(6) === explorer.view().zoom.toFixed(6)"
    )
    before, view, pixels = page.state, page.view, [page.canvas("a"), page.canvas("b")]
    address = page.driver.current_url
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("window")
    try:
        page.resize(WIDTH, HEIGHT)
        page.open(address)
        assert page.state | {"view": None} == before | {"view": None}
        assert page.view == pytest.approx(view)
        assert page.driver.current_url == address
        for panel, old in zip("ab", pixels, strict=True):
            assert difference(page.canvas(panel), old) < 2
    finally:
        page.driver.close()
        page.driver.switch_to.window(first)


def test_linked_views_side_by_side(page):
    page.press("c")
    page.settle()
    assert page.state["compare"]["world"] == "4"
    assert page.js("return explorer.progress()") == [1, 1]
    assert difference(page.canvas("a"), page.canvas("b")) > 3
    box = page.find("#compare-world")
    box.clear()
    box.send_keys("3" + Keys.ENTER)
    x = page.find("#panel-b canvas").location["x"] + 60
    page.wheel(x, 300, -240)
    page.settle()
    assert page.view["zoom"] == pytest.approx(2)
    assert difference(page.canvas("a"), page.canvas("b")) < 2
    assert len(Select(page.find("#compare-network")).options) == 1


def test_the_cross_scale_error_is_shown_and_measured(page):
    plain = world_part(page)
    page.find("#error").click()
    page.wait("document.getElementById('error-db').textContent.includes('dB')")
    page.settle()
    assert "dB" in page.find("#panel-a .label").text
    assert difference(plain, world_part(page)) > 5
    page.find("#error").click()
    page.settle()
    assert difference(plain, world_part(page)) < 1


def test_bookmarks_outlive_the_page(page):
    page.press("+")
    page.settle()
    view = page.view
    page.press("b")
    page.find("#bookmark-name").send_keys("here" + Keys.ENTER)
    page.press("0")
    page.settle()
    page.driver.refresh()
    page.settle()
    page.js("document.getElementById('bookmark-section').open = true")
    page.find("#bookmarks button").click()
    page.settle()
    assert page.view == pytest.approx(view)
    page.find("#bookmarks [aria-label='Delete bookmark here']").click()
    assert page.js("return document.getElementById('bookmarks').children.length") == 0


def test_an_image_is_saved_as_it_is_shown(page, tmp_path):
    shown = world_part(page)
    page.driver.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.press("s")
    page.find("[data-do=save-finest]").click()
    side = 32 * 2**OCTAVES
    assert page.find("#save-width").get_attribute("value") == str(side)
    page.find("#save-form .main").click()
    end = time.monotonic() + WAIT_SEC
    while not (found := list(tmp_path.glob("*.png"))):
        assert time.monotonic() < end, "no image came"
        time.sleep(0.05)
    with Image.open(found[0]) as image:
        assert image.size == (side, side)
        saved = image.convert("RGB").resize(shown.shape[1::-1], Image.Resampling.BICUBIC)
    assert difference(np.asarray(saved, dtype=np.float64), shown) < 3


def test_the_model_is_saved_as_a_page_of_its_own(page, network, tmp_path):
    pytest.importorskip("onnx", reason="needs onnx: pip install onnx")
    try:
        copy_from(RUNTIME, RUNTIME_FILES, tmp_path / "runtime")
    except UserError as error:
        pytest.skip(f"needs npm and its registry: {error}")
    page.driver.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.js("document.getElementById('site-section').open = true")
    page.find("[data-do=site]").click()
    assert not page.find("[data-do=site]").is_enabled()
    page.wait("document.getElementById('site-state').textContent === 'The page is saved.'")
    end = time.monotonic() + WAIT_SEC
    while not (found := list(tmp_path.glob("*.zip"))):
        assert time.monotonic() < end, "no page came"
        time.sleep(0.05)
    called = file_name_of(title_of(load_snapshot(network)))
    assert found[0].name == f"{called}.zip"
    with zipfile.ZipFile(found[0]) as archive:
        names = set(archive.namelist())
        assert archive.testzip() is None
    assert {f"{called}/{name}" for name in ("index.html", "model.bin", "LICENCES.txt")} < names
    assert f"{called}/runtime/ort-wasm-simd-threaded.wasm" in names


def test_a_film_of_two_views_is_rendered_and_offered(page):
    page.press("k")
    page.press("+")
    page.press("+")
    page.settle()
    page.press("k")
    for name, value in (("width", 64), ("height", 48), ("seconds", 0.5), ("fps", 10)):
        page.js("document.getElementById(arguments[0]).value = arguments[1]", f"film-{name}", value)
    page.find("#film-form .main").click()
    page.wait("!document.getElementById('film-link').hidden")
    address = page.find("#film-link").get_attribute("href")
    with urllib.request.urlopen(address) as stream:
        assert stream.read(12)[4:8] == b"ftyp"


def test_left_alone_an_exhibit_s_page_returns_to_its_first_view_but_not_from_a_film(page, server):
    page.open(server.address + "?home=120#w=3&z=2")
    page.js("const now = performance.now.bind(performance); window.later = 0; performance.now = () => now() + later")
    first = page.state
    page.press("c")
    page.press("k")
    page.press("+")
    page.settle()
    page.press("k")
    for name, value in (("width", 512), ("height", 512), ("seconds", 60)):
        page.js("document.getElementById(arguments[0]).value = arguments[1]", f"film-{name}", value)
    page.find("#film-form .main").click()
    page.wait("!document.getElementById('film-progress').hidden")
    page.js("later += 1e6")
    time.sleep(0.5)
    assert page.state["compare"]
    page.find("[data-do=film-cancel]").click()
    page.press("h")
    page.wait("document.getElementById('film-progress').hidden && document.getElementById('help').open")
    page.js("later += 60e3")
    time.sleep(0.5)
    assert page.state["compare"]
    page.js("later += 60e3")
    page.wait("!document.getElementById('help').open")
    page.settle()
    assert page.state == first
    opened = "return [...document.querySelectorAll('#side details[open]')].map((section) => section.id)"
    assert page.js(opened) == ["mix-section"]


def test_two_pages_at_once(page, server):
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("window")
    try:
        page.resize(WIDTH, HEIGHT)
        page.open(server.address + "#w=3")
        same = page.canvas()
        page.press("r")
        page.driver.switch_to.window(first)
        page.press("+")
        page.press("0")
        page.settle()
        assert page.state["world"] == "3"
        assert difference(page.canvas(), same) < 1
        second = next(handle for handle in page.driver.window_handles if handle != first)
        page.driver.switch_to.window(second)
        page.settle()
        assert page.state["world"] != "3"
        page.driver.close()
    finally:
        page.driver.switch_to.window(first)


def test_a_server_that_is_gone_is_said_to_be_and_found_again(page, server):
    frames, before = page.js("return explorer.frames()"), world_part(page)
    server.kill()
    page.wait("explorer.connection() === 'lost'")
    assert "does not answer" in page.find("#banner").text
    assert page.find("#s-state").text == "disconnected"
    page.press("+")
    page.wait("explorer.view().zoom > 1.4")
    assert world_part(page).std() > 10
    page.press("-")
    server.start()
    page.wait("explorer.connection() === 'open'")
    page.wait(f"explorer.frames() > {frames}")
    page.settle()
    assert not page.find("#banner").is_displayed()
    assert difference(world_part(page), before) < 1
    errors = [entry["message"] for entry in page.driver.get_log("browser")]
    assert all("ERR_CONNECTION_REFUSED" in error and "/ws" in error for error in errors)  # the browser's own words


def test_a_phone_shows_the_picture_and_opens_the_controls_as_a_sheet(page):
    page.resize(400, 800, touch=True)
    page.open(page.driver.current_url)
    assert page.js("return document.documentElement.scrollWidth") == 400
    assert not page.find("#side").is_displayed()
    view = page.view
    assert view["width"] == 400
    assert view["height"] > 700

    def touch(kind: str, *points: tuple[int, int]) -> None:
        places = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    page.trace(200, 400)
    touch("touchStart", (150, 400), (250, 400))
    for spread in range(60, 210, 10):
        touch("touchMove", (200 - spread, 400), (200 + spread, 400))
    touch("touchEnd")
    page.settle()
    assert page.view["zoom"] == pytest.approx(4, rel=0.02)
    assert page.js("return trace.at(-1)") < 1
    before = page.js("return explorer.worldAt(200, 400)")
    touch("touchStart", (200, 400))
    for step in range(1, 9):
        touch("touchMove", (200 + 5 * step, 400))
    time.sleep(0.2)
    touch("touchMove", (240, 400))
    touch("touchEnd")
    page.settle()
    after = page.js("return explorer.screenAt(arguments[0].x, arguments[0].y)", before)
    assert (after["px"], after["py"]) == pytest.approx((240, 400), abs=1)
    page.find("#tools [data-do=side]").click()
    sheet = page.find("#side")
    assert sheet.is_displayed()
    assert sheet.size["width"] == 400
    assert sheet.size["height"] < 520
    page.find("#side [data-do=random]").click()
    page.settle()
    assert page.state["world"] != "3"


def test_a_phone_held_sideways_has_the_controls_closed_and_beside_the_picture(page):
    page.resize(844, 390, touch=True)
    page.open(page.driver.current_url)
    assert not page.find("#side").is_displayed()
    assert page.view["width"] == 844
    page.find("#tools [data-do=side]").click()
    page.settle()
    assert page.view["width"] + page.find("#side").size["width"] == 844
    assert page.view["height"] > 340
    assert page.js("return document.documentElement.scrollWidth") == 844


def test_on_a_wall_all_but_the_picture_is_twice_as_large(page):
    boxes = """return ["#side", "#tools button", "#minimap"].map((name) => {
        const box = document.querySelector(name).getBoundingClientRect();
        return [box.width, box.right <= innerWidth && box.bottom <= innerHeight];
    })"""
    page.resize(1600, 900)
    usual = page.js(boxes)
    page.resize(3200, 1800)
    page.settle()
    assert page.js(boxes) == [[2 * width, True] for width, _ in usual]
    assert page.view["width"] == 3200 - 2 * usual[0][0]


# Proxies -------------------------------------------------------------------------------------------------------------


def test_behind_a_proxy_with_a_path_the_page_shows_saves_and_films(network, driver):
    port, token = free_port(), "correct-horse-battery"
    public = f"http://127.0.0.1:{port}/deep/worlds"
    inner = Server(network, "--public-url", public, "--token", token)
    inner.start(f"?token={token}")
    try:
        with proxying(inner.address, port, "/deep/worlds"):
            page = Page(driver)
            page.open(f"{public}/?token={token}#z=2&w=3")
            assert page.js("return location.href").startswith(f"{public}/#")
            assert page.view["zoom"] == pytest.approx(2)
            assert page.canvas().std() > 3
            image = "api/image.png?world=3&left=-0.5&top=-0.5&pitch=0.1&width=4&height=4"
            assert page.js(f"return fetch('{image}').then(a => a.status)") == 200
            film = (
                "return fetch('api/films', {method: 'POST', body: JSON.stringify({world: '3', width: 32, height: 32, fps: 5, "
                "seconds: 1, keyframes: [{zoom: 1, x: 0, y: 0}, {zoom: 2, x: 0, y: 0}]})}).then(a => a.status)"
            )
            assert page.js(film) == 202
    finally:
        inner.kill()
