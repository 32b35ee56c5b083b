"""Films: paths of constant speed inside the world; files that play, with the right frames, the same bytes each time."""

import dataclasses
import json
import math
import weakref

import av
import numpy as np
import pytest
import torch
from conftest import calibrated_generator, small_config
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dnnlib.errors import UserError
from multiscale.rendering import film_files
from multiscale.rendering.enlarging import enlarged_image
from multiscale.rendering.film_files import FILM_KINDS
from multiscale.rendering.flights import Keyframe, zoom_path
from multiscale.rendering.renderer import Cancelled, Renderer
from multiscale.rendering.video import write_film
from multiscale.rendering.walks import walk
from multiscale.rendering.worlds import World
from multiscale.view import Region

WORLD = World.parse(3)
FLIGHT = [Keyframe(1, 0, 0), Keyframe(8, 0.3, -0.2)]


@pytest.fixture(scope="module")
def renderer():
    torch.manual_seed(0)
    return Renderer(calibrated_generator(small_config(octaves=3, num_layers=8)), torch.device("cpu"))


def film(path, renderer, **changes):
    options = {"width": 64, "height": 48, "fps": 10, "seconds": 1.5} | changes
    worlds = options.pop("worlds", WORLD)
    return write_film(path, renderer, worlds, 1.0, options.pop("keyframes", FLIGHT), **options)


def written(path):
    """The frames of a film in any of its formats: float [frames, H, W, 3]."""
    if path.is_dir():
        return np.stack([np.asarray(Image.open(frame)) for frame in sorted(path.glob("*.png"))]).astype(float)
    if path.suffix in (".gif", ".webp"):
        with Image.open(path) as image:
            count = range(image.n_frames)
            return np.stack([(image.seek(i), np.asarray(image.convert("RGB")))[1] for i in count]).astype(float)
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(float)


def legal(zoom):
    return st.floats(-(1 - 1 / zoom) / 2, (1 - 1 / zoom) / 2)


places = st.floats(0, 8).map(lambda s: 2.0**s).flatmap(lambda z: st.builds(Keyframe, st.just(z), legal(z), legal(z)))


@given(st.lists(places, min_size=2, max_size=4), st.integers(2, 40))
def test_a_flight_begins_and_ends_where_it_should_and_never_leaves_the_world(keyframes, frames):
    path = zoom_path(keyframes, frames)
    assert len(path) == frames
    for (zoom, centre), place in ((path[0], keyframes[0]), (path[-1], keyframes[-1])):
        assert zoom == pytest.approx(place.zoom)
        assert centre == pytest.approx((place.x, place.y), abs=1e-9)
    for zoom, centre in path:
        assert max(map(abs, centre)) <= (1 - 1 / zoom) / 2 + 1e-9


def test_zoom_speed_is_constant_over_legs_of_different_length():
    path = zoom_path([Keyframe(1, 0, 0), Keyframe(4, 0.1, 0), Keyframe(64, 0.3, 0.3)], 61)
    steps = np.diff(np.log2([zoom for zoom, _ in path]))
    np.testing.assert_allclose(steps, 0.1, atol=1e-9)


def test_the_flight_is_straight_towards_one_point_of_the_picture():
    """The point that both keyframes show at the same place of the picture stays there."""
    path = zoom_path([Keyframe(1, 0, 0), Keyframe(8, 0.35, -0.35)], 20)
    target = (0.4, -0.4)  # (target - centre) * zoom = (0.4, -0.4) at both ends
    for zoom, centre in path:
        assert (target[0] - centre[0]) * zoom == pytest.approx(0.4)
        assert (target[1] - centre[1]) * zoom == pytest.approx(-0.4)


def test_a_pan_has_a_speed_of_its_own():
    path = zoom_path([Keyframe(4, -0.25, 0), Keyframe(4, 0.25, 0)], 11)
    np.testing.assert_allclose([x for _, (x, _) in path], np.linspace(-0.25, 0.25, 11))


