"""Time the measures: 10,000 patches of a demo model in full, and views, features and comparisons one by one.

    python benchmarks/measures.py [--network RUN|FILE --data patches.zip --procs 4 --count 10000] [--out FILE.json]

Without --data, the procedural planet is drawn first (64 pixels, 6 octaves, 200 patches each); without --network, the bundled
model or the newest run must fit it. Several processes share the CPU's cores; what they use of them together,
``sum_of_cpu_sec``, depends little on what else the machine does. Inception and DINOv2 have random weights here.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, publish, result_file, seconds

from dnnlib.cli import reports_user_errors
from multiscale.data.patches import PatchDataset
from multiscale.data.prepare import make_demo
from multiscale.metrics import dinov2, inception
from multiscale.metrics.features import load_features
from multiscale.metrics.frechet import Moments, frechet_distance, kernel_distance, precision_recall
from multiscale.metrics.parse import parse_metrics
from multiscale.metrics.samples import gathered
from multiscale.metrics.scales import Evaluation
from multiscale.metrics.sliced_wasserstein import sliced_wasserstein
from multiscale.runs.headers import find_network
from multiscale.runs.snapshots import load_snapshot
from torch_utils import distributed
from torch_utils.distributed import Process

CPU = torch.device("cpu")
IMAGES = 4
DINOV2 = {"small": (384, 12), "base": (768, 12), "large": (1024, 24)}


def in_full(process: Process, network: Path, data: str, metrics: str, out: Path) -> None:
    """One process of a whole evaluation; the first one writes how long the parts took."""
    dataset = PatchDataset(data)
    features = load_features("random", dataset.resolution, process.device)
    evaluation = Evaluation(parse_metrics(metrics), dataset, features, process)
    generator = load_snapshot(network).generator.to(process.device)
    start, used = time.perf_counter(), time.process_time()
    evaluation.prepare()
    middle = time.perf_counter()
    evaluation.measure(generator)
    end = time.perf_counter()
    used = sum(gathered(process, time.process_time() - used))
    if process.is_first:
        times = {"real_sec": middle - start, "generated_sec": end - middle, "sum_of_cpu_sec": used}
        out.write_text(json.dumps({"patches": len(dataset), "views": evaluation.total_views(), **times}))


def feature_networks(size: int) -> dict[str, float]:
    """Milliseconds for the features of an image of ``size`` pixels."""
    images = torch.randint(0, 256, (IMAGES, 3, size, size), dtype=torch.uint8)
    networks: dict[str, Any] = {"random": load_features("random", size, CPU)}
    state = {name: torch.rand(shape) / shape[-1] for name, shape in inception.shapes().items()}
    networks["inception"] = inception.Inception(state)
    for name, (width, depth) in DINOV2.items():
        state = {key: 0.02 * torch.randn(shape) for key, shape in dinov2.shapes(width, depth, 37**2 + 1).items()}
        networks[f"dinov2 {name}"] = dinov2.Dinov2(state)
    return {name: 1e3 / IMAGES * seconds(lambda n=network: n(images), repeats=2) for name, network in networks.items()}


def comparisons(count: int, size: int) -> dict[str, float]:
    """Seconds that comparing takes, for features of the usual dimensions and a thousand images."""
    rng = np.random.default_rng(0)
    found = {}
    for name, dimension in (("random", 736), ("dinov2", 1024), ("inception", 2048)):
        x, y = rng.normal(size=(2, count, dimension)).astype(np.float32)
        moments = [Moments(dimension), Moments(dimension)]
        for side, rows in zip(moments, (x, y), strict=True):
            side.add(rows)
        pair = tuple(moments)
        found[f"frechet {name}"] = seconds(lambda p=pair: frechet_distance(*p), repeats=1)
        found[f"kernel {count} {name}"] = seconds(lambda x=x, y=y: kernel_distance(x, y), repeats=1)
        small = x[:1000], y[:1000]
        found[f"precision and recall 1000 {name}"] = seconds(lambda s=small: precision_recall(*s), repeats=1)
    images = rng.integers(0, 256, (2, 256, 3, size, size), dtype=np.uint8)
    found[f"sliced Wasserstein 256 of {size} px"] = seconds(lambda: sliced_wasserstein(*images), repeats=1)
    return found


@reports_user_errors
def main() -> None:
    """Measure, print, and write the JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", help="run or snapshot (default: the newest run, else the bundled model)")
    parser.add_argument("--data", help="patches (default: the procedural planet)")
    parser.add_argument("--procs", type=int, default=4, help="processes that share the CPU (default 4)")
    parser.add_argument("--count", type=int, default=10_000, help="generated patches (default 10000)")
    parser.add_argument("--out", type=result_file, help="JSON file to write")
    options = parser.parse_args()
    network = find_network(options.network)
    config = load_snapshot(network).generator.config
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or str(Path(folder, "patches.zip"))
        if options.data is None:
            make_demo(
                dest=data, resolution=config.img_resolution, octaves=config.octaves, counts=[200] * config.octaves
            )
        metrics, times = f"msfid{options.count},mskid{options.count}", Path(folder, "times.json")
        start = time.perf_counter()
        distributed.run(in_full, [CPU] * options.procs, network, data, metrics, times)
        whole = {"measures": metrics, "total_sec": time.perf_counter() - start, **json.loads(times.read_text())}
    torch.set_num_threads(1)
    size = config.img_resolution
    report = {
        "machine": describe(options.procs),
        "network": {"resolution": size, "octaves": config.octaves, "channel_max": config.channel_max},
        "in_full": whole,
        "features_ms_a_patch_one_thread": feature_networks(size),
        "compare_sec": comparisons(options.count, size),
    }
    publish(report, options.out)


if __name__ == "__main__":
    main()
