"""Identity is content: what data, snapshots and weights are known by is computed from the bytes that are used."""

import hashlib
import io
import json
import os
import shutil
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import calibrated_generator, small_config, small_patches
from PIL import Image
from test_beginning import choose

from dnnlib.errors import UserError
from multiscale.data.patches import PatchDataset
from multiscale.metrics.reals import content_digest
from multiscale.runs.folder import write_beside
from multiscale.runs.snapshots import load_snapshot, save_snapshot
from multiscale.runs.states import identity_of, is_same_data, save_state
from torch_utils.weights import WeightFile


def photographs(path: Path, shift: int = 0) -> Path:
    """A set whose first patch is shifted; whatever the shift, the file is as long, and as old."""
    with zipfile.ZipFile(small_patches(path.with_suffix(".made"))) as source, zipfile.ZipFile(path, "w") as archive:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("00.png"):
                stream = io.BytesIO()
                pixels = np.roll(np.asarray(Image.open(io.BytesIO(data))), shift, axis=1)
                Image.fromarray(pixels).save(stream, "png", compress_level=0)
                data = stream.getvalue()
            archive.writestr(name, data)
    os.utime(path, (1e9, 1e9))
    return path


def test_a_set_is_known_by_its_pixels_wherever_and_however_it_lies(tmp_path):
    path = photographs(tmp_path / "p.zip")
    dataset = PatchDataset(path)
    with zipfile.ZipFile(path) as source:
        source.extractall(tmp_path / "folder")
        with zipfile.ZipFile(tmp_path / "packed.zip", "w", zipfile.ZIP_DEFLATED) as packed:
            for name in reversed(source.namelist()):
                packed.writestr(name, source.read(name))
    for same in ("folder", "packed.zip"):
        assert is_same_data(identity_of(dataset), PatchDataset(tmp_path / same))
    others = PatchDataset(photographs(tmp_path / "q.zip", 1))
    assert (others.labels == dataset.labels).all()
    assert not is_same_data(identity_of(dataset), others)
    earlier = {name: value for name, value in identity_of(dataset).items() if name != "content_crc32"}
    assert is_same_data(earlier, others)  # all that versions before this one have written


def test_other_photographs_under_the_same_name_are_not_taken_for_the_run_s_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = photographs(tmp_path / "p.zip")
    first = choose(path)
    first.folder.mkdir(parents=True)
    write_beside(first.folder, first.config, first.dataset, preset="demo", devices=[torch.device("cpu")])
    save_state(first.folder, 4, {"config": {}, "data": identity_of(first.dataset), "step": 1})
    assert choose(path).goes_on
    photographs(path, 1)
    again = choose(path)
    assert not again.goes_on
    assert again.folder != first.folder
    assert f"The run in {first.folder} was trained on other patches" in capsys.readouterr().out
    with pytest.raises(UserError, match="was trained on other data"):
        choose(path, outdir=str(first.folder))


def test_a_run_goes_on_with_its_patches_wherever_they_lie_now(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = photographs(tmp_path / "p.zip")
    first = choose(Path("p.zip"))
    first.folder.mkdir(parents=True)
    write_beside(first.folder, first.config, first.dataset, preset="demo", devices=[torch.device("cpu")])
    save_state(first.folder, 4, {"config": {}, "data": identity_of(first.dataset), "step": 1})
    moved = tmp_path / "elsewhere" / "p.zip"
    moved.parent.mkdir()
    shutil.copyfile(path, moved)
    for same in (path, moved):
        assert choose(same).goes_on
        assert choose(same).folder == first.folder
    photographs(moved, 1)
    assert choose(moved).folder != first.folder
    # An earlier version knew its patches by their labels only: there they must lie where they did.
    environment = json.loads((first.folder / "environment.json").read_text())
    del environment["content_crc32"]
    (first.folder / "environment.json").write_text(json.dumps(environment))
    assert choose(Path("p.zip")).goes_on
    assert choose(moved).folder != first.folder


def test_features_are_not_remembered_for_other_pixels_of_the_same_size_and_time(tmp_path, monkeypatch):
    monkeypatch.setenv("MULTISCALE_CACHE", str(tmp_path / "cache"))
    path = photographs(tmp_path / "p.zip")
    digest = content_digest(path)
    assert content_digest(path) == digest
    [memory] = (tmp_path / "cache" / "metrics" / "digests").iterdir()
    assert json.loads(memory.read_text())["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    facts = path.stat()
    photographs(path, 1)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (facts.st_size, facts.st_mtime_ns)
    assert content_digest(path) != digest


def test_the_digest_of_a_snapshot_is_of_the_weights_that_were_read(tmp_path):
    one, two = (tmp_path / name / "g.safetensors" for name in "ab")
    for seed, path in enumerate((one, two)):
        torch.manual_seed(seed)
        save_snapshot(path, calibrated_generator(small_config(channel_max=16, channel_base=16, num_layers=8)), {})
    whole = {
        hashlib.sha256(path.read_bytes()).hexdigest(): load_snapshot(path).generator.state_dict() for path in (one, two)
    }
    path, done = tmp_path / "g.safetensors", threading.Event()
    shutil.copyfile(one, path)

    def exchange():
        while not done.is_set():
            for other in (one, two):
                shutil.copyfile(other, tmp_path / "next")
                (tmp_path / "next").replace(path)

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        seen = [load_snapshot(path) for _ in range(20)]
    finally:
        done.set()
        thread.join()
    for snapshot in seen:
        wanted = whole[snapshot.digest]
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in snapshot.generator.state_dict().items())


def test_weights_are_the_bytes_that_were_checked(tmp_path, monkeypatch):
    path, other = tmp_path / "w.pth", tmp_path / "other.pth"
    torch.save({"x": torch.zeros(3)}, path)
    torch.save({"x": torch.ones(3)}, other)
    file = WeightFile(name="w.pth", url="", sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    load = torch.load

    def exchanged(stream, **options):
        other.replace(path)
        return load(stream, **options)

    monkeypatch.setattr(torch, "load", exchanged)
    assert file.read(path, "some")["x"].sum() == 0
