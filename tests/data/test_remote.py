"""Pictures as tiles: the same patches as from a file by every protocol, and servers that fail in every way."""

import asyncio
import io
import json
import shutil
import socket
import threading
from collections import Counter

import numpy as np
import pytest
import skimage.data
import tifffile
from aiohttp import web
from click.testing import CliRunner
from data.tile_server import TileServer
from PIL import Image

from dnnlib.errors import UserError
from multiscale.cli.dataset_tool import main
from multiscale.data import fetching
from multiscale.data.cutting import Box
from multiscale.data.patches import PatchDataset
from multiscale.data.tilings import read_description, xyz_tiling
from multiscale.data.vips import library

SIZE = (1101, 700)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MULTISCALE_CACHE", str(folder))
    monkeypatch.setattr(fetching, "BACKOFF_SEC", 0.01)
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """One picture as a pyramidal TIFF and, of the same levels, as tiles of every kind, PNG; and as JPEG for Deep Zoom."""
    folder = tmp_path_factory.mktemp("site")
    pixels = np.asarray(Image.fromarray(skimage.data.astronaut()).resize(SIZE))
    image = library().Image.new_from_array(pixels)
    for name, layout, options in (
        ("dzi", "dz", {"overlap": 1}),
        ("jpeg", "dz", {"overlap": 0, "suffix": ".jpg[Q=90]"}),
        ("zoomify", "zoomify", {}),
        ("iiif2", "iiif", {}),
        ("iiif3", "iiif3", {}),
        ("google", "google", {}),
    ):
        image.dzsave(str(folder / name), layout=layout, tile_size=256, **({"suffix": ".png", "overlap": 0} | options))
    image.dzsave(str(folder / "plain"), suffix=".png", tile_size=256, overlap=0)
    write_levels(folder / "picture.tif", folder / "plain_files", 5)
    info = json.loads((folder / "iiif3" / "info.json").read_text())
    (folder / "iiif3" / "info.json").write_text(json.dumps(info | {"preferredFormats": ["png"]}))
    for path in (folder / "zoomify").rglob("*.png"):
        path.rename(path.with_suffix(".jpg"))  # as its address always has it
    return folder


def write_levels(path, folder, count):
    """A pyramidal TIFF of levels that Pillow joins from Deep Zoom's tiles without overlap."""
    names = sorted((int(level.name) for level in folder.iterdir() if level.is_dir()), reverse=True)[:count]
    with tifffile.TiffWriter(path) as writer:
        for name in names:
            places = {
                tuple(map(int, file.stem.split("_"))): Image.open(file) for file in (folder / str(name)).iterdir()
            }
            width = sum(tile.width for (_, y), tile in places.items() if y == 0)
            height = sum(tile.height for (x, _), tile in places.items() if x == 0)
            whole = Image.new("RGB", (width, height))
            for (x, y), tile in places.items():
                whole.paste(tile, (256 * x, 256 * y))
            writer.write(np.asarray(whole), tile=(256, 256), photometric="rgb", metadata=None)


@pytest.fixture
def server(site):
    with TileServer(site) as running:
        yield running


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def make(source, dest, *more, counts="10,20,20,20", resolution=32):
    options = ["--resolution", resolution, "--counts", counts, "--seed", 2, "--workers", 1]
    options += [] if "--rate" in more else ["--rate", 0]
    return invoke("make", "--source", source, "--dest", dest, *options, *more)


def patches(path):
    dataset = PatchDataset(path)
    return np.stack([dataset[i][0] for i in range(len(dataset))]), dataset.labels


def made(*arguments, **options):
    result = make(*arguments, **options)
    assert result.exit_code == 0, result.output
    return patches(arguments[1])


def refusal(*arguments, **options):
    result = make(*arguments, **options)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    return line


@pytest.fixture(scope="module")
def expected(site, tmp_path_factory):
    """Patches of the TIFF."""
    return made(site / "picture.tif", tmp_path_factory.mktemp("expected") / "set.zip")


# The same by every protocol -------------------------------------------------------------------------------------------