@given(st.lists(places, min_size=1, max_size=4), st.integers(2, 40))
def test_a_loop_begins_where_it_should_and_never_leaves_the_world(keyframes, frames):
    path = zoom_path(keyframes, frames, loop=True)
    assert len(path) == frames
    assert path[0][0] == pytest.approx(keyframes[0].zoom)
    assert path[0][1] == pytest.approx((keyframes[0].x, keyframes[0].y), abs=1e-9)
    for zoom, centre in path:
        assert 1 - 1e-9 <= zoom <= max(place.zoom for place in keyframes) * (1 + 1e-9)
        assert max(map(abs, centre)) <= (1 - 1 / zoom) / 2 + 1e-9


def test_a_loop_flies_there_and_back_and_turns_softly():
    path = zoom_path([Keyframe(1, 0, 0), Keyframe(64, 0.2, 0.1)], 120, loop=True)
    octaves = np.log2([zoom for zoom, _ in path])
    assert octaves[[0, 60]] == pytest.approx([0, 6])
    np.testing.assert_allclose(
        octaves[1:], octaves[:0:-1], atol=1e-9
    )  # back by the same way; the first frame comes once
    speed = np.diff([*octaves, octaves[0]])
    assert np.abs(np.diff([*speed, speed[0]])).max() < 0.02  # instead of 0.2 at a sharp turn
    np.testing.assert_allclose(speed[16:44], 6 / 60 / 0.75)
    assert np.abs(speed).min() > 0


def test_a_loop_does_not_slow_down_at_places_that_lie_on_its_way():
    ends = [Keyframe(1, 0, 0), Keyframe(64, 0.2, 0.1)]
    (zoom, centre), *_ = zoom_path(ends, 12)[5:]
    straight, passed = (
        zoom_path(flight, 50, loop=True) for flight in (ends, [ends[0], Keyframe(zoom, *centre), ends[1]])
    )
    np.testing.assert_allclose([view[0] for view in passed], [view[0] for view in straight])
    turned = zoom_path([ends[0], Keyframe(8, -0.2, 0.1), ends[1]], 101, loop=True)
    at = min(range(101), key=lambda i: abs(turned[i][0] - 8) + abs(turned[i][1][0] + 0.2))
    steps = np.abs(np.diff(np.log2([view[0] for view in turned])))
    assert steps[at] < steps[at - 10] / 5


WALK = [World.parse(text) for text in ("3", "5~6:0.5", "8_2@0-3", "4")]


@pytest.mark.parametrize("loop", [False, True])
def test_a_walk_passes_each_world_at_even_times_with_continuous_speed(renderer, loop):
    g = renderer.generator
    frames = 80 if loop else 61
    worlds = list(walk(WALK, g, frames, 0.7, loop=loop))
    ws = np.stack([world.ws(g, 0.7)[0].double().numpy() for world in worlds])
    for i, world in enumerate(WALK):
        assert worlds[20 * i] == world
        np.testing.assert_array_equal(ws[20 * i], world.ws(g, 0.7)[0].double().numpy())
    assert len(worlds) == frames
    assert len({str(world) for world in worlds}) == frames  # renderers keep styles by name
    closed = np.concatenate([ws, ws[:2]]) if loop else ws
    speed = np.diff(closed, axis=0)
    assert np.abs(np.diff(speed, axis=0)).max() < 0.2 * np.abs(speed).max()
    assert np.linalg.norm(speed.reshape(len(speed), -1), axis=1).min() > 0


def test_a_walk_of_two_worlds_is_the_straight_way_between_them(renderer):
    g = renderer.generator
    half = list(walk([WORLD, World.parse(7)], g, 5))[2]
    torch.testing.assert_close(half.ws(g), World.parse("3~7:0.5").ws(g))


