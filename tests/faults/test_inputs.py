"""What is typed and what is packed: empty and repeated options, names in every form, many small images."""

import struct
import unicodedata
import zipfile
from importlib import import_module

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import small_patches
from PIL import Image

from dnnlib.errors import UserError
from multiscale.data.patches import PatchDataset


def refusal(name, *words):
    result = CliRunner().invoke(import_module(f"multiscale.cli.{name}").main, words)
    assert result.exit_code == 2, result.output
    return result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "words, option",
    [
        (("dataset_tool", "make", "--source", "", "--dest", "d.zip"), "--source"),
        (("dataset_tool", "make", "--source", ".", "--dest", " "), "--dest"),
        (("dataset_tool", "inspect", ""), "ZIP|FOLDER"),
        (("train", "--data", ""), "--data"),
        (("train", "--data", "p.zip", "--outdir", ""), "--outdir"),
        (("train", "--data", "p.zip", "--outdir="), "--outdir"),
        (("train", "--status", ""), "--status"),
        (("train", "--data", "p.zip", "--set", ""), "--set"),
        (("train", "--data", "p.zip", "--set", "training.batch=4", "--set", ""), "--set"),
        (("generate", "--network", ""), "--network"),
        (("generate", "--out", ""), "--out"),
        (("calc_metrics", "--data", "p.zip", "--network", ""), "--network"),
        (("zoom", "--network", ""), "--network"),
        (("zoom", "--token", ""), "--token"),
        (("pack", ""), "RUN"),
    ],
)
def test_empty_words_are_refused(tmp_path, monkeypatch, words, option):
    monkeypatch.chdir(tmp_path)
    assert refusal(*words) == f"Error: {option} is empty; give a value, or leave it out."
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words, option",
    [
        (("train", "--data", "a", "--data", "b"), "--data"),
        (("train", "--data", "a", "--outdir", "b", "--outdir", "b"), "--outdir"),
        (("dataset_tool", "make", "--source", "a", "--source", "b", "--dest", "c.zip"), "--source"),
        (("dataset_tool", "demo", "--dest", "a.zip", "--seed", "1", "--seed", "2"), "--seed"),
        (("generate", "--out", "a", "--out", "b"), "--out"),
        (("calc_metrics", "--data", "a", "--data", "b"), "--data"),
        (("zoom", "--port", "8000", "--port", "8001"), "--port"),
    ],
)
def test_options_given_twice_are_refused(tmp_path, monkeypatch, words, option):
    monkeypatch.chdir(tmp_path)
    assert refusal(*words) == f"Error: {option} was given 2 times; give it once."
    assert not list(tmp_path.iterdir())


def test_options_that_may_be_repeated_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_patches(tmp_path / "p.zip")
    words = [
        "--data",
        "p.zip",
        "--set",
        "training.batch=4",
        "--set",
        "training.kimg=1",
        "--dry-run",
        "--dry-run",
        "--gpus",
        "0",
    ]
    assert CliRunner().invoke(import_module("multiscale.cli.train").main, words).exit_code == 0


# Names in archives ---------------------------------------------------------------------------------------------------

NAME = "bäume/stück é.png"


def renamed(path, dest, stored, *, flag=True):
    """The set with its first patch under another name in the archive than in the labels, which are ``NAME``."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(dest, "w") as archive:
        first = sorted(source.namelist())[0]
        for name in source.namelist():
            data = source.read(name)
            if name == "dataset.json":
                data = data.replace(first.encode(), NAME.encode())
            archive.writestr(zipfile.ZipInfo(stored) if name == first else name, data)
    if not flag:  # UTF-8 all the same, in both headers
        data = bytearray(dest.read_bytes())
        for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            place = -1
            while (place := data.find(signature, place + 1)) >= 0:
                flags = struct.unpack_from("<H", data, place + at)[0]
                struct.pack_into("<H", data, place + at, flags & ~(1 << 11))
        dest.write_bytes(data)
    return dest


@pytest.mark.parametrize(
    "stored, flag",
    [
        (NAME, True),
        (NAME, False),
        (unicodedata.normalize("NFD", NAME), True),
        (unicodedata.normalize("NFD", NAME), False),
        (f"./{NAME}", True),
    ],
)
def test_names_that_tools_write_in_several_ways_are_matched(tmp_path, stored, flag):
    plain = PatchDataset(small_patches(tmp_path / "p.zip"))
    dataset = PatchDataset(renamed(tmp_path / "p.zip", tmp_path / "q.zip", stored, flag=flag))
    assert len(dataset) == len(plain)
    wanted, label = plain[0]
    assert any(np.array_equal(dataset[i][0], wanted) and dataset.labels[i] == label for i in range(len(dataset)))


def test_back_slashes_between_folders_are_matched(tmp_path):
    path = small_patches(tmp_path / "p.zip")
    data = path.read_bytes()
    names = data.replace(b"00000/img", b"00000\\img")
    labels = data.index(b'{"labels"')
    end = data.index(b"PK", labels)
    (tmp_path / "q.zip").write_bytes(names[:labels] + data[labels:end] + names[end:])  # labels as they were
    dataset = PatchDataset(tmp_path / "q.zip")
    for i, (pixels, label) in enumerate(PatchDataset(path)[i] for i in range(len(dataset))):
        assert np.array_equal(dataset[i][0], pixels)
        assert dataset.labels[i] == label


def test_a_name_that_could_be_two_files_and_a_near_miss_are_named(tmp_path):
    path = renamed(small_patches(tmp_path / "p.zip"), tmp_path / "q.zip", unicodedata.normalize("NFD", NAME))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"./{NAME}", b"another")
    with pytest.raises(UserError, match="without a label"):
        PatchDataset(path)
    path = renamed(tmp_path / "p.zip", tmp_path / "r.zip", NAME.upper().replace(".PNG", ".png"))
    with pytest.raises(UserError, match=f"without a label: .*; dataset.json names {NAME}, which is not there"):
        PatchDataset(path)


# Small images --------------------------------------------------------------------------------------------------------


def test_small_images_are_named_up_to_ten_and_counted(tmp_path):
    (tmp_path / "photographs").mkdir()
    for i in range(14):
        Image.new("L", (40, 40)).save(tmp_path / "photographs" / f"{i:02d}.png")
    said = refusal(
        *("dataset_tool", "make", "--source", str(tmp_path / "photographs"), "--dest", str(tmp_path / "d.zip")),
        *("--resolution", "16", "--octaves", "3", "--workers", "1"),
    )
    assert "14 of 14 images have fewer than 3 octaves" in said
    assert said.count("(40 x 40) has 1") == 10
    assert "09.png" in said
    assert "and 4 more" in said
