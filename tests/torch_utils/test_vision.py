"""Networks of torchvision, also where the package itself cannot be imported."""

import sys
from importlib import util

import pytest

from dnnlib.errors import UserError
from torch_utils import vision

WITHOUT = "--set training.consistency_metric=l1 does without"


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A torchvision whose package fails at import, as one for CUDA does beside a PyTorch for CPUs; returns its folder."""
    folder = tmp_path / "torchvision"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (folder / "models" / "__init__.py").write_text("")
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torchvision"}
    for name in kept:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_networks_are_found_though_compiled_operators_are_not(broken):
    (broken / "models" / "toy.py").write_text("from torchvision.models import __name__ as parent\nclass Toy: pass")
    toy = vision.networks("toy", "LPIPS", WITHOUT)
    assert toy.Toy.__module__ == "torchvision.models.toy"
    assert toy.parent == "torchvision.models"
    assert not [name for name in sys.modules if name.startswith("torchvision")]  # nobody finds half a package


def test_what_cannot_be_imported_is_one_sentence_that_says_why(broken):
    (broken / "models" / "bad.py").write_text("raise OSError('libcudart.so: no such file')")
    with pytest.raises(
        UserError, match=r"^LPIPS needs torchvision, .*\(libcudart\.so: no such file\): install .*=l1 does"
    ):
        vision.networks("bad", "LPIPS", WITHOUT)
    assert "torchvision" not in sys.modules


def test_a_torchvision_that_is_not_there_is_asked_for(monkeypatch):
    monkeypatch.setattr(vision, "PACKAGE", "torchvision_of_nobody")
    assert util.find_spec("torchvision_of_nobody") is None
    with pytest.raises(UserError, match=r"^LPIPS needs torchvision: pip install torchvision; --set"):
        vision.networks("alexnet", "LPIPS", WITHOUT)
