"""Distances of two clouds of features: Frechet distance, kernel distance, precision and recall.

Frechet distance: Heusel et al. 2017 (section "Frechet inception distance"); kernel distance: Binkowski et al. 2018
(section 4); precision and recall: Kynkaanniemi et al. 2019 (equations 1 and 2).

Shapes: n and m samples, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

NEIGHBOURS = 3
"""k of precision and recall, as published."""
KERNEL_BLOCK = 1000
"""Samples of a block of the kernel distance, about."""
CHUNK_VALUES = 1 << 24
"""Elements of a distance or kernel matrix that are held at a time."""


@dataclass
class Moments:
    """Number, mean [D] and scatter [D, D] (sum of outer products of deviations) of samples, gathered in float64.

    Batches and parts of the work are merged by the update of Chan, Golub and LeVeque 1979, which does not cancel however far
    the mean is from 0.
    """

    dimension: int
    count: int = 0
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
    scatter: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    def __post_init__(self) -> None:
        if not self.count:
            self.mean, self.scatter = np.zeros(self.dimension), np.zeros((self.dimension, self.dimension))

    def add(self, features: np.ndarray) -> None:
        """Add samples [n, D]."""
        if len(features):
            values = np.asarray(features, dtype=np.float64)
            mean = values.mean(axis=0)
            deviations = values - mean
            self._merge(len(values), mean, deviations.T @ deviations)

    def merge(self, other: Moments) -> None:
        """Add the samples of another."""
        if other.count:
            self._merge(other.count, other.mean, other.scatter)

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance [D, D]; of fewer than two samples 0."""
        return self.scatter / max(self.count - 1, 1)

    def _merge(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total = self.count + count
        step = mean - self.mean
        self.scatter = self.scatter + scatter + np.outer(step, step) * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = total


def merged(parts: Sequence[Moments]) -> Moments:
    """The moments of all samples of several parts, of one dimension."""
    total = Moments(parts[0].dimension)
    for part in parts:
        total.merge(part)
    return total


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean difference|^2 + tr(A + B - 2 (A B)^(1/2)) of two Gaussians with these moments, >= 0.

    With A = L L^T and B = M M^T the trace of the square root is the sum of the singular values of L^T M: no square root
    of a small eigenvalue is taken, so that covariances of low rank, as of few samples, lose no digits.

    Raises:
        ValueError: a set has no samples.
    """
    if not (a.count and b.count):
        raise ValueError("The Frechet distance needs samples in both sets.")
    first, second = _factor(a.covariance), _factor(b.covariance)
    root = np.linalg.svd(first.T @ second, compute_uv=False).sum() if first.size and second.size else 0.0
    traces = np.square(first).sum() + np.square(second).sum()
    return max(float(np.square(a.mean - b.mean).sum() + traces - 2 * root), 0.0)


def _factor(covariance: np.ndarray) -> np.ndarray:
    """L [D, rank] with L L^T = covariance; directions below the rounding of the largest are none."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])


def kernel_distance(x: np.ndarray, y: np.ndarray, block: int = KERNEL_BLOCK) -> tuple[float, float]:
    """Squared maximum mean discrepancy of samples x [n, D] and y [m, D] (n, m >= 2) for the kernel (x.y/D + 1)^3.

    The mean of the unbiased estimates of disjoint blocks of about ``block`` samples of either set; its expectation is 0 for
    equal distributions, so that it may be negative.

    Returns:
        The estimate, and its standard error from the spread of the blocks (NaN for a single one).

    Raises:
        ValueError: a set has fewer than two samples.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError("The kernel distance needs two samples or more in both sets.")
    blocks = max(round(min(len(x), len(y)) / block), 1)
    pairs = zip(np.array_split(x, blocks), np.array_split(y, blocks), strict=True)
    estimates = [_unbiased_discrepancy(*(np.asarray(part, dtype=np.float64) for part in pair)) for pair in pairs]
    error = float(np.std(estimates, ddof=1) / np.sqrt(blocks)) if blocks > 1 else float("nan")
    return float(np.mean(estimates)), error


def _unbiased_discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    within = sum((_kernel(a, a).sum() - _kernel_diagonal(a).sum()) / (len(a) * (len(a) - 1)) for a in (x, y))
    return within - 2 * _kernel(x, y).mean()


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _kernel_diagonal(x: np.ndarray) -> np.ndarray:
    return (np.square(x).sum(axis=1) / x.shape[1] + 1) ** 3


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Fraction of fake samples within the real manifold, and of real samples within the fake one.

    A sample is among those of a set if it is no farther from one of them than that one's k-th nearest neighbour in the set.

    Args:
        real: [n, D], n > k.
        fake: [m, D], m > k; take m = n, for both values depend on the numbers.
        k: Neighbours.

    Raises:
        ValueError: a set has no more than k samples.
    """
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"Precision and recall need more than {k} samples in both sets.")
    return _covered(fake, real, k), _covered(real, fake, k)


def _covered(samples: np.ndarray, manifold: np.ndarray, k: int) -> float:
    """Fraction of the samples within the manifold."""
    radius = nearest(manifold, manifold, k + 1)[0][:, k]  # the nearest of all is the sample itself
    inside = [(distance <= radius).any(axis=1) for _, distance in _distances(samples, manifold)]
    return float(np.concatenate(inside).mean())


def nearest(samples: np.ndarray, among: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of ``among`` [m, D] to each sample [n, D]: distances [n, k], ascending, and indices [n, k]."""
    distances, indices = [], []
    for _, distance in _distances(samples, among):
        order = np.argpartition(distance, range(min(k, distance.shape[1])), axis=1)[:, :k]
        distances.append(np.take_along_axis(distance, order, axis=1))
        indices.append(order)
    return np.concatenate(distances), np.concatenate(indices)


def _distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Euclidean distances [rows, m] of a few rows of x at a time; a sample is at distance 0 of itself, exactly."""
    centre = y.mean(axis=0, dtype=np.float64)
    x, y = np.asarray(x, dtype=np.float64) - centre, np.asarray(y, dtype=np.float64) - centre
    squares = np.square(y).sum(axis=1)
    rows = max(CHUNK_VALUES // len(y), 1)
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        squared = np.square(x[part]).sum(axis=1)[:, None] + squares - 2 * x[part] @ y.T
        rounding = 1e-13 * (np.square(x[part]).sum(axis=1)[:, None] + squares)
        yield part, np.sqrt(np.where(squared > rounding, squared, 0))
