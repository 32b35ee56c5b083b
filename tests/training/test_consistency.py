"""Scale consistency: exact area averages, the zoom-out distribution and the masked loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from multiscale.training.consistency import (
    consistency_loss,
    masked_mean,
    reduce_about_centre,
    sample_zoom_out,
    zoom_out_distribution,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "consistency.npz"


def brute_force_reduction(image: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Area average of each footprint of a single [N, N] image via its integral image, interpolated at real corners."""
    n = image.shape[0]
    integral = np.zeros((n + 1, n + 1))
    integral[1:, 1:] = image.cumsum(0).cumsum(1)

    def integral_at(y: float, x: float) -> float:  # exact: the integral of a piecewise constant image is bilinear
        j, i = min(int(y), n - 1), min(int(x), n - 1)
        v, u = y - j, x - i
        top = (1 - u) * integral[j, i] + u * integral[j, i + 1]
        return (1 - v) * top + v * ((1 - u) * integral[j + 1, i] + u * integral[j + 1, i + 1])

    reduced, mask = np.zeros((n, n)), np.zeros((n, n))
    for row in range(n):
        for column in range(n):
            y0, x0 = (factor * (k - n / 2) + n / 2 for k in (row, column))
            y1, x1 = y0 + factor, x0 + factor
            if min(y0, x0) < -1e-9 or max(y1, x1) > n + 1e-9:
                continue
            total = integral_at(y1, x1) - integral_at(y0, x1) - integral_at(y1, x0) + integral_at(y0, x0)
            reduced[row, column], mask[row, column] = total / factor**2, 1
    return reduced, mask


def test_fixture_distribution() -> None:
    golden = np.load(GOLDEN)
    alpha, beta = zoom_out_distribution(torch.from_numpy(golden["log2_zoom"]))
    np.testing.assert_allclose(alpha, golden["alpha"], atol=1e-5)
    np.testing.assert_allclose(beta, golden["beta"], atol=1e-5)


def test_fixture_reduction() -> None:
    golden = np.load(GOLDEN)
    reduced, mask = reduce_about_centre(torch.from_numpy(golden["img"]), torch.from_numpy(golden["factor"]))
    np.testing.assert_array_equal(mask, golden["mask"])
    np.testing.assert_allclose(reduced, golden["reduced"], atol=1e-5)
    assert reduced.dtype == mask.dtype == torch.float32


@pytest.mark.parametrize("size", [7, 16])
def test_reduction_is_the_area_average(size: int) -> None:
    factors = np.array([1.0, 1.0001, 1.17, 2.0, 2.5, 4.0, 5.3])
    images = np.random.default_rng(0).normal(size=(len(factors), 2, size, size))
    reduced, mask = reduce_about_centre(torch.from_numpy(images), torch.from_numpy(factors))
    for b, factor in enumerate(factors):
        for c in range(2):
            expected, expected_mask = brute_force_reduction(images[b, c], factor)
            np.testing.assert_array_equal(mask[b, 0], expected_mask)
            np.testing.assert_allclose(reduced[b, c], expected, atol=1e-9)


def test_factor_one_is_the_identity() -> None:
    images = torch.randn(2, 3, 16, 16)
    reduced, mask = reduce_about_centre(images, torch.ones(2))
    assert torch.equal(reduced, images)
    assert torch.equal(mask, torch.ones(2, 1, 16, 16))


@pytest.mark.parametrize("size", [16, 256, 1024])
@pytest.mark.parametrize("octaves", [1, 2, 3])
def test_footprints_that_end_on_the_border_are_inside_despite_rounding(size: int, octaves: int) -> None:
    exact = 2.0**octaves
    for factor in (exact, exact * (1 + 2.0**-24), exact * (1 - 2.0**-24)):
        _, mask = reduce_about_centre(torch.zeros(1, 1, size, size), torch.tensor([factor], dtype=torch.float64))
        assert mask.sum() == (size // 2**octaves) ** 2


def test_half_precision_images_are_reduced_in_float32() -> None:
    images = torch.randn(1, 1, 16, 16).half()
    reduced, _ = reduce_about_centre(images, torch.tensor([2.0]))
    expected, _ = reduce_about_centre(images.float(), torch.tensor([2.0]))
    assert torch.equal(reduced, expected)


def test_mode_is_one_octave_out_of_n() -> None:
    octaves = torch.tensor([1.5, 2.0, 3.3, 6.0, 8.0], dtype=torch.float64)
    alpha, beta = zoom_out_distribution(octaves)
    torch.testing.assert_close((alpha - 1) / (alpha + beta - 2), 1 / octaves)


def test_zoom_out_draws_follow_the_distribution_and_never_leave_the_world() -> None:
    s = torch.full((20_000,), 4.0)
    factor = sample_zoom_out(s, np.random.default_rng(3))
    assert factor.dtype == torch.float64
    assert factor.min() >= 1
    assert factor.max() <= 16
    alpha, beta = zoom_out_distribution(torch.tensor(4.0))
    assert stats.kstest((factor.log2() / 4).numpy(), stats.beta(float(alpha), float(beta)).cdf).pvalue > 1e-3
    assert torch.equal(factor, sample_zoom_out(s, np.random.default_rng(3)))
    assert torch.equal(sample_zoom_out(torch.zeros(5), np.random.default_rng(0)), torch.ones(5, dtype=torch.float64))


def test_loss_is_zero_for_a_consistent_pair_and_ignores_what_is_outside_the_mask() -> None:
    fine = torch.randn(2, 3, 16, 16)
    factor = torch.tensor([2.0, 1.5])
    reduced, mask = reduce_about_centre(fine, factor)
    coarse = torch.where(mask > 0, reduced, torch.randn_like(reduced))
    assert consistency_loss(fine, coarse, factor) == 0


def test_loss_is_the_mean_over_samples_of_the_means_under_their_masks() -> None:
    fine, factor = torch.zeros(3, 3, 16, 16), torch.tensor([1.0, 4.0, 16.0])
    coarse = torch.tensor([1.0, -2.0, 5.0])[:, None, None, None].expand(3, 3, 16, 16)
    assert consistency_loss(fine, coarse, factor).item() == pytest.approx((1 + 2 + 0) / 3)

    def perceptual(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).square().sum(1, keepdim=True)

    assert consistency_loss(fine, coarse, factor, perceptual).item() == pytest.approx((1 + 3 + 2 + 12) / 3)


def test_a_sample_with_an_empty_mask_contributes_nothing_and_has_finite_gradients() -> None:
    fine = torch.randn(1, 3, 16, 16, requires_grad=True)
    coarse = torch.randn(1, 3, 16, 16, requires_grad=True)
    loss = consistency_loss(fine, coarse, torch.tensor([16.0]))
    loss.backward()
    assert loss == 0
    assert fine.grad is not None
    assert coarse.grad is not None
    assert not fine.grad.any()
    assert not coarse.grad.any()
    assert masked_mean(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)) == 0


def test_gradients_of_both_orders() -> None:
    images = torch.randn(2, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    factor = torch.tensor([1.3, 2.1], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: reduce_about_centre(x, factor)[0], images)
    assert torch.autograd.gradgradcheck(lambda x: reduce_about_centre(x, factor)[0].square(), images)
    coarse = torch.randn(2, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, y: consistency_loss(x, y, factor), (images, coarse))
