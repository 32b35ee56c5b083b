"""Statistics of the real patches' features, computed once for a data set and cached.

The cache is keyed by the content of the data and the identity of the features, so that it is never stale. Octave by octave it
holds the moments over all patches, and the features of patches, in a fixed random order, as far as they were needed.

Shapes: n patches, S octaves, D features.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from dnnlib.errors import UserError
from dnnlib.files import atomic_write, cache_folder, sha256
from dnnlib.reading import from_json, parsed, read_text
from multiscale.data.archive import ZipSource
from multiscale.data.container import FolderSource, open_sources
from multiscale.data.patches import PatchDataset
from multiscale.metrics.features import Features
from multiscale.metrics.frechet import Moments, merged
from multiscale.metrics.samples import done_by_all, gathered, own_batches
from torch_utils.distributed import Process, from_first
from torch_utils.random import stream

MOMENTS_ROWS = 512
"""Features that are gathered before their moments are taken."""

Progress = Callable[[int], object]


def content_digest(path: str | Path) -> str:
    """SHA-256 of a patch set's files, hexadecimal: names and bytes, but not where the set lies.

    The digest of a ZIP is remembered by its size, its time of change, and the checksums of the patches in it.
    """
    digest = hashlib.sha256()
    for source in open_sources(path):
        if source.path.is_file():
            is_zip = isinstance(source, ZipSource)
            directory = zlib.crc32(source.checksums(len(source.listing()[0])).tobytes()) if is_zip else 0
            digest.update(_remembered_sha256(source.path, directory).encode())
        else:
            folder = FolderSource(source.path)
            for name in sorted(folder.files):
                content = hashlib.sha256(folder.read_name(name)).hexdigest()
                digest.update(f"{name}\n{content}\n".encode())
    return digest.hexdigest()


def _remembered_sha256(path: Path, directory: int) -> str:
    """SHA-256 of a file, remembered for its size, time of change, and ``directory``, a number for what is in it."""
    facts = path.stat()
    key = hashlib.sha256(f"{path.resolve()}\n{facts.st_size}\n{facts.st_mtime_ns}\n{directory}".encode()).hexdigest()
    memory = _folder() / "digests" / f"{key[:32]}.json"
    with contextlib.suppress(OSError, UserError):  # not there, or damaged: computed anew
        text = read_text(memory, "the digest")
        return parsed(lambda: str(from_json(text)["sha256"]), "{reason}")
    found = sha256(path)
    with atomic_write(memory, "w") as out:
        json.dump({"path": str(path.resolve()), "sha256": found}, out)
    return found


def _folder() -> Path:
    return cache_folder() / "metrics"


def fixed_order(dataset: PatchDataset, octave: int | None) -> np.ndarray:
    """Indices of the patches of an octave (None: of all) in an order that is random but always the same."""
    members = np.arange(len(dataset)) if octave is None else np.flatnonzero(dataset.patch_octaves == octave)
    return stream(0, "measure real patches", 0 if octave is None else octave + 1).permutation(members)


class RealFeatures:
    """Features of a data set's patches, from the cache as far as it has them.

    Args:
        dataset: The patches.
        features: The network.
        digest: ``content_digest`` of the data; None: nothing is read from the cache or kept in it.
    """

    def __init__(self, dataset: PatchDataset, features: Features, digest: str | None) -> None:
        self.dataset, self.features = dataset, features
        self._moments: dict[int, Moments] | None = None
        self._rows: dict[int, np.ndarray] = {}
        self._path = None if digest is None else _folder() / f"{digest[:24]}-{features.identity}.npz"
        self._load()

    def missing(self, *, moments: bool, indices: Sequence[int]) -> list[int]:
        """Patches whose features :meth:`prepare` would have to compute."""
        if moments and self._moments is None:
            return list(range(len(self.dataset)))
        return sorted({int(i) for i in indices} - set(self._rows))

    def prepare(
        self,
        process: Process,
        *,
        moments: bool,
        indices: Sequence[int],
        batch: int,
        progress: Progress | None = None,
    ) -> None:
        """Compute what is missing: moments of all octaves if wanted, and the features of some patches.

        Called by all processes, which share the work.
        """
        missing = from_first(process, lambda: self.missing(moments=moments, indices=indices))
        if not missing:
            return
        kept = {int(i) for i in indices}
        takes_moments = moments and len(missing) == len(self.dataset)
        found = {octave: Moments(self.features.dimension) for octave in range(self.dataset.octaves)}
        pending: dict[int, list[np.ndarray]] = {octave: [] for octave in found}
        rows: dict[int, np.ndarray] = {}
        for places in own_batches(process, len(missing), batch):
            members = [missing[i] for i in places]
            values = self.features(torch.from_numpy(np.stack([self.dataset[i][0] for i in members])))
            rows |= {i: row for i, row in zip(members, values, strict=True) if i in kept}
            if takes_moments:
                for index, row in zip(members, values, strict=True):
                    octave = int(self.dataset.patch_octaves[index])
                    pending[octave].append(row)
                    if len(pending[octave]) == MOMENTS_ROWS:
                        found[octave].add(np.stack(pending[octave]))
                        pending[octave].clear()
            if progress is not None:
                progress(done_by_all(process, places, len(missing)))
        for octave, rest in pending.items():
            if rest:
                found[octave].add(np.stack(rest))
        parts = gathered(process, (rows, found if takes_moments else {}))
        for part_rows, _ in parts:
            self._rows |= part_rows
        if takes_moments:
            self._moments = {octave: merged([moments[octave] for _, moments in parts]) for octave in found}
        if process.is_first:
            self._save()

    def moments(self, octave: int | None) -> Moments:
        """Moments of all patches of an octave, or (None) of the whole set; :meth:`prepare` has been asked for them."""
        assert self._moments is not None
        if octave is not None:
            return self._moments[octave]
        return merged(list(self._moments.values()))

    def rows(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Features float32 [n, D] of patches that :meth:`prepare` has been asked for."""
        return np.stack([self._rows[int(i)] for i in indices])

    def _load(self) -> None:
        path = self._path
        if path is None or not path.is_file():
            return

        def read() -> tuple[dict[int, np.ndarray], dict[int, Moments] | None]:
            with np.load(path) as held:
                rows = dict(zip(held["indices"].tolist(), held["rows"], strict=True))
                moments = None
                if "counts" in held:
                    facts = zip(held["counts"], held["means"], held["scatters"], strict=True)
                    moments = {i: Moments(self.features.dimension, int(n), m, s) for i, (n, m, s) in enumerate(facts)}
                return rows, moments

        with contextlib.suppress(OSError, UserError):  # damaged: computed anew, and replaced
            self._rows, self._moments = parsed(read, "{reason}")

    def _save(self) -> None:
        if self._path is None:
            return
        indices = sorted(self._rows)
        rows = self.rows(indices) if indices else np.zeros((0, self.features.dimension), np.float32)
        content = {"indices": np.array(indices, dtype=np.int64), "rows": rows}
        if self._moments is not None:
            parts = [self._moments[octave] for octave in range(self.dataset.octaves)]
            content |= {
                "counts": np.array([p.count for p in parts]),
                "means": np.stack([p.mean for p in parts]),
                "scatters": np.stack([p.scatter for p in parts]),
            }
        with atomic_write(self._path) as out:
            np.savez(out, **content)  # type: ignore[arg-type]
