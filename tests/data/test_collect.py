"""Collections: extents from every place that has them, labels that are right, gaps that are said."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from PIL import Image

from dnnlib.errors import UserError
from multiscale.cli.dataset_tool import main
from multiscale.data.charts import covered, gaps, patch_gaps, scale_chart
from multiscale.data.cutting import cut_square
from multiscale.data.extents import read_extents
from multiscale.data.patches import PatchDataset
from multiscale.data.pictures import examine
from multiscale.data.procedural import render_batch
from multiscale.data.vips import Reading

N, SIDE, WORLD = 16, 160, 5000.0


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refusal(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    return line


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Twelve pictures of the procedural planet at random places and zooms, with the table of their extents."""
    folder = tmp_path_factory.mktemp("scene")
    rng = np.random.default_rng(3)
    zooms = 2.0 ** np.array([0, *rng.uniform(0, 2.2, 11)])
    centres = (rng.random((12, 2)) - 0.5) * (1 - 1 / zooms)[:, None]
    images = render_batch(centres, zooms, SIDE, 0)
    rows = ["file,extent"]
    for i, (image, zoom) in enumerate(zip(images, zooms, strict=True)):
        Image.fromarray(image).save(folder / f"{i:02d}.png")
        rows.append(f"{i:02d}.png,{WORLD / float(zoom)!r}")
    (folder / "table.csv").write_text("\n".join(rows))
    return folder, zooms, centres


def test_labels_are_those_of_the_scene(scene, tmp_path, monkeypatch):
    """What a patch shows is drawn anew by the scene at its label and place; a tenth of an octave beside it fits worse."""
    folder, zooms, centres = scene
    cuts = []

    def watched(source, side, across, down, resolution):
        cuts.append((int(Path(source.describe()).stem), side, across, down))
        return cut_square(source, side, across, down, resolution)

    options = ["--resolution", N, "--counts", "4,6,8,6,3", "--seed", 5, "--scales", folder / "table.csv"]
    made = []
    for workers in (2, 1):
        if workers == 1:
            monkeypatch.setattr("multiscale.data.cropping.cut_square", watched)
        dest = tmp_path / f"{workers}.zip"
        result = invoke("collect", "--source", folder, "--dest", dest, *options, "--workers", workers)
        assert result.exit_code == 0, result.output
        made.append(dest.read_bytes())
    assert made[0] == made[1]
    assert "from 12 pictures of extents" in result.output
    assert re.search(r"s = 0 \.\.\. 5\.00$", result.output, re.MULTILINE)
    assert f"{dest} will hold 27 patches, by octave 4, 6, 8, 6, 3: 5 octaves, up to" in result.output
    assert "reach, as --counts has 5 numbers." in result.output
    dataset = PatchDataset(dest)
    assert dataset.counts().tolist() == [4, 6, 8, 6, 3]
    spans = np.stack([np.log2(zooms), np.log2(zooms * SIDE / N)], axis=1)
    np.testing.assert_allclose(dataset.spans, spans, atol=1e-9)
    owners, sides, across, down = (np.array(column) for column in zip(*cuts, strict=True))
    np.testing.assert_allclose(dataset.labels, np.log2(zooms[owners] * SIDE / sides), atol=1e-6)
    offsets = (np.stack([across, down], axis=1) - 0.5) * (1 - sides / SIDE)[:, None] / zooms[owners][:, None]
    patches = np.stack([dataset[i][0].transpose(1, 2, 0) for i in range(27)]).astype(float)
    errors = []
    for beside in (0.0, 0.1):
        views = render_batch(centres[owners] + offsets, 2.0 ** (dataset.labels + beside), N, 0)
        errors.append(np.abs(views - patches).mean(axis=(1, 2, 3)))
    assert np.mean(errors[0]) < 5
    assert np.mean(errors[0] < errors[1]) > 0.8


