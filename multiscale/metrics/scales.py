"""All measures of a generator, at every scale, from a shared and smallest possible set of views.

Patches are generated in pools: one over the data's own mixture of scales, one for each octave. Every measure looks at the
first so many patches of its pools. Several processes share the patches; the first one compares.

Shapes: n patches, C channels, N side in pixels, S octaves, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dnnlib.errors import UserError
from multiscale.data.patches import PatchDataset
from multiscale.metrics.compare import compare
from multiscale.metrics.features import Features
from multiscale.metrics.frechet import Moments, merged
from multiscale.metrics.measure import Metric, Result, plain
from multiscale.metrics.pools import Patches, Pool, pools_for
from multiscale.metrics.reals import MOMENTS_ROWS, RealFeatures, fixed_order
from multiscale.metrics.render import Model, Progress, ViewKind
from multiscale.metrics.samples import Shape, done_by_all, gathered, in_order, own_batches, patch_views, quantised
from multiscale.networks.generator import Generator
from torch_utils.devices import float32_products
from torch_utils.distributed import Process, from_first

BATCH = {"cpu": 16, "cuda": 64}
"""Default number of views that a device computes at a time."""
NEIGHBOURS_AMONG = 1000
"""Least number of real patches per octave to search for nearest neighbours of generated ones."""


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
        UserError: the data lack what a measure needs.
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
        for kind in {metric.kind_name: metric.kind for metric in metrics}.values():
            if isinstance(kind, ViewKind):
                kind.check(dataset)

    @property
    def facts(self) -> dict[str, Any]:
        """What results must have in common to be comparable."""
        features = None if self.reals is None else self.reals.features.identity
        return {"data_sha256": self.digest, "features": features, "seed": self.seed}

    def real_indices(self, pool: Pool) -> np.ndarray:
        """The real patches to compare with the features kept of a pool."""
        pictured = NEIGHBOURS_AMONG if self.pictures and pool.octave is not None else 0
        return fixed_order(self.dataset, pool.octave)[: max(pool.bank, pictured)]

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
        return sum(pool.count for pool in self.pools) + sum(m.kind.views(m.count, self.dataset.octaves) for m in others)

    def check(self, generator: Generator) -> Shape:
        """The shape of a network's patches; UserError if it is not that of the data."""
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
    @float32_products()
    def measure(
        self, generator: Generator, progress: Progress | None = None
    ) -> tuple[dict[str, Result], dict[int | None, Patches]]:
        """All measures of one model, and the patches that were kept, by octave (None: the mixture).

        Args:
            generator: In evaluation mode, on the process's device, made for patches of the data's size and octaves.
            progress: Told how many views were rendered, over all processes.

        Raises:
            UserError: the generator's patches do not have the shape of the data's.
        """
        shape = self.check(generator)
        tell = progress or (lambda _: None)
        patches = {pool.octave: self._generate(generator, pool, shape, tell) for pool in self.pools}
        results = {
            metric.name: self._result(metric, generator, shape, patches, tell) | {"better": metric.kind.better}
            for metric in self.metrics
        }
        return results, patches

    def _result(
        self,
        metric: Metric,
        generator: Generator,
        shape: Shape,
        patches: Mapping[int | None, Patches],
        tell: Progress,
    ) -> Result:
        if isinstance(metric.kind, ViewKind):
            model = Model(
                metric.count, generator, shape, self.dataset, self.process, seed=self.seed, batch=self.batch, tell=tell
            )
            return plain(metric.name, metric.kind.measured(model))
        return from_first(self.process, lambda: compare(metric, self.dataset, self.reals, patches))

    def _check_counts(self) -> None:
        """Check that each octave has enough real patches for the measures."""
        counts = self.dataset.counts()
        for octaves, per in ((range(self.dataset.octaves), ("octave",)), (range(1), ("octave", "coarsest"))):
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
        """Generate this process's part of a pool, and gather all of it."""
        device, labels = self.process.device, self._labels(pool.octave)
        dimension = 0 if self.reals is None else self.reals.features.dimension
        moments = {count: Moments(dimension) for count in pool.moments}
        pending: dict[int, list[np.ndarray]] = {count: [] for count in moments}
        bank: dict[int, np.ndarray] = {}
        images: dict[int, np.ndarray] = {}
        featured = max([pool.bank, *pool.moments])
        for indices in own_batches(self.process, pool.count, self.batch):
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
