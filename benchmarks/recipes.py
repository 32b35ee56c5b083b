"""Compare recipes: train variants of a configuration on the same patches, measure them alike, and write a table.

    python benchmarks/recipes.py --data earth32.zip --base demo --variants benchmarks/recipes/demo32.yaml \
        --out out/recipes (--kimg 8 | --cpu-seconds 900) [--seeds 0-2] [--jobs 2] [--only base,wide]

A file of variants has YAML differences by name, with the keys of any config; an empty one is the base itself. Each variant
and seed becomes a run, ``<out>/<name>-seed<k>``, trained by train.py. The same command typed again goes on where it
stopped; what is trained and measured already is kept. Ctrl-C or SIGTERM keeps the state of the runs.

Beside a run's folder stand its configuration, its output (``.log``) and its measures (``.json``, kept by the snapshot's
SHA-256); in the folder of all, ``table.md``, ``table.json`` and ``sheet.png``, one world of each variant.

``--kimg`` gives all runs equal images, ``--cpu-seconds`` equal time: a run's first steps tell what an image costs it.
The table has the means over seeds and half the range between them; it leaves with exit code 1 if any run failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout's code, whatever else is installed

import numpy as np
import torch
import yaml
from machine import describe, environment_of_checkout

from dnnlib.cli import reports_user_errors
from dnnlib.errors import UserError, nearest_name
from dnnlib.files import atomic_write, sha256
from dnnlib.machine import available_cores
from dnnlib.pictures import grid
from dnnlib.signals import Ended
from multiscale.config import RunConfig, build, check_keys, load_preset, load_yaml, merge, to_dict
from multiscale.data.patches import PatchDataset
from multiscale.metrics.features import load_features
from multiscale.metrics.measure import Metric
from multiscale.metrics.parse import parse_metrics
from multiscale.metrics.reals import content_digest
from multiscale.metrics.scales import Evaluation
from multiscale.rendering.files import save_picture
from multiscale.rendering.renderer import Renderer, nearest_centre, to_uint8
from multiscale.rendering.request import parse_worlds
from multiscale.rendering.sheets import SHEET_CENTRE
from multiscale.runs.folder import began_with
from multiscale.runs.journal import read_stats
from multiscale.runs.snapshots import load_snapshot
from multiscale.training.estimate import networks_on_meta
from multiscale.training.launch import choose_preset, data_layer
from multiscale.view import Region
from torch_utils.devices import choose_devices
from torch_utils.distributed import Process

ROOT = Path(__file__).resolve().parent.parent
METRICS = "msfid_octave300,mskid_octave300,swd256,consistency24,spectrum256,lattice64,precision_recall300,diversity64"
PROBED_STEPS = 48
"""First steps of a run that tell what an image costs it, where time is given."""
WARM_UP = 1 / 3
"""Part of the first steps that does not count."""
SHEET_ZOOMS = (1, 4, 16, 64)
REPORT_SEC = 60.0
ALIKE = {"kimg": "--kimg or --cpu-seconds", "seed": "--seeds", "metrics": "--metrics"}
"""Settings of training that options decide, for all variants."""


@dataclass(frozen=True)
class Run:
    """A variant with a seed, and its files."""

    variant: str
    seed: int
    config: RunConfig
    folder: Path

    @property
    def name(self) -> str:
        """Of its folder and its files."""
        return self.folder.name

    def file(self, suffix: str) -> Path:
        """One of those beside the folder."""
        return self.folder.with_name(self.name + suffix)

    def images(self, kimg: float) -> int:
        """Images after which a run of this length ends."""
        batch = self.config.training.batch
        return max(math.ceil(kimg * 1000 / batch), 1) * batch

    def snapshot(self, kimg: float) -> Path:
        """The mean generator at that length."""
        return self.folder / f"generator-{self.images(kimg):09d}.safetensors"


def load_variants(path: str, only: str | None) -> dict[str, dict[str, Any]]:
    """Differences by name, of those that are wanted.

    Raises:
        UserError: the file cannot be read, or a name or a key in it is not allowed.
    """
    variants = {str(name): values or {} for name, values in load_yaml(path).items()}
    for name, values in variants.items():
        if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise UserError(f"Variant {name!r} in {path} becomes a folder; give letters, digits, '-', '_' and '.'.")
        check_keys(RunConfig, values, f"variant {name} in {path}")
        for key, option in ALIKE.items():
            if key in values.get("training", {}):
                raise UserError(
                    f"Variant {name} in {path} has training.{key}, which is the same for all; leave it out and give {option}."
                )
    wanted = list(variants) if only is None else [name.strip() for name in only.split(",") if name.strip()]
    for name in wanted:
        if name not in variants:
            raise UserError(f"There is no variant {name!r} in {path}{nearest_name(name, variants)}")
    if not wanted:
        raise UserError(f"{path} has no variants; write some as 'name: {{generator: {{channel_base: 1024}}}}'.")
    return {name: variants[name] for name in wanted}


def plan_runs(options: argparse.Namespace, dataset: PatchDataset) -> list[Run]:
    """All runs, in the order of the variants, with their whole configurations."""
    is_file = Path(options.base).is_file() or Path(options.base).suffix
    layers = [data_layer(dataset), load_preset(choose_preset(dataset) if is_file else options.base)]
    layers += [load_yaml(options.base)] if is_file else []
    runs = []
    for name, values in load_variants(options.variants, options.only).items():
        for seed in options.seeds:
            fixed = {"training": {"seed": seed, "metrics": None}}
            config = build(RunConfig, merge(*layers, values, fixed), source=f"variant {name}")
            runs.append(Run(name, seed, config, options.out / f"{name}-seed{seed}"))
    return runs


def write_config(run: Run) -> None:
    """Write a run's whole configuration beside it; its length is not part of it.

    Raises:
        UserError: the run was begun with another one.
    """
    path, values = run.file(".yaml"), to_dict(run.config)
    for section in values.values():
        section.pop("kimg", None)
    if path.exists() and run.folder.exists():
        began = load_yaml(path)
        changed = [
            f"{section}.{key}: {began.get(section, {}).get(key, 'default')} -> {value}"
            for section, settings in values.items()
            for key, value in settings.items()
            if began.get(section, {}).get(key, default_of(section, key)) != value
        ]
        if changed:
            raise UserError(
                f"{run.folder} was begun with other settings ({'; '.join(changed)}); give another --out, or remove it."
            )
        return
    with atomic_write(path, "w") as stream:
        yaml.safe_dump(values, stream, sort_keys=False)


def check_data(out: Path, data: str) -> None:
    """A folder of runs belongs to one set of patches.

    Raises:
        UserError: its runs were trained on other patches.
    """
    path, digest = out / "data.json", content_digest(data)
    if not path.exists():
        with atomic_write(path, "w") as stream:
            json.dump({"data": Path(data).name, "sha256": digest}, stream)
    elif (held := json.loads(path.read_text()))["sha256"] != digest:
        raise UserError(f"The runs in {out} were trained on other patches ({held['data']}); give another --out.")


def default_of(section: str, key: str) -> Any:
    """What a run has had that began before there was such a setting."""
    return to_dict(RunConfig())[section][key]


class Stopped(Exception):
    """The user asked to stop."""


class Workers:
    """Processes that train and measure, so many at a time, each with its share of the cores.

    They have a session of their own: Ctrl-C reaches this program alone, which then asks each of them to stop.
    """

    def __init__(self, threads: int) -> None:
        self.environment = environment_of_checkout() | {"OMP_NUM_THREADS": str(threads)}
        self.stopping = threading.Event()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._first, self._is_first = threading.Lock(), True

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first one in such a block is there alone: it looks at the real patches, and the others find what it found."""
        with self._first:
            if self._is_first:
                yield
                self._is_first = False
                return
        yield

    def run(self, words: Sequence[object], log: Path) -> None:
        """Run a Python program to its end, its output at the end of ``log``.

        Raises:
            Stopped: we were asked to stop.
            RuntimeError: it failed; the message is its last line.
        """
        with open(log, "ab") as stream:
            begin = stream.tell()
            with self._lock:
                if self.stopping.is_set():
                    raise Stopped
                process = subprocess.Popen(
                    [sys.executable, *map(str, words)],
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    env=self.environment,
                    start_new_session=True,
                )
                self._running.add(process)
            code = process.wait()
            with self._lock:
                self._running.discard(process)
        if self.stopping.is_set():
            raise Stopped
        if code:
            said = log.read_bytes()[begin:].decode(errors="replace").split("\n")
            last = next((line for line in reversed(said) if line.strip()), "it said nothing")
            raise RuntimeError(f"{last.strip()} (exit code {code}; {log})")

    def stop(self) -> None:
        """Ask all to stop, and start no others."""
        with self._lock:
            self.stopping.set()
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()