def test_labels_are_exact_and_pictures_take_turns(tmp_path):
    """A patch's red says which picture it is of, and a ramp in its green how large its square is."""
    extents = [1000.0, 700.0, 400.0, 210.0, 90.0]
    for i, extent in enumerate(extents):
        x = np.arange(256) / 256 * extent
        ramp = np.stack(np.broadcast_arrays(np.full((256, 256), 40 * i), x * 0.2 % 256, 0), axis=2)
        Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / f"view_{extent}m.png")
    result = invoke(
        *("collect", "--source", tmp_path, "--dest", tmp_path / "s.zip", "--scales", r"_([\d.]+)m", "--resolution", 32),
        *("--counts", "50,50,50,50,50,50", "--workers", 1),
    )
    assert result.exit_code == 0, result.output
    dataset = PatchDataset(tmp_path / "s.zip")
    share = np.zeros((6, 5))
    for patch, label in (dataset[i] for i in range(len(dataset))):
        owner = round(float(patch[0].mean()) / 40)
        base = math.log2(1000 / extents[owner])
        assert base - 1e-6 <= label <= base + 3 + 1e-6
        share[min(int(label), 5), owner] += 1
        row = patch[1].astype(float).mean(axis=0)
        if row.max() - row.min() > 60 and (np.diff(row) >= 0).all():
            slope = (row[26] - row[6]) / 20  # of 0.2 grey values a unit
            assert slope / 0.2 * 32 == pytest.approx(1000 / 2**label, rel=0.05)
    assert (share[0] > 0).tolist() == [True, True, False, False, False]
    assert share[1].max() - share[1][share[1] > 0].min() <= 20


