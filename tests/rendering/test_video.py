"""Films: paths of constant speed inside the world; files that play, with the right frames, the same bytes each time."""

import json
import math

import av
import numpy as np
import pytest
import torch
from conftest import calibrated_generator, small_config
from hypothesis import given
from hypothesis import strategies as st

from dnnlib.errors import UserError
from multiscale.rendering.enlarging import enlarged_image
from multiscale.rendering.flights import Keyframe, zoom_path
from multiscale.rendering.renderer import Cancelled, Renderer
from multiscale.rendering.video import write_film
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
    return write_film(path, renderer, WORLD, 1.0, options.pop("keyframes", FLIGHT), **options)


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