def train(run: Run, options: argparse.Namespace, kimg: float, workers: Workers, *more: str) -> None:
    """Train a run up to ``kimg``, or go on with it; nothing if it has been there."""
    if run.snapshot(kimg).exists():
        return
    began = began_with(run.folder)
    if began and began[0].training.lr_end < 1 and began[0].training.kimg != kimg:
        raise RuntimeError(
            f"{run.folder} began with a length of {began[0].training.kimg:g} kimg, in whose second half its rates fall; give "
            f"that and not {kimg:g}, or another --out."
        )
    words = [ROOT / "train.py", "--data", options.data, "--config", run.file(".yaml"), "--outdir", run.folder]
    workers.run([*words, "--kimg", repr(kimg), "--gpus", options.gpus, *more], run.file(".log"))
    if not run.snapshot(kimg).exists():
        raise RuntimeError(
            f"{run.folder} has no snapshot of {kimg:g} kimg: it was trained further; give a larger --kimg."
        )


def kimg_of(run: Run, options: argparse.Namespace, workers: Workers) -> float:
    """The run's length: what was given, or what fits the time; that is decided once, and kept."""
    if options.kimg is not None:
        return options.kimg
    path = run.file(".budget.json")
    if path.exists() and (kept := json.loads(path.read_text()))["cpu_seconds"] == options.cpu_seconds:
        return kept["kimg"]
    batch = run.config.training.batch
    # Rates that fall do so in the second half of the whole run, and not of its first steps.
    train(run, options, PROBED_STEPS * batch / 1000, workers, "--set", "training.lr_end=1")
    cost = cpu_seconds_an_image(read_stats(run.folder), until=PROBED_STEPS * batch)
    if cost is None:
        raise RuntimeError(f"{run.folder} does not tell the CPU time of its steps; remove it, or give --kimg.")
    kimg = max(int(options.cpu_seconds / cost / batch), PROBED_STEPS) * batch / 1000
    with atomic_write(path, "w") as stream:
        json.dump({"cpu_seconds": options.cpu_seconds, "cpu_seconds_an_image": cost, "kimg": kimg}, stream)
    say(f"{run.name}: {cost:.3g} CPU seconds an image, so {kimg:g} kimg in {options.cpu_seconds:g} s")
    return kimg


