"""Measures by name."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import calibrated_generator, small_config, small_patches

from dnnlib.errors import UserError
from multiscale.data.patches import PatchDataset
from multiscale.metrics import measures
from multiscale.metrics.compare import PatchKind
from multiscale.metrics.measure import KINDS
from multiscale.metrics.parse import DEFAULT, parse_metric, parse_metrics
from multiscale.metrics.scales import Evaluation
from torch_utils.distributed import Process


@pytest.mark.parametrize(
    ("text", "kind", "count"),
    [
        ("msfid10k", "msfid", 10_000),
        ("msfid_octave1k", "msfid_octave", 1000),
        ("mskid50", "mskid", 50),
        ("swd", "swd", 256),
        (" truth7 ", "truth", 7),
    ],
)
def test_a_name_may_say_how_many(text, kind, count):
    metric = parse_metric(text)
    assert (metric.kind_name, metric.count, metric.name) == (kind, count, text.strip())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("msfdi10k", "did you mean 'msfid'"),
        ("fid", "allowed: |did you mean"),
        ("msfid-1", "There is no measure"),
        ("msfid1", "asks for 1 samples; give 2 to"),
        ("precision_recall5", "give 8 to"),
        ("msfid9999k", "asks for 9999000"),
        ("", "No measure was named"),
    ],
)
def test_what_is_no_measure_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_metrics(text)


def test_lists_keep_their_order_and_drop_repetitions():
    assert [m.name for m in parse_metrics("swd,msfid1k,swd, spectrum")] == ["swd", "msfid1k", "spectrum"]
    assert [m.name for m in parse_metrics(["swd", "msfid1k"])] == ["swd", "msfid1k"]
    assert [m.name for m in parse_metrics("swd,msfid1000,swd256,msfid1k,swd8")] == ["swd", "msfid1000", "swd8"]
    assert {m.kind_name for m in parse_metrics(DEFAULT)} <= set(KINDS)


def test_every_file_of_measures_is_found_and_has_names_of_its_own():
    files = {path.stem for path in Path(measures.__path__[0]).glob("*.py")} - {"__init__"}
    modules = {kind.measured.__module__.rpartition(".")[2] for kind in KINDS.values()}
    assert modules == files
    assert len(KINDS) == len(set(KINDS)) >= len(files)
    with pytest.raises(ValueError, match="two measures of the name 'swd'"):
        KINDS.add(KINDS["swd"])


def test_naming_measures_loads_none_of_them():
    program = "import multiscale.metrics.parse, multiscale.training.status, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_measure_from_outside_is_measured_like_all(tmp_path, monkeypatch):
    """One object that says what it needs is all that a new measure takes."""
    monkeypatch.setattr(KINDS, "_kinds", dict(KINDS))
    KINDS.add(
        PatchKind(
            name="brightness",
            description="mean brightness, fake less real",
            count=4,
            per="coarsest",
            needs=frozenset({"images"}),
            measured=lambda patches: {"value": float(np.subtract(*(np.mean(i[0]) for i in patches.images([0]))))},
        )
    )
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    generator = calibrated_generator(small_config(img_resolution=16, octaves=3, channel_max=16, channel_base=128))
    evaluation = Evaluation(parse_metrics("brightness,seam1"), dataset, None, Process(torch.device("cpu")))
    results, patches = evaluation.measure(generator)
    assert list(results) == ["brightness", "seam1"]
    assert -255 < results["brightness"]["value"] < 255
    assert patches[0].images.shape[0] == 4
    assert evaluation.total_views() == 4 + 3 * 8
