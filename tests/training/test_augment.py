"""Augmentation: the fixture, the distributions of its draws, gradients of two orders, and the control of p."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from multiscale.training.augment import (
    SYM6,
    AdaController,
    AugmentPipe,
    Draws,
    apply,
    mirror_pad,
    sample_bilinear,
    warp,
    warp_positions,
)
from multiscale.training.augment import rotation as rotation_map
from multiscale.training.augment import translation as translation_map

GOLDEN = Path(__file__).parents[1] / "golden" / "augment.npz"
NOTHING = {
    "flip": False,
    "quarter_turns": False,
    "integer_shift": 0.0,
    "scale_log2_std": 0.0,
    "rotation": 0.0,
    "anisotropy_log2_std": 0.0,
    "fractional_shift_std": 0.0,
    "brightness_std": 0.0,
    "contrast_log2_std": 0.0,
    "luma_flip": False,
    "hue": 0.0,
    "saturation_log2_std": 0.0,
}


def only(p: float = 1.0, **strengths: float | bool) -> AugmentPipe:
    return AugmentPipe(p=p, **{**NOTHING, **strengths})  # type: ignore[arg-type]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def warped(images: np.ndarray, geometry: np.ndarray) -> np.ndarray:
    pad, positions = warp_positions(geometry, images.shape[-1])
    return warp(torch.from_numpy(images), pad, torch.from_numpy(positions)).numpy()


def maps_of(pipe: AugmentPipe, count: int = 4000, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    draws = Draws(count, float(pipe.p), None, rng())
    return pipe.draw_geometry(draws, size), pipe.draw_colour(draws)


@pytest.mark.parametrize("percentile", json.loads(bytes(np.load(GOLDEN)["__meta__"]))["percentiles"])
def test_fixture(percentile: float) -> None:
    golden = np.load(GOLDEN)
    out = AugmentPipe(p=1)(torch.from_numpy(golden["img"]), percentile=percentile)
    np.testing.assert_allclose(out, golden[f"out_{percentile}"], atol=1e-4)


@pytest.mark.parametrize("p", [-0.1, 1.5, math.nan])
def test_what_is_no_probability_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="a probability is from 0 to 1"):
        AugmentPipe(p=p)


def test_wavelet_is_orthonormal_and_has_six_vanishing_moments() -> None:
    taps = np.array(SYM6)
    for shift in range(0, 12, 2):
        assert taps[shift:] @ taps[: 12 - shift] == pytest.approx(float(shift == 0), abs=1e-10)
    alternating = taps * (-1.0) ** np.arange(12)
    for moment in range(6):
        assert alternating @ (np.arange(12.0) / 11) ** moment == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("channels", [1, 3])
def test_probability_zero_is_the_identity(channels: int) -> None:
    images = torch.randn(4, channels, 16, 16)
    assert torch.equal(AugmentPipe(p=0)(images, generator=rng()), images)
    mixed = AugmentPipe(p=0.1)(images.repeat(8, 1, 1, 1), generator=rng())
    unchanged = [torch.allclose(a, b, atol=1e-5) for a, b in zip(mixed, images.repeat(8, 1, 1, 1), strict=True)]
    assert 0 < sum(unchanged) < 32


@pytest.mark.parametrize("size", [5, 16, 31])
def test_shifts_by_whole_pixels_are_exact_and_mirror_at_the_border(size: int) -> None:
    image = np.random.default_rng(0).normal(size=(1, 2, size, size))
    geometry = translation_map(np.array([3.0]), np.array([-2.0]))
    expected = np.pad(image, ((0, 0), (0, 0), (0, 2), (3, 0)), mode="reflect")[:, :, 2:, :size]
    np.testing.assert_allclose(warped(image, geometry), expected, atol=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
def test_more_padding_than_is_needed_changes_nothing(channels: int) -> None:
    images = torch.randn(8, channels, 16, 16, dtype=torch.float64)
    exact = AugmentPipe(p=1).draw(images, generator=rng())
    padded = AugmentPipe(p=1).draw(images, generator=rng(), pad_step=8)
    assert padded.pad[0] == padded.pad[1] >= max(exact.pad)
    assert padded.pad[0] % 8 == 0
    torch.testing.assert_close(apply(images, padded.pad, *padded.tensors), apply(images, exact.pad, *exact.tensors))


def test_geometry_goes_the_way_its_map_says() -> None:
    """A blob follows the map from input to output positions, up to the filter's delay of a twentieth of a pixel."""
    size, place = 32, np.array([6.0, -3.0])
    x = np.arange(size) - (size - 1) / 2
    blob = np.exp(-((x - place[0]) ** 2 + (x[:, None] - place[1]) ** 2) / 8)
    maps = np.concatenate([rotation_map(np.array([0.7])), np.diag([1.2, 0.8, 1.0])[None]])
    out = warped(np.broadcast_to(blob, (2, 1, size, size)).copy(), maps)[:, 0]
    for image, matrix in zip(out, maps, strict=True):
        found = [(image * x).sum() / image.sum(), (image * x[:, None]).sum() / image.sum()]
        np.testing.assert_allclose(found, matrix[:2, :2] @ place, atol=0.12)