@pytest.mark.parametrize("ending", [".mp4", ".webm", ".gif", ".webp", ""])
def test_films_of_each_kind_show_the_same_frames(renderer, tmp_path, ending):
    path = tmp_path / f"film{ending}"
    walked = {"worlds": WALK[:2], "keyframes": FLIGHT[:1], "loop": True, "seconds": 1, "facts": {"world": ["3", "5"]}}
    film(path, renderer, **walked)
    frames = written(path)
    assert frames.shape == (10, 48, 64, 3)
    region = Region.of_view(1, (0, 0), 64, 48)
    for i, world in ((0, WALK[0]), (5, WALK[1])):  # half of the loop later it is at the second world
        still = enlarged_image(renderer, world, region, 1.0)
        assert np.abs(frames[i] - still).mean() <= {"": 0, ".gif": 6}.get(ending, 9)  # of noise, mostly
        assert np.corrcoef(frames[i].ravel(), still.ravel())[0, 1] > 0.97
    steps = [np.abs(a - b).mean() for a, b in zip(frames, [*frames[1:], frames[0]], strict=True)]
    assert min(steps) > 0
    assert steps[-1] < 1.5 * max(steps[:-1])
    again = tmp_path / f"again{ending}"
    film(again, renderer, **walked)
    pairs = zip(sorted(path.iterdir()), sorted(again.iterdir()), strict=True) if path.is_dir() else [(path, again)]
    assert all(a.read_bytes() == b.read_bytes() for a, b in pairs)


def test_films_say_what_they_show_play_in_time_and_repeat(renderer, tmp_path):
    facts = {"world": ["3", "5"], "note": "x" * 600}
    for ending in (".gif", ".webp", ".webm"):
        film(tmp_path / f"f{ending}", renderer, facts=facts, fps=8, seconds=1, width=33, height=17)
    text = json.dumps(facts)
    for ending in (".gif", ".webp"):
        with Image.open(tmp_path / f"f{ending}") as image:
            assert (image.info["loop"], image.n_frames, image.size) == (0, 8, (33, 17))
            durations = []
            for i in range(8):
                image.seek(i)
                image.load()
                durations.append(image.info["duration"])
            assert sum(durations) == pytest.approx(1000, abs=10)
            if ending == ".webp":
                assert image.getexif()[270] == text
    data = (tmp_path / "f.gif").read_bytes()
    blocks, said = data[data.rindex(b"\x21\xfe") + 2 :], b""
    while blocks[0]:
        said, blocks = said + blocks[1 : blocks[0] + 1], blocks[blocks[0] + 1 :]
    assert (said.decode(), blocks) == (text, b"\0;")
    with av.open(str(tmp_path / "f.webm")) as container:
        assert container.metadata.get("COMMENT", container.metadata.get("comment")) == text
        assert container.streams.video[0].average_rate == 8


def test_a_film_of_one_frame_says_what_it_shows_too(renderer, tmp_path):
    for ending in FILM_KINDS:
        film(tmp_path / f"f{ending}", renderer, facts={"world": "3"}, fps=1, seconds=1)
        assert len(written(tmp_path / f"f{ending}")) == 1
    assert json.loads(Image.open(tmp_path / "f.webp").getexif()[270]) == {"world": "3"}


def test_frames_that_a_stopped_film_has_left_are_kept(renderer, tmp_path):
    folder, shares = tmp_path / "frames", []
    with pytest.raises(Cancelled):
        film(folder, renderer, progress=shares.append, cancelled=lambda: len(shares) == 3)
    assert sorted(path.name for path in folder.iterdir()) == [*(f"frame-0000{i}.png" for i in range(3)), "made-of.json"]
    Image.new("RGB", (64, 48)).save(folder / "frame-00001.png")
    film(folder, renderer)
    frames = written(folder)
    assert [i for i, frame in enumerate(frames) if not frame.any()] == [1]
    assert len(frames) == 15
    assert json.loads(Image.open(folder / "frame-00002.png").text["multiscale"])["frame"] == 2
    for changes in ({"fps": 5}, {"facts": {"world": "4"}}, {"height": 64}):
        with pytest.raises(UserError, match="holds something else"):
            film(folder, renderer, **changes)
    for _ in range(2):  # as long as the numbers of many styles are
        film(tmp_path / "long", renderer, facts={"styles": "0" * 2**20}, fps=1, seconds=1)
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "frame-00000.png").touch()
    with pytest.raises(UserError, match="holds something else"):
        film(tmp_path / "holiday", renderer)
    assert [path.name for path in (tmp_path / "holiday").iterdir()] == ["frame-00000.png"]


