"""Containers are read lazily, written whole or not at all, and each kind of damage is one sentence."""

import contextlib
import json
import pickle
import sqlite3
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from dnnlib.errors import UserError
from multiscale.config import ScheduleConfig
from multiscale.data.container import READERS, PatchWriter, encode_png
from multiscale.data.patches import Mirrored, PatchDataset, check_patches, count_octaves, octave_of
from multiscale.data.sampling import ScaleSampler
from multiscale.data.source import Names, PatchSource


def patch(i, side=16, channels=3):
    rng = np.random.default_rng(i)
    return rng.integers(0, 256, size=(side, side, channels), dtype=np.uint8)


def write_set(path, labels=(0.0, 0.5, 1.25, 2.5, 3.0), *, force=False, **shape):
    with PatchWriter(path, force=force) as writer:
        for i, label in enumerate(labels):
            writer.add(encode_png(patch(i, **shape)), label)
    return path


def write_zip(path, files, labels):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        if labels is not None:
            archive.writestr("dataset.json", labels if isinstance(labels, str) else json.dumps({"labels": labels}))
    return path


@pytest.mark.parametrize("name", ["set.zip", "folder"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read_back(tmp_path, name, channels):
    dataset = PatchDataset(write_set(tmp_path / name, channels=channels))
    assert (len(dataset), dataset.resolution, dataset.num_channels, dataset.octaves) == (5, 16, channels, 3)
    assert dataset.labels.dtype == np.float64
    assert dataset.patch_octaves.tolist() == [0, 0, 1, 2, 2]
    assert dataset.counts().tolist() == [2, 1, 2]
    for i in (*range(5), -1):
        pixels, label = dataset[i]
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, patch(i % 5, channels=channels).transpose(2, 0, 1))
        assert label == dataset.labels[i]
    dataset.check_headers()
    assert check_patches(dataset, workers=1) == []
    with pytest.raises(IndexError):
        dataset[5]


class Database(PatchSource):
    """All that a store of another kind takes."""

    def listing(self):
        with sqlite3.connect(self.path) as database:
            names, labels = zip(*database.execute("SELECT name, label FROM patches ORDER BY rowid"), strict=True)
        return names, np.array(labels)

    def read(self, index):
        with sqlite3.connect(self.path) as database:
            return database.execute("SELECT png FROM patches WHERE rowid = ?", (index + 1,)).fetchone()[0]


def test_a_store_of_another_kind_is_one_class(tmp_path, monkeypatch):
    monkeypatch.setitem(READERS, ".sqlite", Database)
    zipped = PatchDataset(write_set(tmp_path / "set.zip"))

    def database(name, damage=(), **changed):
        with sqlite3.connect(tmp_path / name) as connection:
            connection.execute("CREATE TABLE patches (name, label, png)")
            for i, patch_name in enumerate(zipped.names):
                png = encode_png(patch(i))
                row = (patch_name, changed.get("label", zipped.labels[i]), png[: len(png) // 2] if i in damage else png)
                connection.execute("INSERT INTO patches VALUES (?, ?, ?)", row)
        return tmp_path / name

    dataset = pickle.loads(pickle.dumps(PatchDataset(database("a.sqlite"))))
    assert list(dataset.names) == list(zipped.names)
    np.testing.assert_array_equal(dataset.labels, zipped.labels)
    for (ours, _), (theirs, _) in zip(dataset, zipped, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    dataset.check_headers()
    assert check_patches(dataset, workers=2) == []
    assert len(PatchDataset(tmp_path / "[as]*.[sz][qi]*")) == 10  # a database and a ZIP are one set
    damaged = PatchDataset(database("b.sqlite", damage=[2]))
    with pytest.raises(UserError, match=r"1 patch of 5 .*img00000002\.png is truncated"):
        damaged.check_headers()
    with pytest.raises(UserError, match=r"img00000002\.png .* cannot be used"):
        damaged[2]
    with pytest.raises(UserError, match=r"5 labels in .*c\.sqlite outside 0"):
        PatchDataset(database("c.sqlite", label=-1.0))


def test_equal_patches_give_equal_bytes(tmp_path):
    first, second = (write_set(tmp_path / name).read_bytes() for name in ("a.zip", "b.zip"))
    assert first == second


def test_deflated_zips_of_other_tools_are_read(tmp_path):
    source = PatchDataset(write_set(tmp_path / "a.zip"))
    with (
        zipfile.ZipFile(tmp_path / "a.zip") as old,
        zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    dataset = PatchDataset(tmp_path / "b.zip")
    dataset.check_headers()
    assert all((dataset[i][0] == source[i][0]).all() for i in range(5))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_loader_workers_read_what_the_main_process_reads(tmp_path, context):
    dataset = PatchDataset(write_set(tmp_path / "a.zip"))
    expected = [dataset[i][0] for i in range(5)]  # the parent has the file open when it forks
    loader = torch.utils.data.DataLoader(dataset, batch_size=1, num_workers=2, multiprocessing_context=context)
    for (pixels, _), want in zip(loader, expected, strict=True):
        np.testing.assert_array_equal(pixels[0].numpy(), want)


def test_datasets_pickle_small_and_without_handles(tmp_path):
    dataset = PatchDataset(write_set(tmp_path / "a.zip"))
    dataset[0]
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 3000
    again = pickle.loads(pickled)
    assert (again[3][0] == dataset[3][0]).all()


def test_the_top_label_counts_into_the_octave_below():
    labels = np.array([0.0, 1.0, 5.999, 6.0])
    assert count_octaves(labels) == 6
    assert octave_of(labels, 6).tolist() == [0, 1, 5, 5]
    assert count_octaves(np.array([0.0])) == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_a_mirrored_set_has_each_patch_twice(tmp_path, channels):
    dataset = PatchDataset(write_set(tmp_path / "a.zip", channels=channels))
    mirrored = pickle.loads(pickle.dumps(Mirrored(dataset)))
    assert (len(mirrored), mirrored.octaves, mirrored.resolution, mirrored.num_channels) == (10, 3, 16, channels)
    assert mirrored.labels.tolist() == dataset.labels.tolist() * 2
    assert mirrored.patch_octaves.tolist() == dataset.patch_octaves.tolist() * 2
    for i in range(5):
        pixels, label = dataset[i]
        turned = pixels[:, :, ::-1]
        for index, expected in ((i, pixels), (i - 10, pixels), (5 + i, turned), (i - 5, turned)):
            np.testing.assert_array_equal(mirrored[index][0], expected)
            assert mirrored[index][0].flags["C_CONTIGUOUS"]
            assert mirrored[index][1] == label
    with pytest.raises(IndexError):
        mirrored[10]


def test_a_sampler_of_a_mirrored_set_draws_each_patch_and_its_mirror_image_once_in_a_turn(tmp_path):
    mirrored = Mirrored(PatchDataset(write_set(tmp_path / "a.zip", labels=(0.0, 0.1, 0.2, 0.3))))
    sampler = ScaleSampler(mirrored.patch_octaves, octaves=1, batch=4, schedule=ScheduleConfig(), seed=0)
    loader = iter(torch.utils.data.DataLoader(mirrored, batch_sampler=sampler, num_workers=1))
    pixels = torch.cat([next(loader)[0] for _ in range(2)])
    assert sorted(p.numpy().tobytes() for p in pixels) == sorted(mirrored[i][0].tobytes() for i in range(8))


def write_shards(folder, count=3):
    """Shards of 2 patches each; the whole set's labels are 0.0, 0.5, 1.0 ..."""
    for i in range(count):
        with PatchWriter(folder / f"patches-{i}.zip") as writer:
            for j in (2 * i, 2 * i + 1):
                writer.add(encode_png(patch(j)), j / 2)
    return str(folder / "patches-*.zip")


def test_shards_are_one_set_in_the_order_of_their_names(tmp_path):
    pattern = write_shards(tmp_path)
    (tmp_path / "other.zip").write_bytes(b"not matched")
    dataset = PatchDataset(pattern)
    assert (len(dataset), dataset.resolution, dataset.num_channels, dataset.octaves) == (6, 16, 3, 3)
    assert dataset.labels.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert dataset.patch_octaves.tolist() == [0, 0, 1, 1, 2, 2]
    assert dataset.names[2:4] == ["patches-1.zip/00000/img00000000.png", "patches-1.zip/00000/img00000001.png"]
    assert len(set(dataset.names)) == 6
    for i in (*range(6), -1, -6):
        pixels, label = dataset[i]
        np.testing.assert_array_equal(pixels, patch(i % 6).transpose(2, 0, 1))
        assert label == i % 6 / 2
    dataset.check_headers()
    assert check_patches(dataset, workers=1) == []
    assert (pickle.loads(pickle.dumps(dataset))[5][0] == dataset[5][0]).all()


def test_loader_workers_read_shards(tmp_path):
    dataset = PatchDataset(write_shards(tmp_path))
    expected = [dataset[i][0] for i in range(6)]
    loader = torch.utils.data.DataLoader(dataset, batch_size=1, num_workers=2, multiprocessing_context="fork")
    for (pixels, _), want in zip(loader, expected, strict=True):
        np.testing.assert_array_equal(pixels[0].numpy(), want)


def test_a_file_whose_name_looks_like_a_pattern_is_taken_as_it_stands(tmp_path):
    write_set(tmp_path / "set[1].zip")
    write_set(tmp_path / "set1.zip", labels=(0.0,))
    assert len(PatchDataset(tmp_path / "set[1].zip")) == 5
    assert len(PatchDataset(tmp_path / "set?.zip")) == 1


def test_shards_of_the_same_name_are_told_apart_by_their_folders(tmp_path):
    for name in ("a", "b"):
        write_set(tmp_path / name / "set.zip")
    dataset = PatchDataset(tmp_path / "?" / "set.zip")
    assert len(set(dataset.names)) == len(dataset) == 10


def test_shards_that_do_not_fit_are_refused(tmp_path):
    pattern = write_shards(tmp_path)
    with pytest.raises(UserError, match=r"Nothing matches .*none-\*\.zip"):
        PatchDataset(tmp_path / "none-*.zip")
    write_set(tmp_path / "patches-3.zip", side=32)
    with pytest.raises(
        UserError, match=r"patches-3\.zip holds patches of 32 x 32 8-bit RGB, but .*patches-0\.zip of 16 x 16"
    ):
        PatchDataset(pattern)
    write_set(tmp_path / "patches-4.zip", channels=1)
    (tmp_path / "patches-3.zip").unlink()
    with pytest.raises(UserError, match=r"patches-4\.zip holds patches of 16 x 16 8-bit grey"):
        PatchDataset(pattern)
    (tmp_path / "patches-4.zip").write_bytes((tmp_path / "patches-0.zip").read_bytes()[:-30])
    with pytest.raises(UserError, match=r"patches-4\.zip cannot be read as a ZIP") as caught:
        PatchDataset(pattern)
    assert "\n" not in str(caught.value)
    write_zip(tmp_path / "patches-4.zip", {"a.png": PNG}, None)
    with pytest.raises(UserError, match=r"patches-4\.zip holds no dataset\.json"):
        PatchDataset(pattern)


def test_damage_is_named_with_its_shard(tmp_path):
    pattern = write_shards(tmp_path)
    damaged = tmp_path / "patches-1.zip"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole.replace(whole[200:210], bytes(10), 1))
    dataset = PatchDataset(pattern)
    dataset.check_headers()
    name = "patches-1.zip/00000/img00000000.png"
    with pytest.raises(UserError, match=f"{name} .* is damaged inside the ZIP .*checksum"):
        dataset[2]
    assert [found for found, _ in check_patches(dataset)] == [name]


def test_labels_follow_their_names_whatever_their_order(tmp_path):
    files = {f"{i}.png": encode_png(patch(i)) for i in (3, 0, 2, 1)}
    dataset = PatchDataset(write_zip(tmp_path / "a.zip", files, [[f"{i}.png", i] for i in (2, 3, 1, 0)]))
    assert list(dataset.names) == ["0.png", "1.png", "2.png", "3.png"]
    assert dataset.labels.tolist() == [0, 1, 2, 3]
    for i in range(4):
        np.testing.assert_array_equal(dataset[i][0], patch(i).transpose(2, 0, 1))


def test_names_are_kept_as_they_were(tmp_path):
    names = ["a", "", "größe/ü.png", "\udcff.png"]
    kept = pickle.loads(pickle.dumps(Names(names)))
    assert list(kept) == names
    assert (len(kept), kept[-1], kept[1:3]) == (4, names[-1], names[1:3])
    assert list(Names()) == []
    with pytest.raises(IndexError):
        kept[4]


PNG = encode_png(patch(0))
BAD_SETS = {
    "no dataset.json": ({"a.png": PNG}, None, "holds no dataset.json"),
    "dataset.json further down": ({"x/dataset.json": b"{}", "a.png": PNG}, None, "x/dataset.json"),
    "empty zip": ({}, None, "is empty"),
    "no patches": ({}, [], "holds no patches"),
    "broken json": ({"a.png": PNG}, '{"labels": [', "is not of the form"),
    "null labels": ({"a.png": PNG}, '{"labels": null}', "is not of the form"),
    "text label": ({"a.png": PNG}, [["a.png", "3"]], "not a number"),
    "label missing": ({"a.png": PNG, "b.png": PNG, "c.png": PNG}, [["a.png", 1]], "2 patches .* b.png, c.png"),
    "label of a missing file": ({"a.png": PNG}, [["a.png", 1], ["gone.png", 1]], "gone.png"),
    "named twice": ({"a.png": PNG}, [["a.png", 1], ["a.png", 2]], "twice"),
    "NaN": ({"a.png": PNG}, '{"labels": [["a.png", NaN]]}', "a.png = nan"),
    "negative": ({"a.png": PNG}, [["a.png", -0.5]], "a.png = -0.5"),
    "a zoom factor": ({"a.png": PNG}, [["a.png", 64]], "log2 of the zoom"),
    "not square": ({"a.png": encode_png(np.zeros((16, 32, 3), np.uint8))}, [["a.png", 1]], "must be square"),
    "not a power of two": ({"a.png": encode_png(patch(0, side=24))}, [["a.png", 1]], "power of two"),
    "RGBA": ({"a.png": encode_png(patch(0, channels=4))}, [["a.png", 1]], "8-bit RGBA"),
    "not PNG": ({"a.png": b"JFIF" * 20}, [["a.png", 1]], "not a PNG"),
}


@pytest.mark.parametrize("case", BAD_SETS)
def test_a_bad_set_is_refused_with_a_sentence(tmp_path, case):
    files, labels, message = BAD_SETS[case]
    with pytest.raises(UserError, match=message) as caught:
        PatchDataset(write_zip(tmp_path / "bad.zip", files, labels))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_zip_are_refused(tmp_path):
    whole = write_set(tmp_path / "whole.zip").read_bytes()
    for name, data in {"none.zip": b"", "text.zip": b"hello" * 99, "cut.zip": whole[:-200]}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            PatchDataset(tmp_path / name)
    with pytest.raises(UserError, match=r"There is no .*absent\.zip"):
        PatchDataset(tmp_path / "absent.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is empty"):
        PatchDataset(tmp_path / "empty")


def mixed_set(path):
    files = {f"{i}.png": encode_png(patch(i)) for i in range(6)}
    files["1.png"] = encode_png(patch(1, side=32))
    files["2.png"] = encode_png(patch(2, channels=1))
    files["3.png"] = files["3.png"][:-30]
    files["4.png"] = files["4.png"][:100] + bytes(50) + files["4.png"][150:]
    return write_zip(path, files, [[name, 1.0] for name in files])


def test_headers_name_every_patch_of_another_size_or_mode_or_cut_short(tmp_path):
    dataset = PatchDataset(mixed_set(tmp_path / "mixed.zip"))
    with pytest.raises(UserError) as caught:
        dataset.check_headers()
    text = str(caught.value)
    for expected in ("3 patches of 6", "1.png is 32 x 32", "2.png is 16 x 16 8-bit grey", "3.png is truncated"):
        assert expected in text
    for index in (1, 2, 3, 4):
        with pytest.raises(UserError, match=f"{index}.png"):
            dataset[index]


def test_full_check_finds_damaged_pixels_too(tmp_path):
    dataset = PatchDataset(mixed_set(tmp_path / "mixed.zip"))
    assert [name for name, _ in check_patches(dataset)] == ["1.png", "2.png", "3.png", "4.png"]


@pytest.mark.parametrize("name", ["set.zip", "folder"])
def test_a_failed_write_leaves_nothing_and_keeps_what_stood_there(tmp_path, name):
    write_set(tmp_path / name)
    before = PatchDataset(tmp_path / name)[0][0]
    with pytest.raises(KeyboardInterrupt), PatchWriter(tmp_path / name, force=True) as writer:
        writer.add(encode_png(patch(9)), 0.0)
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (PatchDataset(tmp_path / name)[0][0] == before).all()


@pytest.mark.parametrize("name", ["set.zip", "folder"])
def test_of_two_that_make_a_set_at_once_the_second_replaces_nothing_without_force(tmp_path, name):
    for force in (False, True):
        refused = contextlib.nullcontext() if force else pytest.raises(UserError, match="come into being meanwhile")
        with refused, PatchWriter(tmp_path / name, force=force) as second:
            second.add(PNG, 0.0)
            write_set(tmp_path / name, force=force)
            first = len(PatchDataset(tmp_path / name))
        assert first > 1
        assert len(PatchDataset(tmp_path / name)) == (1 if force else first)
        assert [path.name for path in tmp_path.iterdir()] == [name]
    refused = pytest.raises(UserError, match="not empty and holds no patch set")
    with refused, PatchWriter(tmp_path / "home", force=True) as writer:
        writer.add(PNG, 0.0)
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "photo.png").touch()
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["photo.png"]


def test_existing_sets_are_replaced_only_by_force_and_other_folders_never(tmp_path):
    for name in ("set.zip", "folder"):
        write_set(tmp_path / name)
        with pytest.raises(UserError, match="--force"):
            PatchWriter(tmp_path / name)
        with PatchWriter(tmp_path / name, force=True) as writer:
            writer.add(PNG, 0.0)
        assert len(PatchDataset(tmp_path / name)) == 1
    (tmp_path / "home").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "home" / "photo.png")
    with pytest.raises(UserError, match="no patch set"):
        PatchWriter(tmp_path / "home", force=True)