def test_bilinear_sampling_agrees_with_grid_sample() -> None:
    images = torch.randn(2, 3, 7, 9, dtype=torch.float64)
    x, y = torch.rand(2, 5, 6, dtype=torch.float64) * 8, torch.rand(2, 5, 6, dtype=torch.float64) * 6
    grid = torch.stack([x / 8 * 2 - 1, y / 6 * 2 - 1], dim=-1)
    expected = torch.nn.functional.grid_sample(images, grid, mode="bilinear", align_corners=True)
    torch.testing.assert_close(sample_bilinear(images, x, y), expected)


@pytest.mark.parametrize("pads", [(0, 0), (2, 3), (11, 25)])
def test_mirror_pad_agrees_with_numpy_however_far(pads: tuple[int, int]) -> None:
    image = np.random.default_rng(0).normal(size=(1, 1, 5, 5))
    expected = np.pad(image, ((0, 0), (0, 0), (pads[1], pads[1]), (pads[0], pads[0])), mode="reflect")
    np.testing.assert_array_equal(mirror_pad(torch.from_numpy(image), *pads), expected)


def test_scale_and_shift_draws_follow_their_distributions_and_probability() -> None:
    geometry, _ = maps_of(only(p=0.3, scale_log2_std=0.2))
    log2_scale = np.log2(geometry[:, 0, 0])
    np.testing.assert_allclose(geometry[:, 0, 0], geometry[:, 1, 1])
    applied = log2_scale != 0
    assert applied.mean() == pytest.approx(0.3, abs=0.03)
    assert stats.kstest(log2_scale[applied] / 0.2, stats.norm.cdf).pvalue > 1e-3

    geometry, _ = maps_of(only(fractional_shift_std=0.125))
    assert stats.kstest(geometry[:, :2, 2].ravel() / 64 / 0.125, stats.norm.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(geometry[:, 0, 2], geometry[:, 1, 2])[0, 1]) < 0.06

    geometry, _ = maps_of(only(integer_shift=0.125))
    np.testing.assert_array_equal(np.unique(geometry[:, :2, 2]), np.arange(-8, 9))

    geometry, _ = maps_of(only(anisotropy_log2_std=0.2))
    np.testing.assert_allclose(geometry[:, 0, 0] * geometry[:, 1, 1], 1)
    assert np.log2(geometry[:, 0, 0]).std() == pytest.approx(0.2, rel=0.05)