DESCRIPTIONS = ["dzi.dzi", "zoomify/ImageProperties.xml", "iiif2/info.json", "iiif3/info.json"]


@pytest.mark.parametrize("name", DESCRIPTIONS)
@pytest.mark.parametrize("local", [False, True])
def test_patches_are_those_of_the_file(site, server, expected, tmp_path, name, local):
    pixels, labels = made(site / name if local else server.url(name), tmp_path / "set.zip")
    np.testing.assert_array_equal(labels, expected[1])
    np.testing.assert_array_equal(pixels, expected[0])
    assert (not server.asked) == local
    assert len(set(server.asked)) == len(server.asked), "nothing is fetched twice"


@pytest.mark.parametrize(
    ("folder", "description"),
    [("iiif3", "iiif3/info.json"), ("zoomify", "zoomify/ImageProperties.xml"), ("dzi_files", "dzi.dzi"), (".", ".dzi")],
)
def test_a_folder_of_tiles_is_not_taken_for_photographs(site, tmp_path, folder, description):
    sentence = refusal(site / folder, tmp_path / "set.zip")
    assert "holds one picture as tiles, which are no photographs; give --source " in sentence
    assert sentence.endswith(f"{description}.")
    assert make(sentence.rpartition(" ")[2][:-1], tmp_path / "set.zip", "--dry-run").exit_code == 0


def test_photographs_beside_a_file_of_a_description_s_name_are_taken(site, tmp_path):
    (tmp_path / "photos").mkdir()
    shutil.copy(site / "picture.tif", tmp_path / "photos")
    (tmp_path / "photos" / "info.json").write_text('{"camera": "Lens"}')
    shutil.copy(site / "dzi.dzi", tmp_path / "photos.dzi")
    assert make(tmp_path / "photos", tmp_path / "set.zip", "--dry-run").exit_code == 0


def test_patches_of_jpeg_tiles_differ_by_its_error_only(server, expected, tmp_path):
    pixels, _ = made(server.url("jpeg.dzi"), tmp_path / "set.zip")
    error = ((pixels.astype(float) - expected[0]) ** 2).mean()
    assert 0 < error < 255**2 / 10**3.2


def test_xyz_tiles_of_a_square_are_those_of_the_file(tmp_path):
    pixels = np.asarray(Image.fromarray(skimage.data.astronaut()).resize((1024, 1024)))
    image = library().Image.new_from_array(pixels)
    image.dzsave(str(tmp_path / "google"), layout="google", suffix=".png", tile_size=256)
    image.dzsave(str(tmp_path / "plain"), suffix=".png", tile_size=256, overlap=0)
    write_levels(tmp_path / "a.tif", tmp_path / "plain_files", 3)
    wanted = made(tmp_path / "a.tif", tmp_path / "a.zip")
    with TileServer(tmp_path / "google") as server:
        found = made(server.url("{z}/{y}/{x}.png?key=1"), tmp_path / "b.zip", "--zooms", "0-2")
        assert len(set(server.asked)) == len(server.asked)
        for z in range(3):
            for file in (tmp_path / "google" / str(z)).glob("*/*.png"):
                y, x = int(file.parent.name), int(file.stem)
                quadkey = "".join(str((x >> i & 1) + 2 * (y >> i & 1)) for i in reversed(range(z)))
                shutil.copy(file, tmp_path / "google" / f"q{quadkey}.png")
                (tmp_path / "google" / f"tms{z}-{x}-{2**z - 1 - y}.png").hardlink_to(file)
        row_source = server.url("tms{z}-{x}-{-y}.png")
        bad_tile(server, lambda: refusal(row_source, tmp_path / "c.zip", "--zooms", "0-2"))
        by_rows = made(row_source, tmp_path / "c.zip", "--zooms", "0-2")
        np.testing.assert_array_equal(by_rows[0], found[0])
        server.fault = None
        by_keys, by_columns = (
            made(server.url(name), tmp_path / "d.zip", "--force", "--zooms", "1-2")
            for name in ("q{q}.png", "{z}/{y}/{x}.png")
        )
        np.testing.assert_array_equal(by_keys[0], by_columns[0])
    error = np.abs(found[0].astype(float) - wanted[0]).max(axis=(1, 2, 3))
    assert (error[wanted[1] > 1] == 0).all()
    assert error.max() <= 6, "the file's last level goes on in the cache"


