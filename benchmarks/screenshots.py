"""Take the manual's screenshots of the explorer and of an exported page, with headless Chromium.

    python benchmarks/screenshots.py [--network earth] [--out docs/images]

It starts the explorer, exports and serves the page, and waits until each view is as sharp as it will be, for minutes on a busy
machine. Needs Chromium with chromedriver, selenium, and what ``zoom.py --export`` needs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout's code, whatever else is installed

from machine import served
from PIL import Image
from selenium import webdriver

from dnnlib.cli import reports_user_errors
from dnnlib.errors import UserError
from dnnlib.files import atomic_write

ZOOM = str(Path(__file__).resolve().parent.parent / "zoom.py")
EXPLORER_PX, PAGE_PX = (1280, 657), (1280, 800)
EXPLORER = {
    "explorer-view": "z=1&w=0",
    "explorer-compare": "z=1.4&x=0.02&y=0.02&w=4&w2=9",
    "explorer-deep": "z=4&x=0&y=0.11&w=0",
}
PAGE = {"exported-page": "z=1&w=3"}
"""Files, and the views that they show, as addresses hold them behind #."""
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars")
WAIT_SEC = 900
FADE_SEC = 3
"""For what fades in or out when a view has settled, and for the count of frames in the last second."""
QUALITY = 85


@contextlib.contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """A window of Chromium."""
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (chromium and driver):
        raise UserError("Chromium and chromedriver were not found on the PATH; install them.")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS:
        options.add_argument(flag)
    service = webdriver.ChromeService(driver)
    try:
        with webdriver.Chrome(options=options, service=service) as window:
            yield window
    finally:
        if hasattr(service, "process"):  # a signal may have come while Chromium was starting
            service.stop()


def take(window: webdriver.Chrome, address: str, handle: str, size: tuple[int, int], path: Path) -> None:
    """Open an address, wait until the page has settled, as its handle for tests says, and save a JPEG of ``size`` pixels."""
    screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    window.get("about:blank")
    window.get(address)
    end = time.monotonic() + WAIT_SEC
    while not window.execute_script(f"return window.{handle} && {handle}.idle()"):
        if time.monotonic() > end:
            raise UserError(f"{path.name}: the view was not sharp within {WAIT_SEC} seconds; is the machine too busy?")
        time.sleep(0.2)
    window.execute_script("document.getElementById('hint')?.classList.add('gone')")  # as after the first gesture
    time.sleep(FADE_SEC)
    picture = Image.open(io.BytesIO(window.get_screenshot_as_png())).convert("RGB")
    with atomic_write(path) as stream:
        picture.save(stream, "JPEG", quality=QUALITY, optimize=True)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB", flush=True)


@reports_user_errors
def main() -> None:
    """Take all four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="earth", help="run or snapshot (default: earth, the bundled model)")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder (default docs/images)")
    options = parser.parse_args()
    with browser() as window, tempfile.TemporaryDirectory() as folder:
        with served(ZOOM, "--no-browser", "--network", options.network) as (address, _):
            for name, view in EXPLORER.items():
                take(window, f"{address}/#{view}", "explorer", EXPLORER_PX, options.out / f"{name}.jpg")
        site = f"{folder}/site"
        if subprocess.run([sys.executable, ZOOM, "--network", options.network, "--export", site]).returncode:
            raise UserError("The page could not be exported.")
        with served("-m", "http.server", "0", "-b", "127.0.0.1", "-d", site, stderr=subprocess.DEVNULL) as (address, _):
            for name, view in PAGE.items():
                take(window, f"{address}/#{view}", "site", PAGE_PX, options.out / f"{name}.jpg")


if __name__ == "__main__":
    main()