def test_flips_turns_and_rotations_follow_their_distributions_and_probability() -> None:
    geometry, _ = maps_of(only(p=0.6, flip=True))
    assert (geometry[:, 0, 0] == -1).mean() == pytest.approx(0.3, abs=0.03)
    geometry, _ = maps_of(only(quarter_turns=True))
    turns = np.round(np.arctan2(geometry[:, 1, 0], geometry[:, 0, 0]) / (math.pi / 2)) % 4
    assert stats.chisquare(np.bincount(turns.astype(int), minlength=4)).pvalue > 1e-3
    geometry, _ = maps_of(only(p=0.5, rotation=1.0))
    angles = np.arctan2(geometry[:, 1, 0], geometry[:, 0, 0])
    assert (angles != 0).mean() == pytest.approx(0.5, abs=0.03)
    assert stats.kstest(angles[angles != 0], stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-3


def test_colour_draws_follow_their_distributions() -> None:
    grey_axis, red = np.array([1, 1, 1]) / math.sqrt(3), np.array([2, -1, -1]) / math.sqrt(6)
    _, colour = maps_of(only(brightness_std=0.2))
    assert stats.kstest(colour[:, 1, 3] / 0.2, stats.norm.cdf).pvalue > 1e-3
    _, colour = maps_of(only(contrast_log2_std=0.5))
    assert stats.kstest(np.log2(colour[:, 2, 2]) / 0.5, stats.norm.cdf).pvalue > 1e-3
    _, colour = maps_of(only(luma_flip=True))
    assert (grey_axis @ colour[:, :3, :3] @ grey_axis < 0).mean() == pytest.approx(0.5, abs=0.03)
    np.testing.assert_allclose(colour[:, :3, :3] @ red, np.tile(red, (len(colour), 1)), atol=1e-12)
    _, colour = maps_of(only(hue=1.0))
    np.testing.assert_allclose(colour[:, :3, :3] @ grey_axis, np.tile(grey_axis, (len(colour), 1)), atol=1e-12)
    cosine = np.clip(red @ (colour[:, :3, :3] @ red).T, -1, 1)
    assert stats.kstest(np.arccos(cosine), stats.uniform(0, math.pi).cdf).pvalue > 1e-3
    _, colour = maps_of(only(saturation_log2_std=1.0))
    assert stats.kstest(np.log2(red @ (colour[:, :3, :3] @ red).T), stats.norm.cdf).pvalue > 1e-3


def test_a_third_of_a_turn_of_hue_takes_red_green_blue_to_one_another() -> None:
    pipe = only(hue=2 / 3)
    red = torch.zeros(1, 3, 4, 4)
    red[:, 0] = 1
    turned = pipe(red, percentile=1 - 1e-12)  # the limit: 120 degrees
    torch.testing.assert_close(turned, red.roll(1, dims=1), atol=1e-5, rtol=0)


def test_grey_images_are_augmented_as_the_luma_of_colourless_ones() -> None:
    grey = torch.rand(6, 1, 16, 16) * 2 - 1
    pipe = AugmentPipe(p=0.8)
    out, in_colour = pipe(grey, generator=rng(4)), pipe(grey.repeat(1, 3, 1, 1), generator=rng(4))
    assert out.shape == grey.shape
    torch.testing.assert_close(out, in_colour.mean(1, keepdim=True), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [7, 16, 33])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_and_the_same_stream_gives_the_same_images(size: int, channels: int) -> None:
    images = torch.rand(8, channels, size, size) * 2 - 1
    out = AugmentPipe(p=1)(images, generator=rng(1))
    assert out.shape == images.shape
    assert out.isfinite().all()
    assert torch.equal(out, AugmentPipe(p=1)(images, generator=rng(1)))
    assert not torch.equal(out, AugmentPipe(p=1)(images, generator=rng(2)))


def test_how_much_randomness_is_used_does_not_depend_on_p() -> None:
    generators = [rng(), rng()]
    for p, generator in zip((0.0, 1.0), generators, strict=True):
        AugmentPipe(p=p)(torch.zeros(3, 3, 16, 16), generator=generator)
    assert generators[0].random() == generators[1].random()


@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_of_both_orders(channels: int) -> None:
    images = torch.rand(2, channels, 4, 4, dtype=torch.float64, requires_grad=True)
    pipe = AugmentPipe(p=1)
    assert torch.autograd.gradcheck(lambda x: pipe(x, generator=rng(2)), images)
    assert torch.autograd.gradgradcheck(lambda x: pipe(x, generator=rng(2)).sin(), images)


def test_a_gradient_penalty_on_the_images_reaches_the_weights() -> None:
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    images = torch.rand(4, 3, 16, 16, requires_grad=True)
    logits = torch.nn.functional.conv2d(AugmentPipe(p=1)(images, generator=rng()), weight).square().sum()
    (gradient,) = torch.autograd.grad(logits, images, create_graph=True)
    gradient.square().sum().backward()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()
    assert weight.grad.any()


def test_what_cannot_be_augmented_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be augmented"):
        AugmentPipe()(torch.zeros(1, 4, 16, 16))
    with pytest.raises(ValueError, match="percentile is 1"):
        AugmentPipe()(torch.zeros(1, 3, 16, 16), percentile=1)


def test_p_is_saved_with_the_pipe() -> None:
    pipe = AugmentPipe()
    pipe.load_state_dict(AugmentPipe(p=0.25).state_dict())
    assert pipe.p.item() == 0.25


def test_nothing_waits_for_the_device() -> None:
    """Tensors without data raise when a value of theirs is asked for, so what runs on them would not wait for a GPU either."""
    meta = torch.device("meta")
    for channels in (1, 3):
        images = torch.empty(4, channels, 16, 16, device=meta, requires_grad=True)
        out = AugmentPipe(p=0.5)(images, generator=rng())
        assert out.shape == images.shape
        (gradient,) = torch.autograd.grad(out.square().sum(), images, create_graph=True)
        gradient.sum().backward()
    controller = AdaController()
    for _ in range(2):
        controller.observe(torch.empty(4, 1, device=meta))
    with pytest.raises((RuntimeError, NotImplementedError)):
        controller.state_dict()


class FromWholeBatch:
    """A source whose every draw is for a batch of 6, of which it gives images 1 and 4: the last axis is the images."""

    def __init__(self) -> None:
        self.generator = rng(5)

    def integers(self, below, *, size):
        return self.generator.integers(below, size=6)[1::3]

    def uniform(self, low, high, *, size):
        return self.generator.uniform(low, high, size=(*size[:-1], 6))[..., 1::3]

    def standard_normal(self, size):
        return self.generator.standard_normal((*size[:-1], 6))[..., 1::3]

    def random(self, size):
        return self.generator.random(6)[1::3]


def test_a_share_of_a_batch_is_augmented_as_it_is_in_the_whole() -> None:
    images = torch.rand(6, 3, 16, 16)
    pipe = AugmentPipe(p=0.7)
    whole, share = pipe(images, generator=rng(5)), pipe(images[1::3], generator=FromWholeBatch())
    torch.testing.assert_close(share, whole[1::3], atol=1e-5, rtol=0)


def steer(controller: AdaController, pipe: AugmentPipe, logits: torch.Tensor, steps: int) -> float:
    for _ in range(steps):
        controller.observe(logits)
        controller.step(pipe, batch=32)
    return pipe.p.item()


def test_controller_raises_p_when_d_is_too_sure_and_lowers_it_otherwise_a_step_after_the_interval() -> None:
    pipe, controller = AugmentPipe(p=0.5), AdaController()
    change = 32 * 4 / 500_000
    assert steer(controller, pipe, torch.ones(8, 1), 4) == 0.5
    assert steer(controller, pipe, torch.ones(8, 1), 1) == pytest.approx(0.5 + change)
    assert steer(controller, pipe, torch.ones(8, 1), 3) == pytest.approx(0.5 + change)
    mean_half = torch.tensor([1.0, 2.0, 3.0, -1.0])
    assert steer(controller, pipe, mean_half, 4) == pytest.approx(0.5 + 2 * change)
    assert steer(controller, pipe, mean_half, 5) == pytest.approx(0.5)


def test_controller_keeps_p_between_0_and_1_and_ignores_what_is_not_finite() -> None:
    pipe, controller = AugmentPipe(p=0), AdaController(images_to_one=200)
    assert steer(controller, pipe, -torch.ones(8), 8) == 0
    assert steer(controller, pipe, torch.ones(8), 9) == 1
    assert steer(controller, pipe, torch.full((8,), math.nan), 8) == 1
    for _ in range(8):
        controller.step(pipe, batch=32)
    assert pipe.p.item() == 1


def test_parts_of_a_batch_may_be_observed_one_by_one() -> None:
    pipe, controller = AugmentPipe(p=0.5), AdaController(interval=1)
    for logits in (torch.ones(6), -torch.ones(1)):
        controller.observe(logits)
    controller.step(pipe, batch=32)
    controller.step(pipe, batch=32)
    assert pipe.p.item() > 0.5


@pytest.mark.parametrize("steps", [2, 4])  # within an interval, and while what it has seen is on its way
def test_a_controller_continues_from_its_state(steps: int) -> None:
    pipe, controller = AugmentPipe(p=0.5), AdaController()
    steer(controller, pipe, -torch.ones(6), steps)
    resumed = AdaController()
    resumed.load_state_dict(json.loads(json.dumps(controller.state_dict())))
    other = AugmentPipe(p=pipe.p.item())
    for _ in range(4):
        assert steer(resumed, other, torch.ones(2), 1) == steer(controller, pipe, torch.ones(2), 1)
    assert pipe.p.item() < 0.5


def test_each_image_is_augmented_with_the_probability_of_its_group() -> None:
    images = torch.rand(6, 3, 16, 16)
    pipe, group = AugmentPipe(groups=2), np.array([0, 1, 1, 0, 0, 1])
    pipe.p.copy_(torch.tensor([0.0, 1.0]))
    out = pipe(images, generator=rng(3), group=group)
    torch.testing.assert_close(out[group == 0], images[group == 0], atol=1e-5, rtol=0)
    whole = AugmentPipe(p=1)(images, generator=rng(3))
    torch.testing.assert_close(out[group == 1], whole[group == 1], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="2 groups"):
        pipe(images, generator=rng(3))


MEMBERS = torch.eye(3)[torch.tensor([0, 0, 1, 1, 2, 2])]


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_the_probability_of_an_octave_rises_alone_when_only_its_signs_are_high(start: float) -> None:
    pipe, controller = AugmentPipe(p=start, groups=3), AdaController(groups=3, images_to_one=1000)
    logits = torch.tensor([-1.0, 1.0, 2.0, 0.1, -3.0, -1.0])
    for _ in range(5):
        controller.observe(logits, MEMBERS)
        controller.step(pipe, batch=6)
    change = 4 * 6 / 1000  # as of one p for all, as the groups are seen alike often
    torch.testing.assert_close(pipe.p, torch.tensor([max(start - change, 0), start + change, max(start - change, 0)]))


def test_the_probability_of_an_octave_moves_by_its_own_images() -> None:
    pipe, controller = AugmentPipe(groups=3), AdaController(groups=3, images_to_one=1000, interval=1)
    members = torch.eye(3)[torch.tensor([0, 0, 0, 1])]
    for _ in range(2):
        controller.observe(torch.ones(4), members)
        controller.step(pipe, batch=4)
    torch.testing.assert_close(pipe.p, torch.tensor([3 * 3 / 1000, 3 * 1 / 1000, 0]))


@pytest.mark.parametrize("groups", [0, 3])
def test_a_controller_of_groups_continues_from_its_state(groups: int) -> None:
    def observe(controller: AdaController, pipe: AugmentPipe, sign: float) -> list[float]:
        controller.observe(sign * torch.ones(6), MEMBERS if groups else None)
        controller.step(pipe, batch=32)
        return pipe.p.view(-1).tolist()

    pipe, controller = AugmentPipe(p=0.5, groups=groups), AdaController(groups=groups)
    for _ in range(6):
        observe(controller, pipe, -1)
    state = json.loads(json.dumps(controller.state_dict()))
    assert np.shape(state["signs"]) == (2, groups or 1)
    resumed, other = AdaController(groups=groups), AugmentPipe(groups=groups)
    resumed.load_state_dict(state)
    other.load_state_dict(pipe.state_dict())
    for _ in range(4):
        assert observe(resumed, other, 1) == observe(controller, pipe, 1)


def test_states_of_before_have_two_numbers() -> None:
    pipe, controller = AugmentPipe(p=0.5), AdaController()
    controller.load_state_dict({"steps": 4, "signs": [1.0, 2.0], "arriving": [6.0, 8.0]})
    assert controller.state_dict() == {"steps": 4, "signs": [[1.0], [2.0]], "arriving": [[6.0], [8.0]]}
    controller.load_state_dict({"steps": 4, "signs": [1.0, 2.0], "arriving": [6.0, 8.0]})
    controller.step(pipe, batch=32)
    assert pipe.p.item() > 0.5


@pytest.mark.parametrize("before, after", [(0, 3), (3, 0), (2, 3)])
def test_what_was_counted_of_other_groups_is_forgotten(before: int, after: int) -> None:
    controller, other = AdaController(groups=before, interval=2), AdaController(groups=after)
    for _ in range(3):
        controller.observe(torch.ones(6), torch.ones(6, before) if before else None)
        controller.step(AugmentPipe(groups=before), batch=6) if controller.steps < 2 else None
    other.load_state_dict(controller.state_dict())
    assert other.steps == 2
    assert other.state_dict()["signs"] == other.state_dict()["arriving"] == np.zeros((2, after or 1)).tolist()
