"""Modules from elsewhere, by entry point or by name, add measures, discriminators and readers of patches."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import small_patches

from dnnlib.errors import UserError
from dnnlib.extensions import VARIABLE, import_extensions
from multiscale.cli.calc_metrics import main as calc_metrics
from multiscale.config import DiscriminatorConfig
from multiscale.data.container import READERS
from multiscale.data.patches import PatchDataset
from multiscale.metrics import measure
from multiscale.metrics.compare import compare
from multiscale.networks.discriminator import ARCHITECTURES, make_discriminator

MODULE = """
from multiscale.data.archive import ZipSource
from multiscale.data.container import READERS
from multiscale.metrics.compare import PatchKind
from multiscale.metrics.measure import KINDS
from multiscale.networks.discriminator import ARCHITECTURES, ResidualDiscriminator

class Mine(ResidualDiscriminator):
    pass

KINDS.add(PatchKind(name="mine", description="of my own", count=8, per="octave", needs=frozenset({"images"}), measured=dict))
ARCHITECTURES["mine"] = Mine
READERS[".mine"] = ZipSource
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of modules, after which all is as before."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(measure.KINDS, "_kinds", dict(measure.KINDS))
    monkeypatch.setattr(measure.KINDS, "_loaded", False)
    import_extensions.cache_clear()
    yield tmp_path
    import_extensions.cache_clear()
    sys.modules.pop("my_parts", None)
    ARCHITECTURES.pop("mine", None)
    READERS.pop(".mine", None)


def install(place: Path) -> None:
    """As pip leaves a package of this entry point."""
    info = place / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[multiscale]\nparts = my_parts\n")


@pytest.mark.parametrize("how", ["entry point", "variable"])
def test_a_module_from_elsewhere_adds_what_names_are_looked_up_for(place, monkeypatch, how):
    (place / "my_parts.py").write_text(MODULE)
    if how == "variable":
        monkeypatch.setenv(VARIABLE, " my_parts,")
    else:
        install(place)
    assert "mine" in measure.KINDS
    assert "of my own; 8 of each octave" in CliRunner().invoke(calc_metrics, ["--help"]).output
    config = DiscriminatorConfig(architecture="mine", channel_base=64, channel_max=16)
    network = make_discriminator(config, img_resolution=16, img_channels=3, octaves=2)
    assert type(network).__name__ == "Mine"
    patches = small_patches(place / "p.zip", octaves=2).rename(place / "p.mine")
    assert len(PatchDataset(patches)) == 16


@pytest.mark.parametrize(
    "value, said", [("numpy.float32(3)", None), ("object()", "The result of the measure mine holds object")]
)
def test_a_result_may_be_of_numpy_and_must_be_of_numbers(place, monkeypatch, value, said):
    lines = f"import numpy\n{MODULE}".replace("measured=dict", f"measured=lambda patches: {{'value': {value}}}")
    (place / "my_parts.py").write_text(lines)
    monkeypatch.setenv(VARIABLE, "my_parts")
    metric = measure.Metric("mine", "mine", 8)
    if said is None:
        assert json.dumps(compare(metric, None, None, {})) == '{"value": 3.0}'
    else:
        with pytest.raises(UserError, match=said):
            compare(metric, None, None, {})


def test_without_them_the_names_are_unknown(place):
    (place / "my_parts.py").write_text(MODULE)
    assert "mine" not in measure.KINDS
    with pytest.raises(UserError, match="no discriminator of architecture 'mine'"):
        make_discriminator(DiscriminatorConfig(architecture="mine"), img_resolution=16, img_channels=3, octaves=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "ModuleNotFoundError: No module named 'my_parts'"), ("1 / 0", "ZeroDivisionError: division by zero")],
)
def test_one_that_cannot_be_imported_is_a_sentence(place, monkeypatch, text, message):
    if text:
        (place / "my_parts.py").write_text(text)
    monkeypatch.setenv(VARIABLE, "my_parts")
    with pytest.raises(UserError, match=rf"my_parts, which {VARIABLE} names, cannot be imported \({message}\)"):
        import_extensions()
    for words in (["--help"], ["--data", "p.zip", "--metrics", "swd"]):
        done = CliRunner().invoke(calc_metrics, words)
        assert done.exit_code == 2
        assert done.stderr.startswith("Error: The module my_parts, ")
        assert done.stderr.count("\n") == 1