def test_a_collection_is_trained(scene, tmp_path):
    from multiscale.cli.train import main as train

    folder, _, _ = scene
    options = ["--resolution", N, "--counts", "8,8,8", "--scales", folder / "table.csv", "--workers", 1]
    assert invoke("collect", "--source", folder, "--dest", tmp_path / "s.zip", *options).exit_code == 0
    arguments = ["--data", tmp_path / "s.zip", "--config", "demo", "--outdir", tmp_path / "run", "--gpus", 0]
    arguments += [
        "--kimg",
        0.016,
        "--batch",
        4,
        "--set",
        "generator.channel_base=256",
        "--set",
        "generator.channel_max=16",
    ]
    arguments += ["--set", "discriminator.channel_base=256", "--set", "discriminator.channel_max=16"]
    result = CliRunner().invoke(train, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert list((tmp_path / "run").glob("generator-*.safetensors"))


def test_what_is_missing_is_named_before_anything_is_written(scene, tmp_path):
    folder, _, _ = scene
    base = [
        "collect",
        "--source",
        folder,
        "--dest",
        tmp_path / "s.zip",
        "--resolution",
        N,
        "--counts",
        "3,3",
        "--workers",
        1,
        "--scales",
    ]
    rows = (folder / "table.csv").read_text().splitlines()
    table = tmp_path / "t.csv"
    table.write_text("\n".join([rows[0], *rows[4:], "02.png,nan"]))
    sentence = refusal(*base, table)
    assert "3 of 12 pictures have no scale" in sentence
    assert "02.png has an extent of nan" in sentence
    assert "00.png is not in the table" in sentence
    assert "01.png is not in the table" in sentence
    for text, words in (
        ("a,b\n1,2", "no columns file and extent"),
        ("file,extent\n00.png,3\n00.png,4", "00.png twice"),
        ("", "no columns"),
        ("file,extent\nhttps://a/iiif/b/info.json,3", "names https://a/iiif/b/info.json, and collect reads files"),
    ):
        table.write_text(text)
        assert words in refusal(*base, table)
    remote = ["https://a/info.json", *base[3:]]
    assert "is a picture as tiles, and collect reads files" in refusal("collect", "--source", *remote, table)
    assert "Cannot read the table" in refusal(*base, tmp_path / "gone.csv")
    assert "no group in parentheses" in refusal(*base, "abc")
    assert "regular expression" in refusal(*base, "a(b")
    assert "35-mm focal length and no subject distance" in refusal(*base, "exif")
    assert "is not a GeoTIFF" in refusal(*base, "geotiff")
    whole = folder / "table.csv"
    assert "--world -3 is not allowed" in refusal(*base, whole, "--world", -3)
    assert "pictures reach s =" in refusal(*base[:-3], "--scales", whole, "--octaves", 9)
    sentence = refusal(*base, whole, "--world", 20 * WORLD)
    assert "No picture between s = 0.00 and 2.00: the first begins at 4.32; give a smaller --world" in sentence
    assert "all show more than it" in refusal(*base, whole, "--world", 0.001)
    assert "fewer than 256 pixels" in refusal(*base[:5], "--scales", whole)
    assert not (tmp_path / "s.zip").exists()


@pytest.mark.parametrize(
    "header, separator, decimal, encoding",
    [
        ("file;extent", ";", ",", "utf-8-sig"),  # a German or French Excel, "CSV UTF-8"
        ("file;extent", ";", ",", "cp1252"),  # the same, "CSV"
        ("extent;note;file", ";", ".", "utf-8"),
        ("file\textent", "\t", ",", "utf-16"),  # Excel's "Unicode text"
        ("file\textent", "\t", ".", "utf-16-be"),
        ("file,extent", ",", ".", "cp1252"),
        ('"file","extent"', ",", ".", "utf-8-sig"),
    ],
)
@pytest.mark.parametrize("ending", ["\r\n", "\n", "\r"])
def test_tables_are_read_as_spreadsheets_save_them(tmp_path, header, separator, decimal, encoding, ending):
    extents = {"Läufer.png": "300.5", "œuvre; à 5.png": "0.25"}
    for name in extents:
        Image.new("L", (20, 20)).save(tmp_path / name)
    rows = [header]
    for name, extent in extents.items():
        cells = {"file": f'"{name}"', "extent": extent.replace(".", decimal), "note": ""}
        rows.append(separator.join(cells[column.strip('"')] for column in header.split(separator)))
    data = ending.join([*rows, separator, ""]).encode(encoding)
    table = tmp_path / "table.csv"
    table.write_bytes(b"\xfe\xff" + data if encoding == "utf-16-be" else data)
    assert read_extents(str(table), [picture_of(tmp_path / name) for name in extents], tmp_path) == [300.5, 0.25]


def test_what_no_table_is_and_what_no_number_is_says_what_to_do(tmp_path):
    Image.new("L", (20, 20)).save(tmp_path / "a.png")
    picture, table = picture_of(tmp_path / "a.png"), tmp_path / "table.csv"
    for data, words in (
        (b"PK\x03\x04" + bytes(30), "it is a ZIP, not a table; save it as CSV from the spreadsheet"),
        (b"\xd0\xcf\x11\xe0" + bytes(30), "no text that is known here, not a table; save it"),
        ("file,extent\na.png,3".encode("utf-16-le"), "no text that is known here, not a table; save it"),
        (b"\xff\xfea", "no text that is known here, not a table; save it"),
        (b"file|extent\na.png|3", "separated by commas, semicolons or tabs; it has file|extent."),
        (b"file;extent\na.png;1.234,5", "'1.234,5', which is not a number; write all extents with a decimal point"),
        (b"file;extent\na.png;1,5\nb.png;2.5", "'1,5', which is not a number; write all extents with a decimal point"),
        (b'file,extent\na.png,"1,200"', "'1,200', which is not a number; write all extents with a decimal point"),
        (b"file;extent\na.png;wide", "'wide', which is not a number."),
        (b"file;extent\na.png", "'', which is not a number."),
        (b"file;extent\na.png;1\na.png;1,5", "gives a.png twice, with 1 and 1,5."),
    ):
        table.write_bytes(data)
        with pytest.raises(UserError) as raised:
            read_extents(str(table), [picture], tmp_path)
        assert words in str(raised.value)


def test_names_have_decimal_commas_too(tmp_path):
    Image.new("L", (20, 20)).save(tmp_path / "wall 2,5m.png")
    assert read_extents(r"([\d,.]+)m", [picture_of(tmp_path / "wall 2,5m.png")], tmp_path) == [2.5]


def test_gaps_are_printed_and_drawn(tmp_path):
    for name, extent in (("a", 100.0), ("b", 4.0)):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{name}{extent}.png")
    options = ["--scales", r"([\d.]+)\.png", "--resolution", 16, "--workers", 1]
    sentence = refusal("collect", "--source", tmp_path, "--dest", tmp_path / "s.zip", *options)
    assert "No picture between s = 2.00 and 4.64: add pictures of such scales" in sentence
    Image.new("RGB", (64, 64)).save(tmp_path / "c22.0.png")  # 2.18 ... 4.18
    result = invoke(
        "collect", "--source", tmp_path, "--dest", tmp_path / "s.zip", *options, "--counts", "9,9,9,9,9,9,9"
    )
    assert result.exit_code == 0, result.output
    for text in ("no picture between s = 2.00 and 2.18", "no picture between s = 4.18 and 4.64", "world 100"):
        assert text in result.output
    result = invoke("inspect", tmp_path / "s.zip", "--workers", 1)
    assert result.exit_code == 0
    assert "no picture between s = 4.18 and 4.64" in result.output
    assert "pictures" in result.output


def test_a_dry_run_writes_nothing_and_says_what_a_run_says(scene, tmp_path):
    folder, dest = scene[0], tmp_path / "s.zip"
    options = ["collect", "--source", folder, "--dest", dest, "--scales", folder / "table.csv", "--resolution", N]
    options += ["--counts", "4,5,6", "--workers", 1]
    dry = invoke(*options, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert f"{dest} would hold 15 patches, by octave 4, 5, 6: 3 octaves, up to 11.5 kB\n" in dry.output
    assert "empty areas" not in dry.output
    assert not dest.exists()
    done = f"{dest}: 15 patches, by octave 4, 5, 6\n"
    said = invoke(*options).stdout
    assert done in said
    assert said.replace(done, "").replace(" will hold ", " would hold ") == dry.stdout
    before = dest.read_bytes()
    assert invoke(*options, "--dry-run", "--seed", 1).exit_code == 0, "whatever stands there"
    assert dest.read_bytes() == before


def test_charts():
    assert covered([(0, 1), (0.5, 2), (3, 4), (5, 5)], 0, 6) == [(0, 2), (3, 4)]
    assert gaps([(0.5, 1), (1.01, 3)], 4) == [(0.0, 0.5), (3, 4.0)]
    assert gaps([], 2) == [(0.0, 2.0)]
    labels = np.concatenate([np.linspace(0, 1.4, 500), np.linspace(1.9, 3, 500)])
    assert [(round(a, 2), round(b, 2)) for a, b in patch_gaps(labels, 3)] == [(1.4, 1.9)]
    assert patch_gaps(np.random.default_rng(0).random(40) * 3, 3) == []
    chart = scale_chart(labels, 3, [])
    assert len(chart) == 1 + 12 + 1
    assert chart[-1] == "no patch between s = 1.40 and 1.90"
    assert all(line == line.rstrip() for line in chart)


def picture_of(path):
    return examine(path, Reading(), 1 << 30)


def test_extents_from_exif(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({0xA405: 50, 0x9206: 10.0})
    Image.new("RGB", (60, 40)).save(tmp_path / "near.jpg", exif=exif)
    high = Image.Exif()
    high.get_ifd(0x8769)[0xA405] = 24
    high.get_ifd(0x8825).update({5: b"\x00", 6: 120.5})
    Image.new("RGB", (40, 60)).save(tmp_path / "high.jpg", exif=high)
    near, above = read_extents("exif", [picture_of(tmp_path / f"{n}.jpg") for n in ("near", "high")], tmp_path)
    assert near == pytest.approx(10 * 24 / 50, rel=1e-6)  # 24 of the film's 36 x 24 mm
    assert above == pytest.approx(120.5 * 24 / 24, rel=1e-6)


def test_extents_from_pixel_sizes(tmp_path):
    pixels = np.zeros((40, 60), np.uint8)
    keys = (1, 1, 0, 2, 1024, 0, 1, 1, 3076, 0, 1, 9001)
    tags = [(33550, "d", 3, (2.5, 5.0, 0.0), True), (34735, "H", len(keys), keys, True)]
    tifffile.imwrite(tmp_path / "geo.tif", pixels, extratags=tags)
    degrees = (1, 1, 0, 1, 1024, 0, 1, 2)
    tifffile.imwrite(
        tmp_path / "deg.tif", pixels, extratags=[(33550, "d", 3, (0.1, 0.1, 0.0), True), (34735, "H", 8, degrees, True)]
    )
    matrix = (0.0, 2.0, 0, 0, -2.0, 0.0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)
    tifffile.imwrite(tmp_path / "turned.tif", pixels, extratags=[(34264, "d", 16, matrix, True)])
    tifffile.imwrite(
        tmp_path / "cells.ome.tif", pixels, metadata={"axes": "YX", "PhysicalSizeY": 250.0, "PhysicalSizeYUnit": "nm"}
    )
    tifffile.imwrite(tmp_path / "dpi.tif", pixels, resolution=(100, 100), resolutionunit="CENTIMETER")
    tifffile.imwrite(tmp_path / "slide.tif", pixels, description="Aperio Image Library |AppMag = 40|MPP = 0.2520|")

    def extents(how, *names):
        return read_extents(how, [picture_of(tmp_path / name) for name in names], tmp_path)

    assert extents("geotiff", "geo.tif", "turned.tif") == [200.0, 80.0]
    assert extents("geotiff", "deg.tif") == [4.0]
    with pytest.raises(UserError, match=r"not measured in one unit: deg\.tif is in degrees; geo\.tif is in the map"):
        extents("geotiff", "geo.tif", "deg.tif")
    assert extents("ome", "cells.ome.tif", "dpi.tif", "slide.tif") == pytest.approx([10.0, 4000.0, 0.252 * 40])
    with pytest.raises(UserError, match=r"dpi\.tif has no pixel size of a GeoTIFF"):
        extents("geotiff", "dpi.tif")
    bomb = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><OME>&b;</OME>'
    tifffile.imwrite(tmp_path / "bomb.ome.tif", pixels, description=bomb, metadata=None)
    with pytest.raises(UserError, match=r"bomb\.ome\.tif has"):
        extents("ome", "bomb.ome.tif")
