"""Every format of docs/data.md: patches are those of the pixels that were written, or one sentence says what is missing."""

import io

import numpy as np
import pytest
import skimage.data
import tifffile
from PIL import Image

from dnnlib.errors import UserError
from multiscale.data.cutting import Box, cut_patch
from multiscale.data.finding import find_pictures
from multiscale.data.pictures import HeldPicture, StoredPicture, examine, forget_sources
from multiscale.data.vips import Reading, Unreadable, library

ASTRONAUT = np.ascontiguousarray(skimage.data.astronaut()[100:400, :401])
DEEP = np.arange(300 * 401).reshape(300, 401).astype(np.float64) * (65535 / (300 * 401))
VIEWS = [(0.0, 0.5, 0.5), (0.7, 0.2, 0.9), (1.9, 1.0, 0.0), (3.1, 0.4, 0.6)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MULTISCALE_CACHE", str(tmp_path / "cache"))
    forget_sources()


def opened(path, **options):
    reading = Reading(**options)
    return examine(path, reading, 1 << 30).open(reading)


def patches_of(source):
    return np.stack([cut_patch(source, *view, 32).astype(float) for view in VIEWS])


def has(loader):
    return bool(library().type_find("VipsForeignLoad", loader))


def by_vips(**options):
    return lambda path, pixels: library().Image.new_from_array(pixels).write_to_file(str(path), **options)


def by_pillow(**options):
    return lambda path, pixels: Image.fromarray(pixels).save(path, **options)


def by_tifffile(**options):
    return lambda path, pixels: tifffile.imwrite(path, pixels, photometric="rgb", **options)


def planar(path, pixels):
    tifffile.imwrite(path, pixels.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")


def plain_ppm(path, pixels):
    """The variant in text, with a comment."""
    numbers = " ".join(map(str, pixels.ravel()))
    path.write_text(f"P3\n# hello\n{pixels.shape[1]} {pixels.shape[0]}\n255\n{numbers}\n")


def tile_bytes(pixels, encode):
    """Tiles of 256 pixels, each a file of another format."""
    for y in range(0, pixels.shape[0], 256):
        for x in range(0, pixels.shape[1], 256):
            tile = np.zeros((256, 256, 3), np.uint8)
            part = pixels[y : y + 256, x : x + 256]
            tile[: part.shape[0], : part.shape[1]] = part
            stream = io.BytesIO()
            Image.fromarray(tile).save(stream, **encode)
            yield stream.getvalue()


def write_tiles(path, levels, encode, compression):
    """TIFF pages of tiles that Pillow encodes: tifffile writes them as if deflated, and the tag is put right afterwards.

    Args:
        levels: Pixels and a description of each page; with None for a description it is stored in strips.
    """
    with tifffile.TiffWriter(path) as writer:
        for pixels, description in levels:
            if description is None:
                writer.write(pixels, photometric="rgb", compression="zlib", metadata=None)
            else:
                tiles = {"tile": (256, 256), "shape": pixels.shape, "dtype": "uint8"}
                options = {"photometric": "rgb", "compression": "zlib", "metadata": None, "description": description}
                writer.write(tile_bytes(pixels, encode), **tiles, **options)
    with tifffile.TiffFile(path, mode="r+b") as file:
        for page, (_, description) in zip(file.pages, levels, strict=True):
            if description is not None:
                page.tags[259].overwrite(compression)


JPEG_TILES = {"format": "JPEG", "quality": 95, "subsampling": 0, "keep_rgb": True}

COLOUR = {
    "a.jpg": (by_vips(Q=98), 1.5),
    "progressive.jpg": (by_vips(Q=98, interlace=True), 1.5),
    "a.png": (by_vips(), 0),
    "a.webp": (by_vips(lossless=True), 0),
    "lossy.webp": (by_vips(Q=95), 3),
    "a.avif": (by_pillow(quality=100, subsampling="4:4:4"), 2),
    "a.jp2": (by_pillow(irreversible=False), 0),
    "lossy.jp2": (by_pillow(irreversible=True, quality_mode="rates", quality_layers=[10]), 3),
    "stream.j2k": (by_pillow(irreversible=False), 0),
    "a.ppm": (by_pillow(), 0),
    "plain.ppm": (plain_ppm, 0),
    "a.bmp": (by_pillow(), 0),
    "a.tga": (by_pillow(), 0),
    "strips.tif": (by_vips(), 0),
    "lzw.tif": (by_vips(compression="lzw", predictor="horizontal"), 0),
    "deflate.tif": (by_vips(compression="deflate", tile=True, tile_width=64, tile_height=64), 0),
    "packbits.tif": (by_vips(compression="packbits"), 0),
    "webp.tif": (by_vips(compression="webp", lossless=True, tile=True), 0),
    "jpeg.tif": (by_vips(compression="jpeg", Q=95, tile=True), 3),
    "big.tif": (by_vips(bigtiff=True, tile=True), 0),
    "planar.tif": (planar, 0),
    "big_endian.tif": (by_tifffile(byteorder=">", tile=(64, 64)), 0),
    "rgb_jpeg.tif": (lambda path, pixels: write_tiles(path, [(pixels, "")], JPEG_TILES, 7), 2),
}


@pytest.mark.parametrize("name", COLOUR)
def test_patches_are_those_of_the_pixels_written(tmp_path, name):
    write, most = COLOUR[name]
    write(tmp_path / name, ASTRONAUT)
    error = np.abs(patches_of(opened(tmp_path / name)) - patches_of(HeldPicture(ASTRONAUT))).mean()
    assert error <= most


@pytest.mark.parametrize("name", ["a.png", "strips.tif", "tiles.tif", "a.jp2", "a.pgm"])
def test_16_bits_are_all_used(tmp_path, name):
    stored = DEEP.astype(np.uint16)
    if name.endswith("tif"):
        tifffile.imwrite(tmp_path / name, stored, **({"tile": (64, 64)} if name == "tiles.tif" else {}))
    else:
        Image.fromarray(stored).save(tmp_path / name)
    expected = HeldPicture(np.rint(stored / 257).astype(np.uint8))
    np.testing.assert_array_equal(patches_of(opened(tmp_path / name)), patches_of(expected))


def write_fits(path, numbers, *, before=b"", first="SIMPLE", **cards):
    """A FITS file as the standard has it, bottom row first."""
    bits = {"u1": 8, "i2": 16, "i4": 32, "i8": 64, "f4": -32, "f8": -64}[numbers.dtype.str[1:]]
    facts = {first: "T" if first == "SIMPLE" else "'IMAGE   '", "BITPIX": bits, "NAXIS": numbers.ndim}
    facts |= {f"NAXIS{i + 1}": size for i, size in enumerate(reversed(numbers.shape))} | cards
    text = "".join(f"{key:8}= {value!s:>20} / of a test".ljust(80) for key, value in facts.items()) + "END".ljust(80)
    header = text.ljust(-(-len(text) // 2880) * 2880).encode()
    data = numbers[..., ::-1, :].astype(numbers.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(before + header + data + bytes(-len(data) % 2880))


@pytest.mark.parametrize(
    "kind, scale, zero, cards",
    [
        ("u1", 1, 0, {}),
        ("i2", 1, 0, {}),
        ("i2", 1, 32768, {"BZERO": 32768, "BSCALE": 1}),
        ("i4", 1, 0, {}),
        ("i2", 0.5, 100, {"BZERO": "1.0D2", "BSCALE": 0.5}),
        ("f4", 1, 0, {}),
        ("f8", 1, 0, {}),
    ],
)
def test_fits_images_of_every_kind(tmp_path, kind, scale, zero, cards):
    """In bytes order, bottom up, with scale and offset; the same in an extension behind a part without an image."""
    limits = {"u1": (0, 255), "i2": (-32768, 32767), "i4": (-(2**31), 2**31 - 1)}.get(kind, (-1.5, 2.5))
    stored = (limits[0] + DEEP / DEEP.max() * (limits[1] - limits[0])).astype(kind)
    stored[:60] = stored[60]  # the top differs from the bottom
    meant = stored * float(scale) + zero
    low, high = np.quantile(meant, (0.2, 0.7))
    wanted = patches_of(HeldPicture(np.rint(np.clip((meant - low) / (high - low) * 255, 0, 255)).astype(np.uint8)))
    write_fits(tmp_path / "a.fits", stored, **cards)
    empty = ("SIMPLE  =" + "T".rjust(21)).ljust(80) + "BITPIX  = 8".ljust(80) + "NAXIS   = 0".ljust(80) + "END"
    write_fits(
        tmp_path / "b.fits", stored, before=empty.ljust(2880).encode(), first="XTENSION", PCOUNT=0, GCOUNT=1, **cards
    )
    for name in ("a.fits", "b.fits"):
        found = patches_of(opened(tmp_path / name, value_range=(low, high)))
        assert np.abs(found - wanted).max() <= 1


def test_fits_planes_are_colours_and_blanks_are_empty(tmp_path):
    write_fits(tmp_path / "rgb.fits", ASTRONAUT.transpose(2, 0, 1))
    np.testing.assert_array_equal(patches_of(opened(tmp_path / "rgb.fits")), patches_of(HeldPicture(ASTRONAUT)))
    stored = np.full((80, 90), 7, np.int16)
    stored[10, 20] = -99
    write_fits(tmp_path / "blank.fits", stored, BLANK=-99)
    if not has("fitsload"):  # which knows nothing of them
        source = opened(tmp_path / "blank.fits", value_range=(0, 10))
        assert source.with_empty
        assert np.argwhere(source.read(Box(0, 0, 90, 80), 0)[..., 1]).tolist() == [[10, 20]]


@pytest.mark.skipif(has("fitsload"), reason="this libvips has a reader of its own; run it with pyvips-binary")
def test_fits_files_that_are_none_are_one_line(tmp_path):
    path = tmp_path / "a.fits"
    write_fits(path, np.zeros((60, 60), np.int64))
    whole = path.read_bytes()
    write_fits(path, np.zeros((60, 60), np.uint8), NAXIS1=10**9)
    claims = path.read_bytes()
    write_fits(path, np.zeros((5000, 60, 1), np.uint8))
    many = path.read_bytes()
    for data, words in (
        (whole, "numbers have 64 bits"),
        (claims, "is shorter"),
        (many, "has 5000 planes"),
        (whole[:4000], "is shorter"),
        (whole[:100], "holds no image"),
        (whole[:2880].replace(b"END", b"   "), "header does not end"),
        (whole.replace(b"BITPIX", b"BITPAX"), "BITPIX"),
        (whole.replace(b"                  60", b"                 -60"), "is shorter"),
    ):
        path.write_bytes(data)
        with pytest.raises(Unreadable, match=words) as caught:
            opened(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(Unreadable, match="has 1 page"):
        write_fits(path, np.zeros((60, 60), np.uint8))
        opened(path, page=1)


def write_slide(path, pixels, encode=JPEG_TILES, compression=7):
    """An SVS file as Aperio's scanners lay it out: the slide, a thumbnail, a level of a quarter, the label, the tray."""
    size = f"{pixels.shape[1]}x{pixels.shape[0]}"
    text = f"Aperio Image Library v11.2.1 \r\n{size} [0,0 {size}] (256x256) JPEG/RGB Q=95|AppMag = 20|MPP = 0.4990"
    small = library().Image.new_from_array(pixels).shrink(4, 4).numpy()
    odd = np.full((90, 120, 3), 200, np.uint8)
    levels = [(pixels, text), (odd, None), (small, text.replace("] (", "] -> (")), (odd, None), (odd[:50], None)]
    write_tiles(path, levels, encode, compression)


def test_slides_of_aperio_are_read_with_the_levels_they_have(tmp_path):
    pixels = np.ascontiguousarray(np.tile(skimage.data.astronaut(), (3, 4, 1))[:1500, :2000])
    write_slide(tmp_path / "a.svs", pixels)
    source = opened(tmp_path / "a.svs")
    assert isinstance(source, StoredPicture)
    assert [(level.width, level.height) for level in source.levels[:3]] == [(2000, 1500), (500, 375), (250, 188)]
    assert [level.oversampling for level in source.levels[:3]] == [0, 6, 3]
    expected = HeldPicture(pixels)
    for view in ((0.0, 0.5, 0.5), (1.0, 0.3, 0.9), (3.0, 0.7, 0.1), (5.5, 0.2, 0.8)):
        error = cut_patch(source, *view, 32).astype(float) - cut_patch(expected, *view, 32)
        assert np.abs(error).mean() < 2


# What a build of libvips may lack -------------------------------------------------------------------------------------


def refusal(path):
    with pytest.raises(Unreadable) as caught:
        opened(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


WHAT_TO_DO = "convert it to an ordinary TIFF or PNG, or install such a libvips on your system and pip uninstall"


def heic(path):
    """An AVIF that says it is coded as HEVC."""
    Image.fromarray(ASTRONAUT).save(path, "AVIF")
    data = path.read_bytes()
    for old, new in ((b"av01", b"hvc1"), (b"av1C", b"hvcC"), (b"ftypavif", b"ftypheic")):
        data = data.replace(old, new)
    path.write_bytes(data)


def jpeg_xl(path):
    path.write_bytes(bytes.fromhex("0000000c4a584c200d0a870a00000014667479706a786c20") + bytes(100))


def mirax(path):
    """The preview beside a folder of data."""
    Image.fromarray(ASTRONAUT).save(path, "JPEG")
    path.with_suffix("").mkdir()
    (path.with_suffix("") / "Slidedat.ini").write_text("[GENERAL]\nSLIDE_VERSION = 01.02\n")


def ndpi(path):
    """Hamamatsu's pages are one JPEG each, whose own header has no size if it is too large."""
    Image.fromarray(ASTRONAUT).save(path, "TIFF", compression="jpeg")
    data = bytearray(path.read_bytes())
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = bytes(4)
    path.write_bytes(data)


def vms(path):
    path.write_text("[Virtual Microscope Specimen]\nNoLayers=1\nImageFile=a.jpg\n")


def jpeg2000_svs(path):
    write_slide(path, ASTRONAUT, {"format": "JPEG2000", "no_jp2": True}, 33005)


def tiff_of(compression):
    return lambda path: write_tiles(path, [(ASTRONAUT, "")], JPEG_TILES, compression)


LACKING = {
    "a.heic": (heic, "heifload", "HEVC, the code of HEIC"),
    "a.jxl": (jpeg_xl, "jxlload", "JPEG XL"),
    "a.mrxs": (mirax, "openslideload", "OpenSlide"),
    "a.ndpi": (ndpi, "openslideload", "OpenSlide"),
    "a.vms": (vms, "openslideload", "OpenSlide"),
    "a.svs": (jpeg2000_svs, "jp2kload", "OpenSlide"),
    "zstandard.tif": (tiff_of(50000), "openslideload", "this compression"),  # a whole build has that too
    "jpeg_xl.tif": (tiff_of(50002), "", "this compression"),
}


@pytest.mark.parametrize("name", LACKING)
def test_what_this_libvips_lacks_is_one_sentence_that_says_what_to_do(tmp_path, name):
    write, loader, part = LACKING[name]
    if loader not in ("", "heifload") and has(loader):
        pytest.skip(f"this libvips has {loader}; run it with pyvips-binary")
    write(tmp_path / name)
    sentence = refusal(tmp_path / name)
    assert f"such a file needs a libvips with {part}" in sentence
    assert WHAT_TO_DO in sentence
    Image.fromarray(ASTRONAUT).save(tmp_path / "good.png")
    with pytest.raises(UserError, match=rf"1 of \d files in .* {name} "):
        find_pictures(tmp_path, Reading(), 1)


@pytest.mark.parametrize("name", ["cut.heic", "cut.avif", "cut.jpg", "empty.heif"])
def test_a_heic_that_cannot_be_decoded_is_damaged_or_of_a_kind_that_is_not_read(tmp_path, name):
    """Of a file whose beginning does not say how it is coded nobody knows which."""
    Image.fromarray(ASTRONAUT).save(tmp_path / "whole.avif")
    data = (tmp_path / "whole.avif").read_bytes().replace(b"ftypavif", b"ftypheic" if "heic" in name else b"ftypavif")
    (tmp_path / name).write_bytes(data[: len(data) // 2] if name != "empty.heif" else bytes(1000))
    assert refusal(tmp_path / name).endswith(
        "; it is damaged, or of a kind that this libvips lacks a part for: convert it to JPEG, PNG or TIFF"
    )
    (tmp_path / "other.jpg").write_bytes(b"\xff\xd8\xff" + bytes(500))
    assert "lacks" not in refusal(tmp_path / "other.jpg")


RAW = {
    "a.cr3": (
        b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
        "is a Canon raw file, not a picture; export it as TIFF or PNG first",
    ),
    "a.ORF": (b"IIRO\x08\0\0\0", "is of no known format; export it as TIFF or PNG first"),
    "a.nef": (b"II*\0\x08\0\0\0", "; export it as TIFF or PNG first"),
    "a.psd": (b"8BPS\0\1", "is of no known format; export it as TIFF or PNG first"),
    "a.ai": (b"%PDF-1.5\n", "is a PDF, not a picture; export it as TIFF or PNG first"),
    "a.kra": (b"PK\x03\x04", "is a ZIP, not a picture; export it as TIFF or PNG first"),
    "a.mov": (b"\0\0\0\x14ftypqt  \0\0\0\0", "is an MP4 film, not a picture; take frames of it (ffmpeg -i FILM"),
    "a.mkv": (b"\x1a\x45\xdf\xa3", "is of no known format; take frames of it (ffmpeg -i FILM"),
    "a.zip": (b"PK\x03\x04", "is a ZIP, not a picture; unpack it, if it holds pictures"),
    "a.txt": (b"words", "is of no known format"),
}


def test_files_that_pictures_can_be_made_of_say_how(tmp_path, capsys):
    for name, (head, words) in RAW.items():
        (tmp_path / name).write_bytes(head + bytes(1000))
        sentence = refusal(tmp_path / name)
        assert words in sentence
        assert sentence.endswith(words) or "ffmpeg" in words
    (tmp_path / "a.nef").unlink()  # a TIFF, and broken
    Image.fromarray(ASTRONAUT).save(tmp_path / "good.png")
    found, _ = find_pictures(tmp_path, Reading(), 1)
    assert [picture.path.name for picture in found] == ["good.png"]
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("Passed over as no pictures: ")
    assert said[0].count(" (1)") == len(RAW) - 1
    assert said[1:] == [
        "To use them, export .ai, .cr3, .kra, .orf, .psd as TIFF or PNG and take frames of .mkv, .mov "
        "(ffmpeg -i FILM -vf fps=1 %05d.png) first."
    ]


@pytest.mark.parametrize("bigtiff", [False, True])
def test_a_tiff_that_was_cut_off_before_its_directory_is_called_damaged(tmp_path, bigtiff):
    library().Image.new_from_array(ASTRONAUT).tiffsave(str(tmp_path / "a.tif"), bigtiff=bigtiff)
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data[: len(data) // 2])
    assert refusal(tmp_path / "a.tif") == (
        "begins as a TIFF picture does and cannot be opened; it is damaged or incomplete: copy it anew"
    )
    (tmp_path / "a.tif").write_bytes(b"")
    assert refusal(tmp_path / "a.tif") == "is an empty file, not a picture"


def test_a_raw_file_that_is_a_tiff_is_read_and_says_what_that_may_be(tmp_path, capsys):
    Image.fromarray(ASTRONAUT).save(tmp_path / "a.dng", "TIFF")
    (picture,), _ = find_pictures(tmp_path / "a.dng", Reading(), 1)
    size = f"{ASTRONAUT.shape[1]} x {ASTRONAUT.shape[0]}"
    assert (picture.width, picture.height) == (ASTRONAUT.shape[1], ASTRONAUT.shape[0])
    said = capsys.readouterr().out
    assert f"a.dng ({size}): read as the TIFF that a raw file also is, which may be a preview" in said
    assert "export it as TIFF or PNG first." in said
    Image.fromarray(ASTRONAUT).save(tmp_path / "b.NEF", "TIFF")
    find_pictures(tmp_path, Reading(), 1)
    assert f"2 raw files, such as a.dng ({size}): read as the TIFF" in capsys.readouterr().out


@pytest.mark.parametrize("compression", ["deflate", "lzw"])
@pytest.mark.parametrize("tile", [True, False])
def test_damaged_tiles_of_a_tiff_are_an_error_and_not_black(tmp_path, compression, tile):
    image = library().Image.new_from_array(ASTRONAUT)
    image.tiffsave(str(tmp_path / "a.tif"), compression=compression, tile=tile, tile_width=64, tile_height=64)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        start = file.pages[0].dataoffsets[len(file.pages[0].dataoffsets) // 2]
    data[start : start + 60] = np.random.default_rng(0).bytes(60)
    (tmp_path / "a.tif").write_bytes(data)
    assert "cannot be decoded" in refusal(tmp_path / "a.tif")
