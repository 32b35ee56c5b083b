"""The tiny golden run: 20 steps with all that the objective has, whose losses and weights a refactor must not change.

``python tests/training/golden_run.py`` compares with what was recorded, to the bit: that is of use on the machine and with the
PyTorch that recorded it; ``--record`` writes the file anew.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "golden_run.json"
STEPS = 20
LOGGED = 10
PARTS = (1, 2)
"""In how many parts a step is computed."""


def golden_run(folder: Path, parts: int) -> dict:
    """Losses of the first steps, and digest and mean square of the weights after the last: JSON values."""
    from conftest import small_patches
    from test_trainer import tiny_run

    from multiscale.data.patches import PatchDataset
    from multiscale.runs.journal import read_stats
    from multiscale.training.trainer import Trainer
    from torch_utils.distributed import Process

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        dataset = PatchDataset(small_patches(folder / "p.zip"))
        settings = {
            "augment": "ada",
            "augment_p": 0.3,
            "blur_sigma_px": 2,
            "r1_interval": 4,
            "mirror": True,
            "batch": 4,
        }
        config = tiny_run(dataset, kimg=STEPS * 4 / 1000, consistency_weight=2, snapshot_kimg=1, **settings)
        trainer = Trainer(config, dataset, folder, Process(torch.device("cpu")), 4 // parts)
        trainer.run()
    finally:
        torch.set_num_threads(threads)
    lines = [line for line in read_stats(folder) if "loss/D" in line][:LOGGED]
    losses = {name: [line.get(name) for line in lines] for name in ("loss/D", "loss/G", "loss/r1", "loss/consistency")}
    weights = {name: _flat(getattr(trainer, name)) for name in ("G", "D", "G_ema")}
    return {
        **losses,
        "sha256": {name: hashlib.sha256(values.tobytes()).hexdigest() for name, values in weights.items()},
        "mean square": {name: float(np.square(values.astype(np.float64)).mean()) for name, values in weights.items()},
    }


def _flat(module: torch.nn.Module) -> np.ndarray:
    return torch.cat([p.detach().flatten() for p in module.parameters()]).numpy()


def main() -> None:
    """Compare to the bit, or record."""
    tests = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(tests.parent), str(tests), str(tests / "training")]
    found = {}
    for parts in PARTS:
        with tempfile.TemporaryDirectory() as folder:
            found[f"{parts} parts"] = golden_run(Path(folder), parts)
    if "--record" in sys.argv:
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return
    kept = json.loads(GOLDEN.read_text(encoding="utf-8"))
    different = [f"{run}: {name}" for run in kept for name in kept[run] if kept[run][name] != found[run][name]]
    print("bit-identical" if not different else f"different: {', '.join(different)}")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
