"""Two thousand damaged files of each format, always the same: read, or refused in one sentence, soon."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
INPUTS = 2000
NAMES = (
    *("config", "setting", "facts", "stats", "metrics", "state", "snapshot", "patches", "labels", "features"),
    *("message", "world", "png", "jpeg", "tiff", "webp", "gif"),
)


@pytest.fixture(scope="module")
def fuzz():
    sys.path.insert(0, str(BENCHMARKS))
    import fuzz

    yield fuzz
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def place(fuzz, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    cache = os.environ.get("MULTISCALE_CACHE")
    yield folder, fuzz.formats(folder)
    os.environ.pop("MULTISCALE_CACHE", None)
    if cache is not None:
        os.environ["MULTISCALE_CACHE"] = cache


def test_all_formats_are_here(place):
    assert set(place[1]) == set(NAMES)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged pictures
@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_read_or_refused(fuzz, place, name):
    folder, formats = place
    kind = formats[name]
    kind.read(folder / kind.name)
    found = {number: what for number in range(INPUTS) if (what := fuzz.failure(kind, folder, number)) is not None}
    (folder / kind.name).write_bytes(kind.sample)
    assert not found


@pytest.mark.parametrize("error", [KeyError("x"), MemoryError(), AssertionError()])
def test_what_escapes_is_noticed(fuzz, place, error):
    folder, formats = place

    def fail(_):
        raise error

    kind = fuzz.Format(formats["config"].sample, "config.yaml", fail)
    assert type(error).__name__ in fuzz.failure(kind, folder, 0)


def test_what_hangs_is_noticed(fuzz, place, monkeypatch):
    folder, formats = place
    monkeypatch.setattr(fuzz, "SECONDS", 0.1)

    def wait(_):
        while True:
            pass

    assert fuzz.failure(fuzz.Format(formats["config"].sample, "config.yaml", wait), folder, 0).startswith("takes more")
