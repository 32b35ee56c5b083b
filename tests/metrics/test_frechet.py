"""Distances of clouds of features: against scipy and plain loops, and as measures that order what they should order."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg

from multiscale.metrics.frechet import (
    Moments,
    frechet_distance,
    kernel_distance,
    merged,
    nearest,
    precision_recall,
)


def cloud(count: int, dimension: int, seed: int, *, rank: int | None = None) -> np.ndarray:
    """Correlated Gaussian samples, in a subspace if ``rank`` says so."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(rank or dimension, dimension)) * rng.uniform(0.1, 2, dimension)
    return rng.normal(size=(count, rank or dimension)) @ mix + rng.normal(size=dimension)


def moments_of(samples: np.ndarray) -> Moments:
    moments = Moments(samples.shape[1])
    moments.add(samples)
    return moments


def scipy_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The formula as written, with scipy's square root of the product of covariances."""
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(first @ second)
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first + second - 2 * np.real(root)))


@pytest.mark.parametrize("dimension", [1, 3, 40])
def test_frechet_distance_is_that_of_scipy(dimension):
    a, b = cloud(500, dimension, 1), cloud(300, dimension, 2)
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    expected = (
        scipy_distance(a, b) if dimension > 1 else (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    )
    assert frechet_distance(moments_of(a), moments_of(b)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("samples", "rank"), [(12, None), (400, 5), (12, 5)])
def test_frechet_distance_of_covariances_of_low_rank(samples, rank):
    """Against the eigenvalues of the product within the smaller subspace, where scipy's square root is sound."""
    a, b = cloud(samples, 30, 3, rank=rank), cloud(500, 30, 4)
    deviations = (a - a.mean(0)) / np.sqrt(len(a) - 1)
    inner = deviations @ np.cov(b, rowvar=False) @ deviations.T  # [n, n]: the eigenvalues of A B that are not 0
    values, vectors = linalg.eigh(inner)
    solid = vectors[:, values > 1e-9 * values.max()]
    root = np.trace(linalg.sqrtm(solid.T @ inner @ solid))
    traces = np.trace(np.cov(a, rowvar=False)) + np.trace(np.cov(b, rowvar=False))
    expected = np.square(a.mean(0) - b.mean(0)).sum() + traces - 2 * np.real(root)
    assert frechet_distance(moments_of(a), moments_of(b)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rank", [None, 4])
def test_a_set_is_at_distance_0_of_itself(rank):
    moments = moments_of(cloud(200, 20, 5, rank=rank))
    assert frechet_distance(moments, moments) <= 1e-9 * np.trace(moments.covariance)


def test_moments_gathered_in_parts_are_those_of_the_whole():
    samples = cloud(301, 7, 6) + 1e4  # a mean far from 0, where sums of squares would cancel
    parts = []
    for share in (samples[:100], samples[100:101], samples[101:]):
        moments = Moments(7)
        for start in range(0, len(share), 64):
            moments.add(share[start : start + 64].astype(np.float64))
        parts.append(moments)
    whole = merged([*parts, Moments(7)])
    assert whole.count == 301
    np.testing.assert_allclose(whole.mean, samples.mean(0), rtol=1e-14)
    np.testing.assert_allclose(whole.covariance, np.cov(samples, rowvar=False), rtol=1e-9)


def test_a_distance_needs_samples():
    with pytest.raises(ValueError, match="needs samples in both"):
        frechet_distance(Moments(3), moments_of(cloud(5, 3, 0)))
    with pytest.raises(ValueError, match="two samples or more"):
        kernel_distance(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match="more than 3 samples"):
        precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))


def test_kernel_distance_is_the_plain_double_sum():
    x, y = cloud(13, 4, 7), cloud(9, 4, 8)

    def mean_kernel(a: np.ndarray, b: np.ndarray, *, skip: bool) -> float:
        values = [(p @ q / 4 + 1) ** 3 for i, p in enumerate(a) for j, q in enumerate(b) if not (skip and i == j)]
        return float(np.mean(values))

    expected = mean_kernel(x, x, skip=True) + mean_kernel(y, y, skip=True) - 2 * mean_kernel(x, y, skip=False)
    value, error = kernel_distance(x, y)
    assert value == pytest.approx(expected, rel=1e-10)
    assert np.isnan(error)


def test_kernel_distance_is_unbiased_on_equal_distributions():
    rng = np.random.default_rng(9)
    estimates = [kernel_distance(rng.normal(size=(30, 5)), rng.normal(size=(20, 5)))[0] for _ in range(2000)]
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates)) < 3 * error
    assert 0.3 < np.mean(np.array(estimates) < 0) < 0.8  # not clipped at 0


def test_kernel_distance_of_several_blocks_tells_its_error():
    rng = np.random.default_rng(10)
    values, errors = zip(*(kernel_distance(*rng.normal(size=(2, 400, 5)), block=100) for _ in range(60)), strict=True)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.3)


def test_precision_and_recall_tell_missing_from_invented_samples():
    rng = np.random.default_rng(11)
    two = np.concatenate([rng.normal(size=(200, 6)), rng.normal(size=(200, 6)) + 30])
    one = rng.normal(size=(400, 6))
    precision, recall = precision_recall(two, one)
    assert precision > 0.8
    assert 0.3 < recall < 0.6
    assert precision_recall(one, two) == (recall, precision)
    assert precision_recall(one, one) == (1, 1)
    assert precision_recall(one, one + 100) == (0, 0)


def test_nearest_samples_are_those_of_all_pairs():
    x, among = cloud(20, 5, 12), cloud(50, 5, 13)
    every = np.linalg.norm(x[:, None] - among, axis=2)
    distances, indices = nearest(x, among, 4)
    np.testing.assert_array_equal(indices, np.argsort(every, axis=1)[:, :4])
    np.testing.assert_allclose(distances, np.sort(every, axis=1)[:, :4], rtol=1e-6)
    assert (nearest(x, x, 1)[0] == 0).all()