def cpu_seconds_an_image(stats: Sequence[Mapping[str, Any]], until: float = math.inf) -> float | None:
    """Mean over a run's statistics but for the first steps; None where they do not tell."""
    lines = [line for line in stats if "seconds/cpu" in line and line["kimg"] * 1000 <= until + 0.5]
    ends = [line["kimg"] * 1000 for line in lines]
    images = np.diff([0.0, *ends])
    steps = np.array([line["seconds/cpu"] for line in lines])
    batches = np.array([line["seconds/step"] * line["img/s"] for line in lines])
    late = np.array(ends) > min(WARM_UP * max(ends, default=0), 1000)
    if not late.any():
        return None
    return float((steps / batches * images)[late].sum() / images[late].sum())


def measure(run: Run, options: argparse.Namespace, kimg: float, workers: Workers) -> dict[str, Any]:
    """The measures of a run's mean generator, computed once for each snapshot."""
    key = {
        "sha256": sha256(run.snapshot(kimg)),
        "data_sha256": content_digest(options.data),
        "metrics": options.metrics,
    }
    path = run.file(".json")
    if path.exists():
        with contextlib.suppress(ValueError):
            held = json.loads(path.read_text())
            if held.get("key") == key:
                return held["results"]
    words = [Path(__file__).resolve(), "--measure", run.snapshot(kimg), "--data", options.data]
    words += ["--metrics", options.metrics, "--gpus", options.gpus, "--out", path]
    say(f"{run.name}: {kimg:g} kimg, measuring")
    with workers.first_alone():
        workers.run(words, run.file(".log"))
    results = json.loads(path.read_text())
    with atomic_write(path, "w") as stream:
        json.dump({"key": key, "kimg": kimg, "results": results}, stream)
    return results


def measure_here(options: argparse.Namespace) -> None:
    """In a process of its own: all measures of one snapshot, written as JSON."""
    dataset, process = PatchDataset(options.data), Process(choose_devices(options.gpus)[0])
    features = load_features("random", dataset.resolution, process.device)
    metrics, digest = parse_metrics(options.metrics), content_digest(options.data)
    evaluation = Evaluation(metrics, dataset, features, process, digest=digest)
    evaluation.prepare()
    results, _ = evaluation.measure(load_snapshot(options.measure).generator.to(process.device))
    with atomic_write(options.out, "w") as stream:
        json.dump(results, stream)


