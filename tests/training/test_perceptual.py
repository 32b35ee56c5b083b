"""LPIPS with made-up weights of the right format: its formula, its gradients, and the errors about its files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from conftest import package, small_patches

from dnnlib.errors import UserError
from dnnlib.files import sha256
from multiscale.training import perceptual
from multiscale.training.consistency import consistency_loss
from multiscale.training.launch import Request, resolve, train
from multiscale.training.perceptual import ALEXNET_FILE, LINEAR_FILE, LPIPS, load_lpips

State = dict[str, torch.Tensor]
CONVOLUTIONS = ((0, 3, 64, 11), (3, 64, 192, 5), (6, 192, 384, 3), (8, 384, 256, 3), (10, 256, 256, 3))
"""Of AlexNet: place in the weight file, input and output channels, kernel."""


def made_up_states() -> tuple[State, State]:
    generator = torch.Generator().manual_seed(0)
    alexnet: State = {}
    linear: State = {}
    for level, (index, inputs, outputs, kernel) in enumerate(CONVOLUTIONS):
        weight = torch.randn(outputs, inputs, kernel, kernel, generator=generator)
        alexnet[f"features.{index}.weight"] = weight * (2 / (inputs * kernel**2)) ** 0.5
        alexnet[f"features.{index}.bias"] = torch.randn(outputs, generator=generator) * 0.1
        linear[f"lin{level}.model.1.weight"] = torch.rand(1, outputs, 1, 1, generator=generator)
    return alexnet, linear


@pytest.fixture(scope="module")
def lpips() -> LPIPS:
    return LPIPS(*made_up_states())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with both files, whose checksums are taken for the published ones."""
    for name, state in zip(("ALEXNET_FILE", "LINEAR_FILE"), made_up_states(), strict=True):
        file = getattr(perceptual, name)
        torch.save(state, tmp_path / file.name)
        monkeypatch.setattr(perceptual, name, dataclasses.replace(file, sha256=sha256(tmp_path / file.name)[:8]))
    return tmp_path