@pytest.mark.slow
def test_the_explorers_own_tiles_give_what_the_models_tiff_gives(tmp_path):
    """Deep Zoom, IIIF 3 and XYZ, as the server renders them, and ``generate.py --tiff`` of the same world."""
    from explorer.serving import serving, small_run

    from multiscale.cli.generate import main as generate

    run = small_run(tmp_path / "run", kimgs=(1,))
    result = CliRunner().invoke(generate, ["--network", str(run), "--seed", "3", "--tiff", str(tmp_path / "world.tif")])
    assert result.exit_code == 0, result.output
    wanted = made(tmp_path / "world.tif", tmp_path / "a.zip", counts="6,6,6", resolution=64)
    started, facts = threading.Event(), {}

    async def serve():
        async with serving(run, tmp_path / "tiles") as served:
            facts.update(url=str(served.client.make_url("/")), loop=asyncio.get_running_loop(), stop=asyncio.Event())
            started.set()
            await facts["stop"].wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(120)
    try:
        for name, zooms in (
            ("tiles/3.dzi", ()),
            ("iiif/3/info.json", ()),
            ("tiles/3/{z}/{x}/{y}.png", ("--zooms", "0-1")),
        ):
            found = made(facts["url"] + name, tmp_path / "b.zip", "--force", *zooms, counts="6,6,6", resolution=64)
            np.testing.assert_array_equal(found[0], wanted[0])
            np.testing.assert_array_equal(found[1], wanted[1])
    finally:
        facts["loop"].call_soon_threadsafe(facts["stop"].set)
        thread.join(20)


def test_rows_from_the_bottom_quadkeys_and_servers_of_several_names():
    """The examples are those of Microsoft's and OpenStreetMap's documentation of these schemes."""

    def addresses(template, zooms, box, shrink=0):
        return [tile.address for tile in xyz_tiling(template, 256, zooms, None).tiles(box, shrink)]

    place = Box(3 * 256, 5 * 256, 3 * 256 + 1, 5 * 256 + 1)
    assert addresses("https://t/{q}.jpeg?g=1", (1, 3), place) == ["https://t/213.jpeg?g=1"]
    assert addresses("https://t/{q}", (1, 3), Box(256, 512, 257, 513), 1) == ["https://t/21"]
    assert addresses("https://t/{z}/{x}/{-y}.png", (0, 3), place) == ["https://t/3/3/2.png"]
    assert addresses("https://t/{z}/{x}/{-y}.png", (0, 3), Box(0, 0, 1, 1), 3) == ["https://t/0/0/0.png"]
    row = addresses("https://{s}.t/{z}/{x}/{y}.png", (0, 3), Box(0, 0, 1024, 1))
    assert row == [f"https://{s}.t/3/{x}/0.png" for x, s in enumerate("abca")]
    with pytest.raises(UserError, match=r"has \{r\}; of XYZ tiles \{z\}, \{x\}, \{y\}, \{-y\}, \{q\}, \{s\} are"):
        addresses("https://t/{z}/{x}/{y}{r}.png", (0, 3), place)
    with pytest.raises(UserError, match=r"begin at zoom 1; give --zooms 1-3"):
        addresses("https://t/{q}", (0, 3), place)


def test_addresses_are_those_of_the_protocols():
    dzi = read_description(
        "http://a/b.dzi?k=1",
        b'<Image TileSize="254" Overlap="1" Format="jpg"><Size Width="6000" Height="4000"/></Image>',
    )
    first = next(dzi.tiles(Box(0, 0, 10, 10), 0))
    assert first == ("http://a/b_files/13/0_0.jpg?k=1", 0, 0, 255, 255, False)
    four = dzi.tiles(Box(250, 250, 260, 260), 1)
    assert [tile.address for tile in four] == [
        f"http://a/b_files/12/{xy}.jpg?k=1" for xy in ("0_0", "1_0", "0_1", "1_1")
    ]
    swiss = xyz_tiling("https://t/{z}/{x}/{y}.png", 256, (0, 8), (5.9, 45.8, 10.5, 47.8))
    assert [tile.address for tile in swiss.tiles(Box(0, 0, 1, 1), 0)] == ["https://t/8/132/89.png"]
    assert 800 < swiss.width < 840
    assert swiss.origin[0] % swiss.scales[-1] == 0