def complete(run: Run, options: argparse.Namespace, workers: Workers) -> dict[str, Any]:
    """Train and measure a run: all that a table says of it."""
    started = time.perf_counter()
    write_config(run)
    kimg = kimg_of(run, options, workers)
    train(run, options, kimg, workers)
    trained = time.perf_counter()
    results = measure(run, options, kimg, workers)
    stats = [line for line in read_stats(run.folder) if "img/s" in line and line["kimg"] <= kimg + 1e-6]
    say(
        f"{run.name}: done, {kimg:g} kimg (training {trained - started:.0f} s, "
        f"measures {time.perf_counter() - trained:.0f} s)"
    )
    g, d = (sum(p.numel() for p in network.parameters()) for network in networks_on_meta(run.config))
    return {
        "kimg": run.images(kimg) / 1000,
        "snapshot": run.snapshot(kimg).relative_to(options.out).as_posix(),
        "images_per_sec": float(np.median([line["img/s"] for line in stats])),
        "cpu_seconds_an_image": cpu_seconds_an_image(stats),
        "g_parameters": g,
        "d_parameters": d,
        "results": results,
    }


def say(text: str) -> None:
    """A line of progress, with the time."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def report_progress(runs: Sequence[Run], ended: set[str], until: threading.Event) -> None:
    """Say every minute how far the runs are."""
    while not until.wait(REPORT_SEC):
        parts = []
        for run in runs:
            lines = [] if run.name in ended else [line for line in read_stats(run.folder) if "img/s" in line]
            if lines:
                parts.append(f"{run.name} {lines[-1]['kimg']:.2f} kimg, {lines[-1]['img/s']:.3g} img/s")
        if parts:
            say("; ".join(parts))


def complete_all(
    runs: Sequence[Run], options: argparse.Namespace, workers: Workers
) -> tuple[dict[tuple[str, int], dict[str, Any]], list[str]]:
    """What is known of each run by variant and seed, and the failures."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    failures: list[str] = []
    ended: set[str] = set()

    def work(run: Run) -> None:
        try:
            found[run.variant, run.seed] = complete(run, options, workers)
        except Stopped:
            pass
        except Exception as error:  # the others go on
            failures.append(f"{run.name}: {error}")
            say(f"FAILED {failures[-1]}")
        ended.add(run.name)

    over = threading.Event()
    reporter = threading.Thread(target=report_progress, args=(runs, ended, over), daemon=True)
    reporter.start()
    with ThreadPoolExecutor(options.jobs) as pool:
        by_seed = sorted(runs, key=lambda run: options.seeds.index(run.seed))  # all variants come up early
        futures = [pool.submit(work, run) for run in by_seed]
        try:
            wait(futures)
        except (KeyboardInterrupt, Ended):
            say("Stopping: the runs keep their states; the same command goes on.")
            workers.stop()
            raise
        finally:
            over.set()
    return found, failures


@dataclass(frozen=True)
class Column:
    """A number, or one for each octave, of every run."""

    title: str
    key: str
    of: Callable[[Mapping[str, Any]], Any]
    digits: int = 3
    as_difference: bool = False
    """In the second table: the difference, for decibels; else the ratio."""
    compared: bool = True


def columns_for(metrics: Sequence[Metric]) -> list[Column]:
    """Those of the measures that were taken, and of cost."""

    columns = [
        Column(
            column.title or metric.name,
            metric.name if column.key == "value" else f"{metric.name}_{column.key}",
            lambda record, name=metric.name, key=column.key: record["results"][name][key],  # type: ignore[misc]
            digits=column.digits,
            as_difference=column.in_decibels,
        )
        for metric in metrics
        for column in metric.kind.columns
    ]
    return [
        *columns,
        Column("kimg", "kimg", lambda r: r["kimg"], compared=False),
        Column("img/s", "images_per_sec", lambda r: r["images_per_sec"]),
        Column("CPU s/img", "cpu_seconds_an_image", lambda r: r["cpu_seconds_an_image"]),
        Column("G", "g_parameters", lambda r: r["g_parameters"]),
        Column("D", "d_parameters", lambda r: r["d_parameters"]),
    ]


