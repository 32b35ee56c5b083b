"""How relief of generated land differs from that of real land, view by view: what distances of distributions pass over.

    python benchmarks/relief.py --data earth64.zip [--network FILE] [--views 400]

For each octave, real patches and as many views of a network are looked through for those that are land nearly everywhere (red
above blue: of the Earth), and what is printed is the median over these of

contrast   root mean square of the detail, what a blur of 2 pixels takes away, in levels of 255;
patchy     how its local energy varies within a view, standard deviation over mean: 0 if all places are alike;
kurtosis   of the detail: 3 if its values are normally distributed, as in a sum of many waves;
direction  power of the weakest of 12 directions over their mean, from an eighth to three eighths of the sampling rate.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout's code, whatever else is installed

import numpy as np
import torch
from machine import describe, publish, result_file
from scipy.ndimage import gaussian_filter

from dnnlib.cli import reports_user_errors
from dnnlib.errors import UserError
from multiscale.data.patches import PatchDataset
from multiscale.metrics.samples import patch_views, quantised
from multiscale.metrics.spectra import plane_power, relative_power
from multiscale.runs.headers import find_network
from multiscale.runs.snapshots import load_snapshot

LAND = 0.85
"""Part of a view's pixels that are land, at least."""
DETAIL_PX, LOCAL_PX = 2, 4
"""Standard deviations of the blurs that detail is above, and that its energy is averaged over, in pixels."""
DIRECTIONS = 12
BATCH = 16


def is_land(image: np.ndarray) -> bool:
    """Whether a view, uint8 [3, N, N], is land nearly everywhere."""
    return bool((image[0] > image[2]).mean() >= LAND)


def relief(image: np.ndarray) -> dict[str, float]:
    """The measures of one view, uint8 [3, N, N]."""
    grey = image.mean(axis=0, dtype=np.float64)
    detail = grey - gaussian_filter(grey, DETAIL_PX)
    energy = gaussian_filter(detail**2, LOCAL_PX)
    mean = (detail**2).mean()
    return {
        "contrast": float(np.sqrt(mean)),
        "patchy": float(energy.std() / energy.mean()),
        "kurtosis": float((detail**4).mean() / mean**2),
        "direction": weakest_direction(plane_power(torch.from_numpy(image)[None])[0]),
    }


def weakest_direction(power: torch.Tensor) -> float:
    """Of a spectrum [N, N] by :func:`relative_power` the mean in the weakest sector over that in all."""
    size = len(power)
    frequency = np.fft.fftfreq(size, 1 / size)
    y, x = np.meshgrid(frequency, frequency, indexing="ij")
    length, angle = np.hypot(x, y), np.arctan2(y, x) % np.pi
    kept = (length >= size / 8) & (length < size * 3 / 8)
    sector = np.minimum((angle[kept] / np.pi * DIRECTIONS).astype(int), DIRECTIONS - 1)
    means = np.bincount(sector, relative_power(power).numpy()[kept]) / np.bincount(sector)
    return float(means.min() / means.mean())


def medians(images: list[np.ndarray]) -> dict[str, float]:
    """Of those views that are land: how many there are, and the medians of their measures."""
    rows = [relief(image) for image in images if is_land(image) and image.std(axis=(1, 2)).min() > 0]
    found = {name: round(float(np.median([row[name] for row in rows])), 3) for name in (rows[0] if rows else ())}
    return {"views": len(rows), **found}


@reports_user_errors
def main() -> None:
    """Print the medians by octave, real and generated, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="patches of the Earth")
    parser.add_argument("--network", help="run or snapshot (default: the newest run, else the bundled model)")
    parser.add_argument("--views", type=int, default=400, help="of each octave (default 400)")
    parser.add_argument("--out", type=result_file, help="JSON file to write")
    options = parser.parse_args()
    dataset = PatchDataset(options.data)
    generator = load_snapshot(find_network(options.network)).generator.float().eval()
    if dataset.num_channels != 3 or generator.config.img_channels != 3:
        raise UserError("Land is told by its colour; give patches and a network of three channels.")
    rows: list[dict[str, Any]] = []
    for octave in range(dataset.octaves):
        own = np.flatnonzero(dataset.patch_octaves == octave)
        chosen = np.random.default_rng(octave).permutation(own)[: options.views]
        made: list[np.ndarray] = []
        for start in range(0, options.views, BATCH):
            indices = range(start, min(start + BATCH, options.views))
            z, transform = patch_views(0, f"relief {octave}", indices, dataset.labels[own], generator.config.z_dim)
            with torch.no_grad():
                made += list(quantised(generator(z, transform)).numpy())
        row = {
            "octave": octave,
            "real": medians([dataset[int(i)][0] for i in chosen]),
            "generated": medians(made),
        }
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    publish(
        {"machine": describe(torch.get_num_threads()), "data": Path(options.data).name, "octaves": rows}, options.out
    )


if __name__ == "__main__":
    main()
