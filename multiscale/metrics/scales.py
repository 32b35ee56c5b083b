"""How good a generator is, at every scale: all measures of one model, computed from as few views as serve them all.

Patches are generated in pools: one over the data's own mixture of scales, one for each octave. Every measure looks at the
first so many patches of its pools. Several processes share the patches; the first one compares.

Shapes: n patches, C channels, N side in pixels, S octaves, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dnnlib.errors import UserError
from multiscale.data.patches import PatchDataset
from multiscale.metrics import consistency, worlds
from multiscale.metrics.compare import Result, compare
from multiscale.metrics.draws import Shape, done_by_all, gathered, in_order, patch_views, quantised, shares
from multiscale.metrics.features import Features
from multiscale.metrics.frechet import Moments, merged
from multiscale.metrics.names import Metric
from multiscale.metrics.pools import Patches, Pool, pools_for, views_needed
from multiscale.metrics.reals import MOMENTS_ROWS, RealFeatures, fixed_order
from multiscale.metrics.sliced_wasserstein import sliced_wasserstein
from multiscale.networks.generator import Generator
from multiscale.rendering.renderer import Renderer
from torch_utils.distributed import Process, from_first
from torch_utils.random import stream

BATCH = {"cpu": 16, "cuda": 64}
"""Views that a device computes at a time, unless somebody says otherwise."""
NEIGHBOURS_AMONG = 1000
"""Real patches of each octave among which those nearest to generated ones are looked for, at least."""

Progress = Callable[[int], object]


class Evaluation:
    """Measures of any number of models against one data set.

    Args:
        metrics: What is measured.
        dataset: The real patches.
        features: The network for those measures that need one; None where none does.
        process: This process; all of them make the same calls.
        seed: Of what is generated. Equal seeds give equal numbers, whatever ``batch`` and the number of processes, but for
            the rounding of float32 sums in the networks.
        batch: Views that are computed at a time; None: by the device.
        digest: ``content_digest`` of the data, under which statistics are cached; None: no cache.
        pictures: Patches of each octave to keep, with their features, for a report; 0: none.

    Raises:
        UserError: the data do not have what a measure needs.
    """

    def __init__(
        self,
        metrics: Sequence[Metric],
        dataset: PatchDataset,
        features: Features | None,
        process: Process,
        *,
        seed: int = 0,
        batch: int | None = None,
        digest: str | None = None,
        pictures: int = 0,
    ) -> None:
        self.metrics, self.dataset, self.process, self.seed = tuple(metrics), dataset, process, seed
        self.digest = digest
        self.batch = batch or BATCH.get(process.device.type, BATCH["cuda"])
        self.pictures = pictures if features is not None else 0
        self.pools = pools_for(metrics, dataset.octaves, self.pictures)
        self.reals = None if features is None else RealFeatures(dataset, features, digest)
        if self.reals is None and any(pool.moments or pool.bank for pool in self.pools):
            raise ValueError("These measures need features.")
        self._check_counts()
        self.scene = worlds.scene_seed(dataset) if self._asks_for("truth") else None

    @property
    def facts(self) -> dict[str, Any]:
        """What numbers must share to be compared."""
        features = None if self.reals is None else self.reals.features.identity
        return {"data_sha256": self.digest, "features": features, "seed": self.seed}

    def real_indices(self, pool: Pool) -> np.ndarray:
        """Which real patches stand against the features that are kept of a pool."""
        shown = NEIGHBOURS_AMONG if self.pictures and pool.octave is not None else 0
        return fixed_order(self.dataset, pool.octave)[: max(pool.bank, shown)]

    def prepare(self, progress: Progress | None = None) -> None:
        """Compute or read what is needed of the real patches; ``progress`` is told how many were looked at."""
        if self.reals is not None:
            self.reals.prepare(self.process, **self._real_needs(), batch=self.batch, progress=progress)

    def reals_to_prepare(self) -> int:
        """Real patches whose features are not in the cache."""
        return 0 if self.reals is None else len(self.reals.missing(**self._real_needs()))

    def total_views(self) -> int:
        """Views that :meth:`measure` renders of a model."""
        others = [m for m in self.metrics if not m.kind.needs]
        return sum(pool.count for pool in self.pools) + sum(views_needed(m, self.dataset.octaves) for m in others)

    def check(self, generator: Generator) -> Shape:
        """What the measures must know of a network; UserError if it makes other patches than the data's."""
        config, data = generator.config, self.dataset
        for name, its, ours in (
            ("patches of {} pixels", config.img_resolution, data.resolution),
            ("{} channels", config.img_channels, data.num_channels),
            ("{} octaves", config.octaves, data.octaves),
        ):
            if its != ours:
                raise UserError(
                    f"The network makes {name.format(its)} and {data.path} has {name.format(ours)}; "
                    "give the data that it was trained on."
                )
        return Shape(config.img_resolution, config.img_channels, config.octaves, config.z_dim)

    @torch.no_grad()
    def measure(
        self, generator: Generator, progress: Progress | None = None
    ) -> tuple[dict[str, Result], dict[int | None, Patches]]:
        """All measures of one model, and the patches that were kept, by octave (None: the mixture).

        Args:
            generator: In evaluation mode, on the process's device, made for patches of the data's size and octaves.
            progress: Told how many views were rendered, over all processes.

        Raises:
            UserError: the generator makes other patches than the data's.
        """
        shape = self.check(generator)
        tell = progress or (lambda _: None)
        patches = {pool.octave: self._generate(generator, pool, shape, tell) for pool in self.pools}
        results = {metric.name: self._result(metric, generator, shape, patches, tell) for metric in self.metrics}
        return results, patches

    def _result(
        self,
        metric: Metric,
        generator: Generator,
        shape: Shape,
        patches: Mapping[int | None, Patches],
        tell: Progress,
    ) -> Result:
        if metric.kind.needs:
            return from_first(self.process, lambda: compare(metric, self.dataset, self.reals, patches))
        by_name = {
            "consistency": self._consistency,
            "equivariance": self._equivariance,
            "seam": self._seam,
            "truth": self._truth,
            "compression": self._compression,
        }
        return by_name[metric.kind_name](generator, shape, metric.count, tell)

    @property
    def _octaves(self) -> range:
        return range(self.dataset.octaves)

    def _asks_for(self, kind: str) -> bool:
        return any(metric.kind_name == kind for metric in self.metrics)

    def _check_counts(self) -> None:
        """Each octave has enough real patches for what is asked."""
        counts = self.dataset.counts()
        for octaves, per in ((self._octaves, ("octave",)), (range(1), ("octave", "coarsest"))):
            asked = [m for m in self.metrics if m.kind.needs and m.kind.per in per]
            least = max((m.kind.least for m in asked), default=0)
            for j in octaves:
                if counts[j] < least:
                    names = ",".join(m.name for m in asked)
                    raise UserError(
                        f"Octave {j} of {self.dataset.path} has {counts[j]} patches and {names} need at least {least} "
                        "in each; leave out the measures by octave, or give more patches."
                    )

    def _real_needs(self) -> dict[str, Any]:
        indices = [index for pool in self.pools for index in self.real_indices(pool)]
        return {"moments": any(pool.moments for pool in self.pools), "indices": indices}

    def _labels(self, octave: int | None) -> np.ndarray:
        labels = self.dataset.labels
        return labels if octave is None else labels[self.dataset.patch_octaves == octave]

    def _generate(self, generator: Generator, pool: Pool, shape: Shape, tell: Progress) -> Patches:
        """This process's part of a pool, and then all of it."""
        device, labels = self.process.device, self._labels(pool.octave)
        dimension = 0 if self.reals is None else self.reals.features.dimension
        moments = {count: Moments(dimension) for count in pool.moments}
        pending: dict[int, list[np.ndarray]] = {count: [] for count in moments}
        bank: dict[int, np.ndarray] = {}
        images: dict[int, np.ndarray] = {}
        featured = max([pool.bank, *pool.moments])
        for indices in shares(self.process, pool.count, self.batch):
            z, transform = patch_views(self.seed, pool.name, indices, labels, shape.z_dim)
            made = quantised(generator(z.to(device), transform))
            pixels = made.cpu().numpy()
            images |= {i: pixels[k] for k, i in enumerate(indices) if i < pool.images}
            if self.reals is not None and indices[0] < featured:
                values = self.reals.features(made)
                bank |= {i: values[k] for k, i in enumerate(indices) if i < pool.bank}
                for count, rows in pending.items():
                    rows += [values[k] for k, i in enumerate(indices) if i < count]
                    if len(rows) >= MOMENTS_ROWS:
                        moments[count].add(np.stack(rows))
                        rows.clear()
            tell(done_by_all(self.process, indices, pool.count))
        for count, rows in pending.items():
            if rows:
                moments[count].add(np.stack(rows))
        parts = gathered(self.process, (moments, bank, images))
        joined = {count: merged([part[0][count] for part in parts]) for count in moments}
        rows, pictures = (in_order([part[k] for part in parts]) for k in (1, 2))
        empty = np.zeros((0, shape.channels, shape.resolution, shape.resolution), np.uint8)
        return Patches(
            joined, np.stack(rows) if rows else np.zeros((0, dimension)), np.stack(pictures) if pictures else empty
        )

    def _shared(self, count: int, work: Callable[[list[int]], Sequence[Any]], tell: Progress, views: int) -> list[Any]:
        """``work(indices)`` for all indices below ``count``, shared by the processes, in order; ``views`` a sample."""
        found: dict[int, Any] = {}
        for indices in shares(self.process, count, self.batch):
            found |= dict(zip(indices, work(indices), strict=True))
            tell(views * done_by_all(self.process, indices, count))
        return in_order(gathered(self.process, found))

    def _consistency(self, generator: Generator, shape: Shape, count: int, tell: Progress) -> Result:
        def work(indices: list[int]) -> list[Any]:
            return list(consistency.scale_errors(generator, shape, self.seed, indices, self.process.device))

        errors = np.mean(self._shared(count, work, tell, shape.octaves + 1), axis=0)  # [S + 1, S + 1, 3]
        psnr = consistency.psnr(errors[..., 0])
        return {
            "value": float(np.nanmean(psnr)),
            "psnr": _listed(psnr),
            "l1": _listed(errors[..., 1]),
            "ssim": _listed(errors[..., 2]),
            "l1_mean": float(np.nanmean(errors[..., 1])),
            "ssim_mean": float(np.nanmean(errors[..., 2])) if np.isfinite(errors[..., 2]).any() else None,
        }

    def _equivariance(self, generator: Generator, shape: Shape, count: int, tell: Progress) -> Result:
        means = []
        for octave in self._octaves:

            def work(indices: list[int], octave: int = octave) -> list[Any]:
                views = patch_views(self.seed, f"shift {octave}", indices, self._labels(octave), shape.z_dim)
                seeds = [stream(self.seed, "measure shift", octave, i) for i in indices]
                return list(consistency.shift_errors(generator, *views, seeds, self.process.device))

            means.append(float(np.mean(self._shared(count, work, tell, 2))))
        value = float(consistency.psnr(float(np.mean(means))))
        return {"value": value, "octaves": [float(consistency.psnr(mean)) for mean in means]}

    def _seam(self, generator: Generator, _: Shape, count: int, tell: Progress) -> Result:
        renderer = Renderer(generator, self.process.device)
        worst = []
        for octave in self._octaves:

            def work(indices: list[int], octave: int = octave) -> list[Any]:
                return list(worlds.seam_steps(renderer, octave, self.seed, indices))

            worst.append(float(np.max(self._shared(count, work, tell, 8))))
        return {"value": max(worst), "octaves": worst}

    def _truth(self, generator: Generator, shape: Shape, count: int, tell: Progress) -> Result:
        assert self.scene is not None
        scene = self.scene
        rows = []
        for octave in self._octaves:

            def work(indices: list[int], octave: int = octave) -> list[tuple[np.ndarray, np.ndarray]]:
                z, transform = patch_views(self.seed, f"truth {octave}", indices, self._labels(octave), shape.z_dim)
                fake = quantised(generator(z.to(self.process.device), transform)).cpu().numpy()
                true = worlds.scene_patches(transform, shape.resolution, scene)
                return list(zip(true, fake, strict=True))

            pairs = self._shared(count, work, tell, 1)
            true, fake = (np.stack([pair[k] for pair in pairs]) for k in (0, 1))
            rows.append(
                {
                    "psnr": _mean_psnr(true, fake),
                    "psnr_by_chance": _mean_psnr(true, np.roll(true, 1, axis=0)),
                    "swd": sliced_wasserstein(true, fake)["mean"],
                }
            )
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        means = {f"{name}_mean": float(np.mean(values)) for name, values in columns.items()}
        return {"value": means["psnr_mean"], "octaves": columns["psnr"], "scene_seed": scene, **columns, **means}

    def _compression(self, generator: Generator, shape: Shape, count: int, tell: Progress) -> Result:
        renderer = Renderer(generator, self.process.device)
        pixels = worlds.pyramid_pixels(shape.resolution, shape.octaves)
        totals = dict.fromkeys(worlds.ENCODINGS, 0.0)
        for level, area in enumerate(pixels):

            def work(indices: list[int], level: int = level) -> list[dict[str, float]]:
                return list(worlds.tile_bytes(renderer, level, self.seed, indices).values())

            tiles = self._shared(count, work, tell, 1)
            for name in totals:
                totals[name] += area * float(np.mean([tile[name] for tile in tiles]))
        model = sum(tensor.nbytes for tensor in generator.state_dict().values())
        raw = shape.channels * sum(pixels)
        return {
            "value": totals["png"] / model,
            "model_bytes": model,
            "raw_bytes": raw,
            **{f"{name}_bytes": round(total) for name, total in totals.items()},
            **{f"{name}_ratio": total / model for name, total in (("raw", raw), *totals.items())},
        }


def _mean_psnr(a: np.ndarray, b: np.ndarray) -> float:
    difference = (a.astype(np.float64) - b) / 127.5
    return float(consistency.psnr(np.square(difference).mean(axis=(1, 2, 3))).mean())


def _listed(matrix: np.ndarray) -> list[list[float | None]]:
    return [[None if math.isnan(v) else float(v) for v in row] for row in matrix]
