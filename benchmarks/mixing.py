"""Time images of a network and their gradients with features mixed image by image, as it is, and by one product for all.

    python benchmarks/mixing.py [--network FILE] [--batch 8 --device cpu --threads 1] [--out benchmarks/results/NAME.json]

One product of the weights and all images' maps transposes the maps, forward and backward. Both take turns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout's code, whatever else is installed

import torch
from machine import alternate, describe, publish, result_file

from multiscale.networks.fourier import Waves
from multiscale.runs.headers import find_network
from multiscale.runs.snapshots import load_snapshot
from multiscale.view import view_transform


def transposed(waves: Waves, weight: torch.Tensor) -> torch.Tensor:
    """What ``Waves.mixed`` gives, by one product for all images."""
    maps = waves.maps()
    return (weight @ maps.flatten(2)).unflatten(2, maps.shape[2:])


def main() -> None:
    """Measure, print, and write the JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="earth", help="as in generate.py (default earth)")
    parser.add_argument("--batch", type=int, default=8, help="images (default 8)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (default 1)")
    parser.add_argument("--repeats", type=int, default=10, help="turns (default 10)")
    parser.add_argument("--out", type=result_file, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = load_snapshot(find_network(options.network)).generator.to(options.device).train().requires_grad_(True)
    octaves = generator.config.octaves
    z = torch.randn(options.batch, generator.config.z_dim, device=options.device)
    zooms = [2 ** (octaves * (i + 0.5) / options.batch) for i in range(options.batch)]
    transform = view_transform(zooms, [[0.1, -0.1]] * options.batch).to(options.device)

    def run(mixed: Callable[[Waves, torch.Tensor], torch.Tensor]) -> None:
        original = Waves.mixed
        Waves.mixed = mixed  # type: ignore[assignment,method-assign]
        try:
            generator.zero_grad()
            generator(z, transform, update_means=False).square().mean().backward()
        finally:
            Waves.mixed = original  # type: ignore[method-assign]

    as_it_is = Waves.mixed
    times = alternate(
        {"image by image": lambda: run(as_it_is), "transposed": lambda: run(transposed)},
        options.device,
        options.repeats,
    )
    report = {
        "machine": describe(options.threads, options.device),
        "network": options.network,
        "batch": options.batch,
        **{f"{name}, ms": 1e3 * value for name, value in times.items()},
        "ratio": times["image by image"] / times["transposed"],
    }
    publish(report, options.out)


if __name__ == "__main__":
    main()