# Servers that fail ----------------------------------------------------------------------------------------------------


def test_a_server_that_fails_twice_for_every_third_tile_and_is_slow_gives_the_right_set(server, expected, tmp_path):
    """By the tile, not by the request: five failures of one tile in a row would be a refusal, and rightly so."""
    server.delay_sec = 0.002
    times = Counter()

    def fault(request, _):
        times[request.path] += 1
        if "dzi_files" not in request.path or list(times).index(request.path) % 3 or times[request.path] > 2:
            return None
        if times[request.path] == 1:
            request.transport.abort()
        return web.Response(status=503, headers={"Retry-After": "0"})

    server.fault = fault
    pixels, _ = made(server.url("dzi.dzi"), tmp_path / "set.zip", "--connections", 3)
    np.testing.assert_array_equal(pixels, expected[0])
    assert sorted(set(times.values())) == [1, 3]
    assert 1 < server.most <= 3
    assert server.agents == {fetching.USER_AGENT}


@pytest.mark.parametrize(
    "answer, words",
    [
        (lambda data: web.Response(status=404), "was answered 404 Not Found"),
        (lambda data: web.Response(status=500), "was answered 500 Internal Server Error, 5 times"),
        (lambda data: web.Response(text="<html>Please log in</html>", content_type="text/html"), "is not a picture"),
        (lambda data: web.Response(body=_png(100, 100)), "has 100 x 100 pixels, and 2"),
        (lambda data: web.Response(body=data[: len(data) // 2]), "came damaged"),
        (lambda data: web.Response(body=b""), "is not a picture"),
        (lambda data: web.Response(status=302, headers={"Location": "file:///etc/passwd"}), "cannot be asked for"),
        (lambda data: web.Response(status=302, headers={"Location": "ftp://127.0.0.1/a"}), "cannot be asked for"),
    ],
)
def test_what_a_server_does_wrong_is_one_sentence_and_the_same_command_goes_on(
    site, server, expected, tmp_path, answer, words
):
    victim = "dzi_files/11/1_1.png"
    server.fault = lambda request, _: answer((site / victim).read_bytes()) if request.path.endswith(victim) else None
    sentence = refusal(server.url("dzi.dzi"), tmp_path / "set.zip")
    assert victim in sentence
    assert words in sentence
    assert "the same command goes on" in sentence
    assert not (tmp_path / "set.zip").exists()
    server.fault = None
    before = set(server.asked) - {victim, "dzi.dzi"}
    server.asked.clear()
    pixels, _ = made(server.url("dzi.dzi"), tmp_path / "set.zip")
    np.testing.assert_array_equal(pixels, expected[0])
    assert not before & (set(server.asked) - {"dzi.dzi"}) - _in_flight(before, server.asked)
    assert victim in server.asked


def test_a_host_that_is_not_known_or_does_not_answer_is_said_in_words(tmp_path, monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/info.json"
        assert "did not come (no connection to 127.0.0.1: Connection refused), 5 times" in refusal(
            address, tmp_path / "a"
        )
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    sentence = refusal("https://images.invalid/info.json", tmp_path / "a")
    assert (
        "did not come (no host called images.invalid is known here; check the address, and the connection)" in sentence
    )


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_tiles_of_every_kind_outlast_a_bad_server(server, expected, tmp_path, name):
    """Each tenth tile is dropped at first, and one is missing, then a page, then of a wrong size; each time it goes on."""
    bad_tile(server, lambda: refusal(server.url(name), tmp_path / "set.zip"))
    np.testing.assert_array_equal(made(server.url(name), tmp_path / "set.zip")[0], expected[0])


def bad_tile(server, refused):
    """Let the third tile that is asked for be wrong in three ways, one after another; each tenth address is dropped once."""
    victims, answers, seen = [], {}, set()

    def fault(request, _):
        new = request.path not in seen
        seen.add(request.path)
        if new and len(seen) % 10 == 0:
            request.transport.abort()
            return web.Response()
        if len(victims) < 3 and request.path.endswith((".png", ".jpg")) and request.path not in victims:
            victims.append(request.path)
        return answers["now"]() if len(victims) == 3 and request.path == victims[2] and answers else None

    server.fault = fault
    for answer, words in (
        (lambda: web.Response(status=404), "was answered 404 Not Found"),
        (lambda: web.Response(text="<html>Please log in</html>", content_type="text/html"), "is not a picture"),
        (lambda: web.Response(body=_png(100, 90)), "has 100 x 90 pixels"),
    ):
        answers["now"] = answer
        sentence = refused()
        assert words in sentence
        assert victims[2] in sentence
        assert "the same command goes on" in sentence
    answers.clear()


def _in_flight(before, asked):
    """Tiles that were on their way when the command ended: no more than there are connections."""
    again = before & set(asked)
    assert len(again) <= 4
    return again


def _png(width, height):
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "PNG")
    return stream.getvalue()


def test_a_server_that_dies_in_the_middle(site, expected, tmp_path):
    with TileServer(site) as dying:

        def fault(request, number):
            if number > 12:
                request.transport.abort()
                return web.Response()
            return None

        dying.fault = fault
        port = dying.port
        sentence = refusal(dying.url("iiif3/info.json"), tmp_path / "set.zip")
        assert "did not come" in sentence
        assert f"127.0.0.1:{port}" in sentence
        dying.fault = None
        pixels, _ = made(dying.url("iiif3/info.json"), tmp_path / "set.zip")
        np.testing.assert_array_equal(pixels, expected[0])
    assert "did not come" in refusal(f"http://127.0.0.1:{port}/iiif3/info.json", tmp_path / "other.zip")


def test_a_dry_run_says_how_much_and_fetches_a_sample(server, expected, tmp_path):
    result = make(server.url("dzi.dzi"), tmp_path / "set.zip", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "1101 x 700 pixels" in result.output
    assert "MB to fetch" in result.output
    assert "would hold 70 patches, by octave 10, 20, 20, 20" in result.output
    assert len(server.asked) <= 1 + 8
    assert not (tmp_path / "set.zip").exists()
    tiles = int(result.output.split(" tiles, ")[0].split()[-1])
    made(server.url("dzi.dzi"), tmp_path / "set.zip")
    assert len(set(server.asked) - {"dzi.dzi"}) == tiles, "only what patches need"
    server.asked.clear()
    made(server.url("dzi.dzi"), tmp_path / "again.zip")
    assert server.asked == ["dzi.dzi"], "all tiles are kept"


def test_a_rate_is_kept(server, tmp_path):
    import time

    start = time.perf_counter()
    made(server.url("dzi.dzi"), tmp_path / "set.zip", "--rate", 40, counts="3")
    fetched = len(server.asked) - 1
    assert time.perf_counter() - start > (fetched - 8) / 40


def test_a_cache_that_is_too_small_is_said_before_anything_is_fetched(server, tmp_path):
    sentence = refusal(server.url("dzi.dzi"), tmp_path / "set.zip", "--cache", "0.003")
    assert "the cache must hold twice as much" in sentence
    assert len(server.asked) <= 9


def test_patches_that_are_empty_fetch_others(tmp_path):
    pixels = np.dstack([np.full((512, 512, 3), 90, np.uint8), np.full((512, 512), 255, np.uint8)])
    pixels[:, :60, 3] = 0
    image = library().Image.new_from_array(pixels)
    (tmp_path / "site").mkdir()
    image.dzsave(str(tmp_path / "site" / "a"), suffix=".png", tile_size=64, overlap=0)
    with TileServer(tmp_path / "site") as server:
        found, _ = made(server.url("a.dzi"), tmp_path / "set.zip", counts="5,20,20")
    assert (found == 90).all()


# Hostile descriptions -------------------------------------------------------------------------------------------------

ENTITY = b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    "name, data, words",
    [
        ("a.dzi", ENTITY + b'<Image TileSize="256" Overlap="0" Format="png">&e;</Image>', "document type"),
        ("a.dzi", "<Image/>".encode("utf-16"), "not a description of tiles"),
        ("a.dzi", b'<Image TileSize="256" Overlap="0" Format="png"/>', "it has no element Size"),
        (
            "a.dzi",
            b'<Image TileSize="0" Overlap="0" Format="png"><Size Width="9" Height="9"/></Image>',
            "tiles of 0 x 0",
        ),
        (
            "a.dzi",
            b'<Image TileSize="256" Overlap="0" Format="../../x"><Size Width="99" Height="99"/></Image>',
            "format of its tiles",
        ),
        (
            "a.dzi",
            b'<Image TileSize="256" Overlap="0" Format="png"><Size Width="99999999999999" Height="9"/></Image>',
            "claims 99999999999999 x 9 pixels",
        ),
        ("ImageProperties.xml", b'<I WIDTH="900" HEIGHT="700" TILESIZE="256" NUMTILES="3"/>', "counts 3 tiles"),
        ("ImageProperties.xml", b'<I WIDTH="900" HEIGHT="700" TILESIZE="0" NUMTILES="3"/>', "its tiles have 0 pixels"),
        ("info.json", b"[" * 100_000, "not a description"),
        ("info.json", b'{"@context": "x", "width": 5, "height": 5}', "neither IIIF Image API 2 nor 3"),
        (
            "info.json",
            b'{"@context": "http://iiif.io/api/image/2/context.json", "width": 9, "height": 9, "profile": "level0"}',
            "offers no tiles",
        ),
        ("info.json", b"x" * (5 << 20), "more than 4 MB"),
    ],
)
def test_descriptions_that_are_none_are_one_sentence(tmp_path, name, data, words):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / name).write_bytes(data)
    assert words in refusal(tmp_path / "site" / name, tmp_path / "s.zip")
    with TileServer(tmp_path / "site") as server:
        assert words in refusal(server.url(name), tmp_path / "s.zip")
        assert server.asked == [name]


def test_addresses_that_are_not_allowed(server, tmp_path):
    for source, words in (
        ("ftp://a/info.json", "give an address of http or https"),
        ("file:///etc/info.json", "give an address of http or https"),
        ("http://127.0.0.1/a.jpg", "is not an address of tiles"),
        (server.url("{z}/{x}/{y}.png"), "needs --zooms"),
        (server.url("none/info.json"), "404 Not Found"),
    ):
        assert words in refusal(source, tmp_path / "s.zip")
    for more, words in ((("--zooms", "3-1"), "--zooms"), (("--zooms", "0-2", "--bounds", "5,5,1,1"), "--bounds")):
        assert words in refusal(server.url("google/{z}/{y}/{x}.png"), tmp_path / "s.zip", *more)
    assert (tmp_path / "s.zip").exists() is False


def test_an_address_in_a_description_is_not_followed(server, site, tmp_path):
    """IIIF's id may say anything; tiles come from where the description was found."""
    folder = tmp_path / "site"
    shutil.copytree(site / "iiif3", folder / "iiif3")
    info = json.loads((folder / "iiif3" / "info.json").read_text())
    info["id"] = server.url("elsewhere")
    (folder / "iiif3" / "info.json").write_text(json.dumps(info))
    with TileServer(folder) as here:
        made(here.url("iiif3/info.json"), tmp_path / "s.zip", counts="3")
        assert len(here.asked) > 1
    assert server.asked == []


def test_a_refused_library_call_is_a_user_error(tmp_path):
    from multiscale.data.prepare import make_from_photographs

    with pytest.raises(UserError, match="http or https"):
        make_from_photographs("s3://bucket/info.json", tmp_path / "s.zip")
