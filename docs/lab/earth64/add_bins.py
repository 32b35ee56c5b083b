"""Add bins in between: networks of n bins, o octaves apart, as networks of 2n - 1 bins, o/2 apart, that draw the same.

    python docs/lab/earth64/add_bins.py networks.pt networks7.pt

Features keep their frequencies, phases, styles and weights; those of the new bins are drawn as at the start of a run, and weigh
nothing until they are trained. The written file is for ``train.py --transfer``, with the printed settings.
"""

import argparse
import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # this checkout's code, whatever else is installed

import torch

from dnnlib.files import atomic_write
from multiscale.config import GeneratorConfig, RunConfig, build
from multiscale.networks.generator import Generator
from multiscale.networks.plan import make_plan


def waves_by_point(config: GeneratorConfig) -> dict[str, int]:
    """Features of each injection point, by the name of its module."""
    plan = make_plan(config)
    behind = {f"injections.{layer.index}": layer.waves for layer in plan.layers if layer.features}
    return {"input": plan.input_waves, **behind}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("dest", type=Path)
    args = parser.parse_args()
    held = torch.load(args.source, weights_only=True)
    settings = held["config"]["generator"]
    old, n = build(RunConfig, held["config"]).generator, settings["n_bins"]
    before, bins = waves_by_point(old), 2 * n - 1
    settings.update(n_bins=bins, bin_offset=settings["bin_offset"] / 2)
    for count in itertools.count(settings["fourier_features"] + 1):
        settings["fourier_features"] = count
        after = waves_by_point(build(RunConfig, held["config"]).generator)
        if all(after[point] // bins >= -(-before[point] // n) for point in before):
            break
    torch.manual_seed(7)
    fresh = Generator(build(RunConfig, held["config"]).generator).state_dict()
    for state in (held["G"], held["G_ema"]):
        for point, count in before.items():
            index = torch.arange(count)
            place = index // n * bins + 2 * (index % n)  # the i-th feature of bin b becomes the i-th of bin 2b
            name = f"synthesis.{point}."
            for part in ("omega", "phase"):
                state[name + part] = fresh[name + part].index_copy(0, place, state[name + part])
            mixed = fresh[name + "style"].unflatten(0, (-1, 2))
            style = state[name + "style"].to(mixed).unflatten(0, (-1, 2))
            state[name + "style"] = mixed.index_copy(0, place, style).flatten(0, 1).half()
            name = "synthesis.input_weight" if point == "input" else f"synthesis.mixing.{point.split('.')[1]}"
            weight = torch.zeros(len(state[name]), after[point])
            weight[:, place] = state[name].float() * (after[point] / count) ** 0.5
            state[name] = weight.half()
    with atomic_write(args.dest) as temporary:
        torch.save(held, temporary)
    print(*(f"--set generator.{key}={settings[key]:g}" for key in ("n_bins", "bin_offset", "fourier_features")))


if __name__ == "__main__":
    main()
