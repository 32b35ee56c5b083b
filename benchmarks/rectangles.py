"""Whether the mixtures of a network's features are strong and weak in rectangles: shares of their local energy by direction.

    python benchmarks/rectangles.py [--network FILE] [--worlds 16] [--views 4]

The logarithm of the local energy of 64 x 64 samples of a mixture, at 8 x 8 places, is a sum of what its rows, its columns and
its places have of their own. Printed is the part of its variance that rows and columns explain, and the part that the two
families of (wrapped) diagonals explain. Energies that are independent give 14/63 = 0.22 for either; smooth ones give more
along rows than along wrapped diagonals, as random fields of the same spectrum show.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout's code, whatever else is installed

import numpy as np
import torch
from scipy import ndimage

from multiscale.runs.headers import find_network
from multiscale.runs.snapshots import load_snapshot
from multiscale.view import centre_limit, view_transform
from torch_utils.random import latents

SIDE, PLACES = 64, slice(8, -7, 6)


def explained(maps: np.ndarray) -> tuple[float, float]:
    """Parts of the variance of log local energy that rows and columns, and that diagonals explain; ``maps`` is [N, 64, 64]."""
    detail = maps - ndimage.gaussian_filter(maps, (0, 2, 2))
    energy = ndimage.gaussian_filter(detail**2, (0, 3, 3))[:, PLACES, PLACES]
    log = np.log(energy / energy.mean() + 1e-6)
    log -= log.mean(axis=(1, 2), keepdims=True)
    n = log.shape[1]
    at = np.arange(n)
    falling, rising = (log[:, at, (at[:, None] + sign * at) % n] for sign in (1, -1))  # [N, diagonal, place]

    def part(*families: np.ndarray) -> float:
        by_family = sum(np.square(family.mean(axis=2)).sum(axis=1) * n for family in families)
        return float((by_family / np.square(log).sum(axis=(1, 2))).mean())

    return part(log, log.transpose(0, 2, 1)), part(falling, rising)


def random_phases(maps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fields of random phases with the mean spectrum of ``maps`` [N, 64, 64]."""
    spectrum = np.sqrt(np.square(np.abs(np.fft.fft2(maps * np.outer(*[np.hanning(SIDE)] * 2)))).mean(axis=0))
    return np.fft.ifft2(np.fft.fft2(rng.standard_normal(maps.shape)) * spectrum).real


@torch.no_grad()
def main() -> None:
    """Print a line of JSON for each injection point of at least 64 samples and each zoom."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", help="run or snapshot (default: the newest run, else the bundled model)")
    parser.add_argument("--worlds", type=int, default=16, help="(default 16)")
    parser.add_argument("--views", type=int, default=4, help="of each world (default 4)")
    options = parser.parse_args()
    generator = load_snapshot(find_network(options.network)).generator.float().eval()
    synthesis, config = generator.synthesis, generator.config
    ws = generator.mapping(torch.cat([latents(seed, config.z_dim) for seed in range(options.worlds)]))
    rng = np.random.default_rng(0)
    for octave in (2.5, 4.5, 5.5):
        maps: dict[str, list[np.ndarray]] = {}
        for _ in range(options.views):
            zoom = np.full(options.worlds, 2.0**octave)
            centres = rng.uniform(-1, 1, (options.worlds, 2)) * centre_limit(zoom[0])
            views = synthesis.views(view_transform(torch.tensor(zoom), torch.tensor(centres)), ws)
            waves = synthesis.waves(views)
            for name, point in synthesis.points().items():
                if point.size < SIDE or name not in synthesis.mixing:
                    continue
                first = (point.size - SIDE) // 2
                mixture = point.maps(waves[name], ws[:, 0], synthesis.mixing[name])
                inside = mixture[:, :, first : first + SIDE, first : first + SIDE]
                maps.setdefault(name, []).append(inside.flatten(0, 1).numpy())
        for name, found in maps.items():
            mixtures = np.concatenate(found).astype(np.float64)
            row: dict[str, object] = {"injected": name, "zoom": round(2**octave, 1), "maps": len(mixtures)}
            for what, fields in (("mixtures", mixtures), ("random field", random_phases(mixtures, rng))):
                straight, diagonal = explained(fields)
                row[what] = {"rows and columns": round(straight, 3), "diagonals": round(diagonal, 3)}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