def summarise(records: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> dict[str, Any]:
    """Mean over a variant's seeds and half the range between them, by column."""
    summary = {}
    for column in columns:
        values = [column.of(record) for record in records]
        if any(value is None for value in values):
            continue
        rows = np.array(values, dtype=np.float64)
        low, high = rows.min(axis=0), rows.max(axis=0)
        summary[column.key] = {
            "mean": rows.mean(axis=0).tolist(),
            "half_range": ((high - low) / 2).tolist(),
            "least": low.tolist(),
            "most": high.tolist(),
        }
    return summary


def table(summaries: Mapping[str, Mapping[str, Any]], columns: Sequence[Column], seeds: Mapping[str, int]) -> list[str]:
    """Markdown: a row for each variant."""
    rows = []
    for name, summary in summaries.items():
        cells = []
        for column in columns:
            entry = summary.get(column.key)
            cells.append("" if entry is None else cell(entry, column.digits))
        rows.append([name, str(seeds[name]), *cells])
    return markdown(["variant", "seeds", *(column.title for column in columns)], rows)


def cell(entry: Mapping[str, Any], digits: int) -> str:
    """A mean and its half range, or the means by octave."""
    if isinstance(entry["mean"], list):
        return " ".join(short(value, digits) for value in entry["mean"])
    spread = entry["half_range"]
    return short(entry["mean"], digits) + (f" ± {short(spread, 2)}" if spread else "")


def ratio_table(summaries: Mapping[str, Mapping[str, Any]], columns: Sequence[Column]) -> list[str]:
    """Markdown: each variant over the first; '=' where the ranges of their seeds overlap."""
    (first, reference), *others = summaries.items()
    compared = [column for column in columns if column.compared]
    rows = []
    for name, summary in others:
        cells = []
        for column in compared:
            ours, theirs = summary.get(column.key), reference.get(column.key)
            cells.append("" if ours is None or theirs is None else " ".join(ratios(ours, theirs, column)))
        rows.append([name, *cells])
    return markdown([f"over {first}", *(column.title for column in compared)], rows)


def ratios(ours: Mapping[str, Any], theirs: Mapping[str, Any], column: Column) -> Iterator[str]:
    """One for each octave, or a single one."""
    keys = ("mean", "least", "most")
    for (a, a_least, a_most), (b, b_least, b_most) in zip(
        zip(*(np.atleast_1d(ours[key]) for key in keys), strict=True),
        zip(*(np.atleast_1d(theirs[key]) for key in keys), strict=True),
        strict=True,
    ):
        if a_least <= b_most and b_least <= a_most:
            yield "="
        elif column.as_difference:
            yield f"{a - b:+.1f} dB"
        else:
            yield "" if b == 0 else f"{a / b:.2f}"


def short(value: float, digits: int) -> str:
    """So many digits that say something, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 10_000:
        return f"{value / 1000:.{digits}g} k" if abs(value) < 999_500 else f"{value / 1e6:.{digits}g} M"
    return f"{value:.{max(digits - 1 - math.floor(math.log10(abs(value))), 0)}f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]


def report(runs: Sequence[Run], found: Mapping[tuple[str, int], dict[str, Any]], options: argparse.Namespace) -> None:
    """Write the tables and print them."""
    columns = columns_for(parse_metrics(options.metrics))
    records = {name: [r for (variant, _), r in sorted(found.items()) if variant == name] for name in names_of(runs)}
    records = {name: held for name, held in records.items() if held}
    if not records:
        return
    summaries = {name: summarise(held, columns) for name, held in records.items()}
    seeds = {name: len(held) for name, held in records.items()}
    budget = f"{options.kimg:g} kimg" if options.kimg is not None else f"{options.cpu_seconds:g} CPU seconds"
    lines = [
        f"{Path(options.data).name}, base {options.base}, {budget}, features random; mean over seeds ± half their range.",
        "",
        *table(summaries, columns, seeds),
    ]
    if len(summaries) > 1:
        note = "" if min(seeds.values()) > 1 else " With one seed nobody knows the scatter."
        first = next(iter(summaries))
        lines += ["", f"Over {first}; '=' where the ranges of the seeds overlap.{note}", ""]
        lines += ratio_table(summaries, columns)
    text = "\n".join(lines) + "\n"
    content = {
        "machine": describe(options.threads),
        "data": Path(options.data).name,
        "base": options.base,
        "budget": {"kimg": options.kimg, "cpu_seconds": options.cpu_seconds},
        "variants": load_variants(options.variants, options.only),
        "summaries": summaries,
        "runs": {f"{name}-seed{seed}": record for (name, seed), record in sorted(found.items())},
    }
    with atomic_write(options.out / "table.json", "w") as stream:
        json.dump(content, stream, indent=1)
    with atomic_write(options.out / "table.md", "w") as stream:
        stream.write(text)
    print(text)


def write_sheet(
    runs: Sequence[Run], found: Mapping[tuple[str, int], dict[str, Any]], options: argparse.Namespace
) -> None:
    """One world of each variant at a few zooms, at twice the trained size where the model is fine enough."""
    rows = {}
    for run in runs:
        if (run.variant, run.seed) not in found or run.variant in rows:
            continue
        snapshot = load_snapshot(options.out / found[run.variant, run.seed]["snapshot"])
        renderer = Renderer(snapshot.generator, torch.device("cpu"))
        rows[run.variant] = [view(renderer, zoom) for zoom in SHEET_ZOOMS if zoom <= renderer.max_zoom]
        titles = [f"{zoom}x" for zoom in SHEET_ZOOMS if zoom <= renderer.max_zoom]
    if rows:
        save_picture(options.out / "sheet.png", grid(list(rows.values()), titles, list(rows)), {})


def view(renderer: Renderer, zoom: float) -> np.ndarray:
    """World 0 about the usual place: uint8 [2N, 2N, C]; at the deepest zoom its N x N pixels, doubled."""
    pixels = 2 * renderer.resolution
    fits = pixels * zoom <= renderer.world_px
    side = pixels if fits else renderer.resolution
    image = to_uint8(renderer.image(0, Region.of_view(zoom, nearest_centre(SHEET_CENTRE, zoom), side, side)))
    return image if fits else image.repeat(2, axis=0).repeat(2, axis=1)


def names_of(runs: Sequence[Run]) -> list[str]:
    """Variants, in their order."""
    return list(dict.fromkeys(run.variant for run in runs))


def parse_seeds(text: str) -> list[int]:
    """``"0,1"`` or ``"0-2"`` -> [0, 1] or [0, 1, 2], as generate.py reads them, but of plain seeds only."""
    try:
        worlds = parse_worlds(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if mixtures := [world for world in map(str, worlds) if not world.isdecimal()]:
        raise argparse.ArgumentTypeError(f"{mixtures[0]} is not a seed of a training; write seeds such as 0,1 or 0-2")
    return [int(str(world)) for world in worlds]


def parse_options() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="patches")
    parser.add_argument(
        "--base", default="demo", help="preset or YAML file that the variants differ from (default demo)"
    )
    parser.add_argument("--variants", default=str(ROOT / "benchmarks/recipes/demo32.yaml"), help="YAML of differences")
    parser.add_argument("--only", metavar="A,B", help="only these variants, in this order")
    parser.add_argument(
        "--out", type=Path, default=Path("out/recipes"), help="folder of all runs (default out/recipes)"
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--kimg", type=float, help="length of every run in thousands of images")
    budget.add_argument("--cpu-seconds", type=float, help="instead: CPU time of every run's steps")
    parser.add_argument("--seeds", type=parse_seeds, default=[0], metavar="0-2", help="of each variant (default 0)")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, which share the cores, or OMP_NUM_THREADS (default 1)"
    )
    parser.add_argument("--gpus", type=int, default=0, help="CUDA devices of a run (default 0: the CPU)")
    parser.add_argument("--metrics", default=METRICS, help="as in calc_metrics.py")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # of one snapshot, into the file --out
    options = parser.parse_args()
    for name in ("kimg", "cpu_seconds", "jobs"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:  # nor NaN
            parser.error(f"--{name.replace('_', '-')} must be a number above 0")
    if options.measure is None and options.kimg is None and options.cpu_seconds is None:
        parser.error("give --kimg or --cpu-seconds")
    return options


@reports_user_errors
def main() -> None:
    """Train, measure, and write the tables and the sheet."""
    options = parse_options()
    if options.measure is not None:
        measure_here(options)
        return
    parse_metrics(options.metrics)
    threads = torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else available_cores()
    options.threads = max(threads // options.jobs, 1)
    torch.set_num_threads(options.threads)
    dataset = PatchDataset(options.data)
    runs = plan_runs(options, dataset)
    check_data(options.out, options.data)
    say(f"{len(runs)} runs in {options.out}, {options.jobs} at a time with {options.threads} threads each")
    found, failures = complete_all(runs, options, Workers(options.threads))
    report(runs, found, options)
    write_sheet(runs, found, options)
    if failures:
        print("Failed:\n" + "\n".join(f"  {text}" for text in failures), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
