"""How many Fourier features a network really uses: those that share the energy of each octave, in all worlds and in one.

    python benchmarks/features.py [--network FILE] [--worlds 64]

The number that is counted is the participation ratio (sum e)^2 / sum e^2 of the features' energies e in what they are mixed to:
K if all K have the same energy, 1 if one has it all. Octaves are of frequencies in cycles over the world.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout's code, whatever else is installed

import torch

from multiscale.networks.fourier import Waves
from multiscale.networks.generator import FeatureInjection
from multiscale.runs.headers import find_network
from multiscale.runs.snapshots import load_snapshot
from torch_utils.random import latents


def energies(point: FeatureInjection, mixing: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Energy of each feature in the mixture of each world, [B, K].

    Args:
        point: Where features are injected.
        mixing: The parameter that they are mixed by, [C, K].
        w: Worlds, [B, D].
    """
    zero, one = torch.zeros(len(w), len(point.omega), 1), torch.ones(len(w), len(point.omega), 1)
    styled = point.styled(Waves(zero, one, zero, one), w)  # of a phase of 0: sin y and cos y are B and A
    return (styled.sin_y.square() + styled.cos_y.square())[..., 0] * point.weights(mixing).square().sum(dim=0)


def participation(energy: torch.Tensor) -> torch.Tensor:
    """Participation ratio over the last dimension."""
    return energy.sum(dim=-1).square() / energy.square().sum(dim=-1).clamp(min=1e-30)


def main() -> None:
    """Print a line of JSON for each injection point and octave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", help="run or snapshot (default: the newest run, else the bundled model)")
    parser.add_argument("--worlds", type=int, default=64, help="worlds that are averaged over (default 64)")
    options = parser.parse_args()
    path = find_network(options.network)
    generator = load_snapshot(path).generator.float()
    if generator.config.fourier_features is None:
        parser.exit(
            2, f"The features of {path} are not mixed; give a network whose generator.fourier_features is set.\n"
        )
    w = generator.mapping(torch.cat([latents(seed, generator.config.z_dim) for seed in range(options.worlds)]))[:, 0]
    synthesis = generator.synthesis
    for name, point in synthesis.points().items():
        energy = energies(point, synthesis.input_weight if name == "input" else synthesis.mixing[name], w)
        octaves = point.frequency.log2().floor().int()
        for octave in octaves.unique().tolist():
            mine = energy[:, octaves == octave]
            everywhere, once = participation(mine.mean(dim=0)).item(), participation(mine).mean().item()
            row = {"injected": name, "octave": octave, "features": mine.shape[1]}
            print(json.dumps(row | {"in all worlds": round(everywhere, 1), "in one world": round(once, 1)}), flush=True)


if __name__ == "__main__":
    main()
