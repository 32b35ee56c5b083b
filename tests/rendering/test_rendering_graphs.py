"""Replays of images from CUDA graphs, as far as a CPU can tell: when they are recorded, in whose memory, what without any."""

import pytest
import torch
from conftest import calibrated_generator, small_config

from multiscale.rendering.cuda_graphs import SHAPES_KEPT, Replay

SIZES = [(32 + 8 * i, 32) for i in range(SHAPES_KEPT + 1)]


class Emulation:
    """Stands in for CUDA graphs that share memory: a replay computes again, and spoils the results of all others."""

    def __init__(self, device, fails=lambda: False):
        self.fails, self.images, self.log = fails, [], []

    def rehearse(self, body):
        body()

    def record(self, body):
        self.log.append("recording")
        if self.fails():
            raise torch.OutOfMemoryError
        recording = body.__self__
        body()
        place = recording.image
        self.images.append(place)

        def replay():
            self.log.append("replay")
            for image in self.images:
                image.fill_(torch.nan)
            body()
            recording.image = place.copy_(recording.image)

        return replay


@pytest.fixture(scope="module")
def synthesis():
    torch.manual_seed(0)
    return calibrated_generator(small_config(octaves=4, channel_max=16)).synthesis


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def a_call(synthesis, size):
    """What a call is given, and the image."""
    ws = torch.randn(1, len(synthesis.layers) + 1, synthesis.config.w_dim)
    transform = torch.diag(torch.tensor([0.4, 0.4, 1.0], dtype=torch.float64))[None]
    return (ws, transform, size), synthesis(ws, transform, size=size)


def test_images_stay_what_they_are_whatever_is_replayed_after_them(synthesis):
    made = []
    replay = Replay(synthesis, lambda device: made.append(Emulation(device)) or made[-1])
    given, images = [], []
    for size in [*SIZES[:3] * 4, *SIZES[2::-1], SIZES[0]]:
        arguments, image = a_call(synthesis, size)
        given.append(image)
        images.append(replay(*arguments))
    assert all(map(torch.equal, images, given))
    assert len(made) == 1  # one pool
    assert made[0].log == ["recording", "replay"] * 3 + ["replay"] * 7


def test_the_shapes_called_last_are_kept(synthesis):
    made = []
    replay = Replay(synthesis, lambda device: made.append(Emulation(device)) or made[-1])
    for size in SIZES:
        for _ in range(3):
            arguments, image = a_call(synthesis, size)
            assert torch.equal(replay(*arguments), image)
    assert [key[1:] for key in replay._recordings] == SIZES[1:]


def test_a_transform_on_the_device_is_not_written_to(synthesis):
    replay = Replay(synthesis, Emulation)
    (ws, transform, size), _ = a_call(synthesis, SIZES[0])
    for _ in range(3):
        replay(ws, transform, size)
    before = transform.clone()
    replay(ws, 0.5 * transform, size)
    assert torch.equal(transform, before)


def test_without_memory_for_another_graph_images_are_rendered_without_and_no_more_are_tried(synthesis):
    made, is_full = [], False
    replay = Replay(synthesis, lambda device: made.append(Emulation(device, lambda: is_full)) or made[-1])
    for _ in range(3):
        replay(*a_call(synthesis, SIZES[0])[0])
    is_full = True
    calls = [a_call(synthesis, size) for size in SIZES[:3] * 5]
    with pytest.warns(RuntimeWarning, match="not enough GPU memory") as warned:
        images = [replay(*arguments) for arguments, _ in calls]
    assert all(torch.equal(image, given) for image, (_, given) in zip(images, calls, strict=True))
    assert len(warned) == 1
    assert made[0].log.count("recording") == 2
    assert made[0].log.count("replay") == 6  # what was recorded is replayed still