def test_pictures_are_rendered_one_at_a_time(tmp_path):
    """A frame is encoded, or written, before the next is begun."""
    for ending, kind in FILM_KINDS.items():
        held, most = [], []

        def picture(held=held, most=most):
            pixels = np.zeros((48, 64, 3), np.uint8)
            held.append(weakref.ref(pixels))
            most.append(sum(one() is not None for one in held))
            return pixels

        details = {"width": 64, "height": 48, "fps": 10, "frames": 30}
        film_files.FilmFile(path=tmp_path / f"f{ending}", **details).write(picture for _ in range(30))
        assert len(most) == 30
        assert max(most) <= 2, kind.name


def test_a_build_without_an_encoder_says_so(tmp_path):
    missing = dataclasses.replace(FILM_KINDS[".webm"], codec="libnone")
    with pytest.raises(UserError, match=r"no encoder libnone for f\.webm; give a name that ends in \.mp4"):
        missing.check_place(tmp_path / "f.webm")


def test_a_film_plays(renderer, tmp_path):
    path = tmp_path / "f.mp4"
    film(path, renderer, facts={"world": "3"})
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate, stream.frames) == ("h264", 10, 15)
        assert float(stream.duration * stream.time_base) == pytest.approx(1.5)
        assert json.loads(container.metadata["comment"]) == {"world": "3"}
        frames = list(container.decode(stream))
    assert [frame.pts * frame.time_base for frame in frames] == pytest.approx([i / 10 for i in range(15)])
    for frame, (zoom, centre) in ((frames[0], zoom_path(FLIGHT, 15)[0]), (frames[7], zoom_path(FLIGHT, 15)[7])):
        expected = enlarged_image(renderer, WORLD, Region.of_view(zoom, centre, 64, 48), 1.0)
        difference = frame.to_ndarray(format="rgb24").astype(float) - expected
        assert np.abs(difference).mean() < 8  # 4:2:0 and H.264 of noise
    assert path.read_bytes().find(b"moov") < path.read_bytes().find(b"mdat")  # plays before it is whole


def test_the_same_film_has_the_same_bytes(renderer, tmp_path):
    film(tmp_path / "a.mp4", renderer)
    film(tmp_path / "b.mp4", renderer)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_a_film_that_is_given_up_leaves_nothing(renderer, tmp_path):
    shares = []
    with pytest.raises(Cancelled):
        film(tmp_path / "f.mp4", renderer, progress=shares.append, cancelled=lambda: len(shares) == 3)
    assert shares == pytest.approx([1 / 15, 2 / 15, 3 / 15])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"width": 63}, "even sides"),
        ({"height": 8}, "even sides"),
        ({"seconds": 1e9}, "frames"),
        ({"seconds": 0.01}, "0 frames"),
        ({"fps": 0}, "frames"),
        ({"keyframes": FLIGHT[:1]}, "two places"),
        ({"keyframes": [Keyframe(1, 0, 0), Keyframe(16, 0, 0)]}, "from 1 to 8"),
        ({"keyframes": [Keyframe(1, 0, 0), Keyframe(2, 0.3, 0)]}, "outside the world"),
        ({"keyframes": [Keyframe(1, 0, 0), Keyframe(math.nan, 0, 0)]}, "out of range"),
    ],
)
def test_films_that_are_not_possible(renderer, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        film(tmp_path / "f.mp4", renderer, **changes)
    assert list(tmp_path.iterdir()) == []