def noise(count: int, channels: int = 3, size: int = 64, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_equals_the_formula_layer_by_layer(lpips: LPIPS) -> None:
    a, b = noise(2), noise(2, seed=2)
    alexnet, linear = made_up_states()
    shift, scale = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    conv = torch.nn.functional.conv2d
    expected = torch.zeros(2, 1, 64, 64)
    maps = [(image - shift) / scale for image in (a, b)]
    for level, (index, stride, padding, pool) in enumerate(
        [(0, 4, 2, 0), (3, 1, 2, 1), (6, 1, 1, 1), (8, 1, 1, 0), (10, 1, 1, 0)]
    ):
        weight, bias = alexnet[f"features.{index}.weight"], alexnet[f"features.{index}.bias"]
        maps = [torch.nn.functional.max_pool2d(x, 3, 2) if pool else x for x in maps]
        maps = [conv(x, weight, bias, stride, padding).clamp(min=0) for x in maps]
        units = [torch.nn.functional.normalize(x, dim=1) for x in maps]
        difference = ((units[0] - units[1]) ** 2 * linear[f"lin{level}.model.1.weight"]).sum(1, keepdim=True)
        expected += torch.nn.functional.interpolate(difference, (64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(lpips(a, b), expected, rtol=1e-4, atol=1e-5)


def test_agrees_with_the_package_of_the_authors() -> None:
    theirs = package("lpips").LPIPS(net="alex", pnet_rand=True, spatial=True, verbose=False)
    slices = theirs.net.state_dict().items()
    alexnet = {f"features.{name.split('.', 1)[1]}": tensor for name, tensor in slices}
    ours = LPIPS(alexnet, {name: tensor for name, tensor in theirs.state_dict().items() if name.startswith("lin")})
    a, b = noise(2), noise(2, seed=2)
    with torch.no_grad():
        torch.testing.assert_close(ours(a, b), theirs(a, b), rtol=1e-4, atol=1e-6)


def test_zero_for_identical_images_and_positive_otherwise(lpips: LPIPS) -> None:
    images = noise(2, size=32)
    assert not lpips(images, images).any()
    distance = lpips(images, images.flip(3))
    assert distance.shape == (2, 1, 32, 32)
    assert (distance >= 0).all()
    assert distance.mean() > 0


def test_grey_images_count_as_colourless_ones(lpips: LPIPS) -> None:
    a, b = noise(1, 1), noise(1, 1, seed=2)
    assert torch.equal(lpips(a, b), lpips(a.repeat(1, 3, 1, 1), b.repeat(1, 3, 1, 1)))


def test_gradients_reach_the_images_and_only_them(lpips: LPIPS) -> None:
    fine, coarse = noise(2, size=32).requires_grad_(), noise(2, size=32, seed=2)
    consistency_loss(fine, coarse, torch.tensor([1.0, 1.4]), lpips).backward()
    assert fine.grad is not None
    assert fine.grad.isfinite().all()
    assert all(gradient.abs().max() > 0 for gradient in fine.grad)
    assert not any(parameter.requires_grad for parameter in lpips.parameters())


def test_gradients_are_finite_where_features_vanish(lpips: LPIPS) -> None:
    state, linear = made_up_states()
    state["features.0.bias"] = torch.full((64,), -1e3)
    images = noise(1, size=32).requires_grad_()
    LPIPS(state, linear)(images, noise(1, size=32, seed=2)).sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()


def test_directional_derivative_agrees_with_finite_differences() -> None:
    lpips = LPIPS(*made_up_states())
    a, b, direction = noise(1, size=32), noise(1, size=32, seed=2), noise(1, size=32, seed=3)
    a.requires_grad_()
    (gradient,) = torch.autograd.grad(lpips(a, b).sum(), a)
    step = 1e-3
    with torch.no_grad():
        measured = (lpips(a + step * direction, b).sum() - lpips(a - step * direction, b).sum()) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(measured.item(), rel=0.02)


def test_loads_from_a_folder_and_by_default_from_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = noise(1, size=32), noise(1, size=32, seed=2)
    expected = LPIPS(*made_up_states())(a, b)
    assert torch.equal(load_lpips(folder)(a, b), expected)
    monkeypatch.setenv("MULTISCALE_CACHE", str(folder))
    assert torch.equal(load_lpips()(a, b), expected)


@pytest.mark.parametrize("names", [[ALEXNET_FILE.name], [LINEAR_FILE.name], [ALEXNET_FILE.name, LINEAR_FILE.name]])
def test_missing_files_are_named_with_their_source_and_the_way_around(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).unlink()
    with pytest.raises(UserError) as caught:
        load_lpips(folder)
    message = str(caught.value)
    for file in (ALEXNET_FILE, LINEAR_FILE):
        assert (f"{file.name} (from {file.url})" in message) == (file.name in names)
    assert str(folder) in message
    assert "training.consistency_metric=l1" in message


def test_a_file_with_another_checksum_is_refused(folder: Path) -> None:
    with (folder / LINEAR_FILE.name).open("ab") as stream:
        stream.write(b"!")
    with pytest.raises(UserError, match=r"alex\.pth is not the published file"):
        load_lpips(folder)


@pytest.mark.parametrize("content", [b"", b"not a pickle at all"])
def test_an_unreadable_file_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    (folder / LINEAR_FILE.name).write_bytes(content)
    monkeypatch.setattr(perceptual, "LINEAR_FILE", dataclasses.replace(LINEAR_FILE, sha256=""))
    with pytest.raises(UserError, match="Cannot read"):
        load_lpips(folder)


def test_wrong_weights_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alexnet, linear = made_up_states()
    with pytest.raises(UserError, match=r"features\.8\.weight is missing"):
        LPIPS({k: v for k, v in alexnet.items() if k != "features.8.weight"}, linear)
    with pytest.raises(UserError, match=r"lin2\.model\.1\.weight has shape \[1, 3, 1, 1\]"):
        LPIPS(alexnet, {**linear, "lin2.model.1.weight": torch.zeros(1, 3, 1, 1)})
    torch.save([1, 2], folder / LINEAR_FILE.name)
    monkeypatch.setattr(perceptual, "LINEAR_FILE", dataclasses.replace(LINEAR_FILE, sha256=""))
    with pytest.raises(UserError, match="no table of weights"):
        load_lpips(folder)


def test_images_that_it_cannot_judge_are_refused(lpips: LPIPS) -> None:
    with pytest.raises(UserError, match="32 pixels a side or more and got 16"):
        lpips(noise(1, size=16), noise(1, size=16))
    with pytest.raises(UserError, match="1 or 3 channels and got 4"):
        lpips(noise(1, 4), noise(1, 4))


def test_making_it_leaves_the_random_state_alone() -> None:
    states = made_up_states()
    before = torch.get_rng_state()
    LPIPS(*states)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_trains_with_lpips_once_its_files_are_there(folder: Path, tmp_path: Path) -> None:
    """The same command: L1 alone chosen without the files, LPIPS as well with them."""
    data = str(small_patches(tmp_path / "p.zip", side=32))
    without = resolve(Request(data=data, gpus=0, assignments=[f"training.lpips_folder={tmp_path / 'elsewhere'}"]))
    assert without.config.training.consistency_metric == "l1"
    sets = [f"training.lpips_folder={folder}", "training.consistency_metric=l1+lpips", "training.metrics=null"]
    train(Request(data=data, gpus=0, kimg=0.008, batch=4, outdir=str(tmp_path / "run"), assignments=sets))
    lines = [json.loads(line) for line in (tmp_path / "run" / "stats.jsonl").read_text().splitlines()]
    assert all(0 < line["loss/consistency"] < 100 for line in lines)
