"""Time training steps: what each phase takes, and what each optimisation saves, all in one run.

    python benchmarks/steps.py [--config demo --resolution 64 --octaves 6 --device cpu --threads 4] [--set a.b=c ...]
                               [--out benchmarks/results/NAME.json]

Patches are noise: a step costs the same whatever they show. Phases are timed on their own, with a wait for the device
around each; variants are whole steps without such waits, which take turns. A variant's ratio is its time over that of the
step as it is: above 1, the optimisation that it lacks saves time.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import alternate, describe, peak_bytes, publish, result_file
from PIL import Image

from dnnlib.cli import reports_user_errors
from dnnlib.progress import Stopwatch
from multiscale.config import RunConfig, build, load_preset, merge, parse_assignment
from multiscale.data.patches import PatchDataset
from multiscale.training import trainer as trainer_module
from multiscale.training.estimate import chooses_replays
from multiscale.training.launch import data_layer
from multiscale.training.trainer import Trainer
from torch_utils.distributed import Process

Step = Callable[[], None]
PATCHES_PER_OCTAVE = 64
HALF = ("generator.num_half_res=0", "discriminator.num_half_res=0")


def noise_patches(path: Path, resolution: int, octaves: int) -> PatchDataset:
    """A set of noise, which PNG cannot compress: the dearest to decode."""
    rng = np.random.default_rng(0)
    labels = []
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(PATCHES_PER_OCTAVE * octaves):
            stream = io.BytesIO()
            Image.fromarray(rng.integers(256, size=(resolution, resolution, 3), dtype=np.uint8)).save(stream, "PNG")
            archive.writestr(f"{i:05d}.png", stream.getvalue())
            labels.append([f"{i:05d}.png", i % octaves + float(rng.uniform(0.01, 1))])
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    return PatchDataset(path)


class Bench:
    """Trainers of variants of one run."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.device = torch.device(options.device, 0) if options.device == "cuda" else torch.device(options.device)
        self.dataset = noise_patches(folder / "noise.zip", options.resolution, options.octaves)

    def trainer(self, *assignments: str, parts: int = 1) -> Trainer:
        """A new one, with settings that are not as in the step as it is."""
        given = [*self.options.assignments, *assignments]
        layers = [
            data_layer(self.dataset),
            load_preset(self.options.config),
            {"training": {"consistency_metric": "l1"}},
        ]
        config = build(RunConfig, merge(*layers, *map(parse_assignment, given)))
        batch = config.training.batch
        replay = chooses_replays(config, batch // parts, batch, self.device)
        return Trainer(config, self.dataset, self.folder, Process(self.device), batch // parts, replay=replay)

    def step(self, *assignments: str, parts: int = 1, ops: str = "auto", again: bool = False) -> Step:
        """A whole step with its data; ``again``: G's step generates anew what D's step has generated already.

        Steps with R1 come up as often as in training: a call takes ``r1_interval`` steps.
        """
        trainer = self.trainer(*assignments, parts=parts)
        batches = trainer._batches()
        if again:
            generator_step = trainer._generator_step
            trainer._generator_step = lambda parts, _: generator_step(parts, None)  # type: ignore[method-assign]

        def run() -> None:
            os.environ["MULTISCALE_OPS"] = ops
            for _ in range(self.options.steps):
                trainer.train_step(*next(batches))
            self.wait()

        return run

    def warm_up(self, trainer: Trainer, batches: Iterator[Any]) -> None:
        """Steps until all is as it stays: one, or until the networks' calls are recorded."""
        for _ in range(1 if trainer.objective.replays is None else 24):
            trainer.train_step(*next(batches))
        self.wait()

    def wait(self) -> None:
        """Until the device has done all."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def phases(self, steps: int, parts: int = 1) -> dict[str, float]:
        """Milliseconds of a step by phase; what runs inside another phase is not counted to that."""
        trainer = self.trainer(parts=parts)
        watch, inside = Stopwatch(), ["other"]

        @contextmanager
        def phase(name: str) -> Iterator[None]:
            self.wait()
            watch.lap(inside[-1])
            inside.append(name)
            yield
            self.wait()
            watch.lap(inside.pop())

        def timed(owner: Any, method: str, name: str) -> None:
            original = getattr(owner, method)

            def run(*arguments: Any, **more: Any) -> Any:
                with phase(name):
                    return original(*arguments, **more)

            setattr(owner, method, run)

        timed(trainer, "_part", "data to the device, draws")
        timed(trainer, "_discriminator_step", "D")
        timed(trainer.objective, "generate", "generating, forward")
        timed(trainer, "_regularise", "R1")
        timed(trainer, "_generator_step", "G, and both backward passes through it")
        timed(trainer.objective, "consistency", "consistency, forward")
        timed(trainer, "_optimise", "optimisers and averages of gradients")
        timed(trainer, "_update_ema", "EMA")
        if trainer.augment is not None:
            timed(trainer.augment, "forward", "augmentation, forward")
        batches = trainer._batches()
        self.warm_up(trainer, batches)
        watch.clear()
        for _ in range(steps):
            with phase("data"):
                batch = next(batches)
            trainer.train_step(*batch)
        self.wait()
        watch.lap("other")
        return {name: 1e3 * seconds / steps for name, seconds in sorted(watch.seconds.items())}

    def kernel_share(self, steps: int, parts: int = 1) -> float:
        """Part of the time of steps in which the GPU is at work."""
        trainer = self.trainer(parts=parts)
        batches = trainer._batches()
        self.warm_up(trainer, batches)
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profiler:
            watch = Stopwatch()
            for _ in range(steps):
                trainer.train_step(*next(batches))
            self.wait()
            watch.lap("steps")
        busy = sum(event.self_device_time_total for event in profiler.key_averages())
        return busy / 1e6 / watch.seconds["steps"]


def peak(options: argparse.Namespace, folder: str, parts: int) -> int:
    """Bytes that the first two steps take beyond the weights; for a process of its own, whose memory is untouched."""
    torch.set_num_threads(options.threads)
    trainer = Bench(options, Path(folder)).trainer(parts=parts)
    batches = trainer._batches()
    batch = next(batches)
    return peak_bytes(lambda: [trainer.train_step(*batch) for _ in range(2)], options.device)


def run_of(options: argparse.Namespace) -> dict[str, Any]:
    """What was typed of the run."""
    return {key: getattr(options, key) for key in ("config", "resolution", "octaves", "assignments")}


def brief(options: argparse.Namespace, bench: Bench) -> dict[str, Any]:
    """What ``--brief`` asks for: whole steps, their phases and the memory at their peak, without variants."""
    trainer = bench.trainer(parts=options.parts)
    batches = trainer._batches()

    def steps(count: int) -> float:
        watch = Stopwatch()
        for _ in range(count):
            trainer.train_step(*next(batches))
        bench.wait()
        watch.lap("steps")
        return watch.seconds["steps"] / count

    taken = peak_bytes(lambda: bench.warm_up(trainer, batches), options.device)
    step, batch = steps(options.brief), trainer.config.training.batch
    return {
        "batch": batch,
        "parts": options.parts,
        "ms_per_step": 1e3 * step,
        "images_per_sec": batch / step,
        "ms_by_phase": bench.phases(options.brief, options.parts),
        "peak_mib": taken / 2**20,
        **({"gpu_busy": bench.kernel_share(options.brief, options.parts)} if options.device == "cuda" else {}),
    }


@reports_user_errors
def main() -> None:
    """Measure, print, and write the JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="demo", help="preset (default demo)")
    parser.add_argument("--resolution", type=int, default=64, help="side of the patches (default 64)")
    parser.add_argument("--octaves", type=int, default=6, help="octaves of the patches (default 6)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--threads", type=int, default=4, help="threads of PyTorch (default 4)")
    parser.add_argument("--repeats", type=int, default=3, help="turns (default 3)")
    parser.add_argument("--steps", type=int, default=16, help="steps in a turn (default 16, one of them with R1)")
    parser.add_argument("--brief", type=int, metavar="STEPS", help="time so many steps as they are, and no variants")
    parser.add_argument("--parts", type=int, default=1, help="parts of a batch, with --brief (default 1)")
    parser.add_argument("--set", dest="assignments", action="append", default=[], help="a setting, as in train.py")
    parser.add_argument("--compile", action="store_true", help="try torch.compile of D, too")
    parser.add_argument("--out", type=result_file, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    trainer_module.save_picture = lambda *_: None  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        if options.brief:
            head = {"machine": describe(options.threads, options.device), "run": run_of(options)}
            publish(head | brief(options, bench), options.out)
            return
        batch = bench.trainer().config.training.batch
        variants = {
            "as it is": bench.step(),
            "ops in PyTorch": bench.step(ops="reference"),
            "fakes generated twice": bench.step(again=True),
            "in two parts": bench.step(parts=2),
            "R1 in every step": bench.step("training.r1_interval=1"),
            "no consistency": bench.step("training.consistency_weight=0"),
            "with augmentation, p 0.5": bench.step("training.augment=fixed", "training.augment_p=0.5"),
        }
        if options.compile:
            variants["compiled D"] = bench.step("training.compile_discriminator=true")
        if options.device == "cuda":
            variants["without CUDA graphs"] = bench.step("training.cuda_graphs=false")
            variants["float32 everywhere"] = bench.step(*HALF)
            variants["TF32"] = bench.step("training.tf32=true")
            variants["bfloat16"] = bench.step("generator.half_dtype=bfloat16", "discriminator.half_dtype=bfloat16")
        for run in variants.values():
            run()  # memory is taken, kernels are chosen
        peaks = {}
        for parts in (parts for parts in (1, 2, 4) if batch % parts == 0):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                peaks[f"{batch // parts} images at a time"] = pool.submit(peak, options, folder, parts).result()
        times = alternate(variants, options.device, options.repeats, calls_on_gpu=1)
        phases = bench.phases(options.steps)
        share = {"gpu_busy": bench.kernel_share(8)} if options.device == "cuda" else {}
    step = times["as it is"] / options.steps
    report = {
        "machine": describe(options.threads, options.device),
        "run": run_of(options),
        "batch": batch,
        "ms_per_step": 1e3 * step,
        "images_per_sec": batch / step,
        "sec_per_kimg": 1000 * step / batch,
        "ms_by_phase": phases,
        "waiting_for_data": phases["data"] / sum(phases.values()),
        "times_over_step_as_it_is": {name: value / times["as it is"] for name, value in times.items()},
        "peak_mib_of_first_steps": {name: value / 2**20 for name, value in peaks.items()},
        **share,
    }
    publish(report, options.out)


if __name__ == "__main__":
    main()
