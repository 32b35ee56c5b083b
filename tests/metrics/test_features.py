"""Feature networks: weight files that are missing, wrong or right; the networks against plain PyTorch modules."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import package

from dnnlib.errors import UserError
from dnnlib.files import sha256
from multiscale.metrics import dinov2, features, inception
from multiscale.metrics.features import load_features
from multiscale.training.evaluation import OPTIONS

CPU = torch.device("cpu")
FILES = {"inception": features.INCEPTION_FILE.name, "dinov2": features.DINOV2_FILES[0].name}


def images(count: int = 2, size: int = 32, channels: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8)


def inception_state() -> dict[str, torch.Tensor]:
    """Random weights under the published names, with a classifier that is not read."""
    state = {}
    for name, shape in inception.shapes().items():
        values = torch.randn(shape)
        state[name] = values / math.sqrt(values[0].numel() / 2) if len(shape) == 4 else 1 + 0.1 * values
        if name.endswith("running_var"):
            state[name] = state[name].abs()
    return state | {"fc.weight": torch.zeros(8, 4)}


def dinov2_state(width: int = 64, depth: int = 2, grid: int = 5) -> dict[str, torch.Tensor]:
    shapes = dinov2.shapes(width, depth, grid**2 + 1)
    return {name: 0.2 * torch.randn(shape) for name, shape in shapes.items()} | {"mask_token": torch.zeros(1, width)}


STATES = {"inception": inception_state, "dinov2": dinov2_state}


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a state as the weight file of features; the checksum that is asked for is its own."""

    def write(name: str, state: object) -> Path:
        path = tmp_path / FILES[name]
        torch.save(state, path)
        if name == "inception":
            file = dataclasses.replace(features.INCEPTION_FILE, sha256=sha256(path))
            monkeypatch.setattr(features, "INCEPTION_FILE", file)
        else:
            file = dataclasses.replace(features.DINOV2_FILES[0], sha256=sha256(path))
            monkeypatch.setattr(features, "DINOV2_FILES", (file,))
        return path

    return write


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_with_its_source_checksum_and_place(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MULTISCALE_CACHE", str(tmp_path / "cache"))
    for weights in (None, tmp_path, tmp_path / FILES[name]):
        with pytest.raises(UserError) as caught:
            load_features(name, 32, CPU, weights)
        message = str(caught.value)
        assert FILES[name] in message
        assert "https://" in message
        assert len(next(word for word in message.split() if len(word) > 64 and word.endswith("):"))) == 66
        assert str(tmp_path if weights else tmp_path / "cache") in message


@pytest.mark.parametrize("name", FILES)
def test_a_file_with_another_checksum_is_refused(name, tmp_path):
    torch.save({}, tmp_path / FILES[name])
    with pytest.raises(UserError, match="is not the published file: its SHA-256 starts with"):
        load_features(name, 32, CPU, tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_files_of_another_kind_are_refused(name, tmp_path, published):
    state = STATES[name]()
    tensor = {"inception": "Mixed_6c.branch7x7_2.conv.weight", "dinov2": "blocks.1.mlp.fc1.weight"}[name]
    published(name, {key: value for key, value in state.items() if key != tensor})
    with pytest.raises(UserError, match=f"{tensor} is missing"):
        load_features(name, 32, CPU, tmp_path)
    published(name, state | {tensor: torch.zeros(3, 3)})
    with pytest.raises(UserError, match=rf"{tensor} has shape \[3, 3\]"):
        load_features(name, 32, CPU, tmp_path)
    published(name, [1])
    with pytest.raises(UserError, match="no table of weights"):
        load_features(name, 32, CPU, tmp_path)
    published(name, state).write_bytes(b"")
    with pytest.raises(UserError, match="not the published"):
        load_features(name, 32, CPU, tmp_path)


def test_names_and_options_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(UserError, match="did you mean 'inception'"):
        load_features("inceptoin", 32, CPU)
    with pytest.raises(UserError, match="have no weight file"):
        load_features("random", 32, CPU, tmp_path)
    with pytest.raises(UserError, match=r"cls_token.*missing"):
        dinov2.Dinov2({})
    with pytest.raises(UserError, match="a width of 60"):
        dinov2.Dinov2(dinov2_state(60, 0))


def test_what_does_without_torchvision_is_named_as_the_command_takes_it(tmp_path, monkeypatch, published):
    published("inception", {})

    def networks(name, what, without):
        raise UserError(f"{what} needs torchvision; {without}.")

    monkeypatch.setattr(inception.vision, "networks", networks)
    with pytest.raises(UserError, match=r"needs torchvision; --features random does without\.$"):
        load_features("inception", 32, CPU, tmp_path)
    with pytest.raises(UserError, match=r"needs torchvision; --set training.metrics_features=random does without\.$"):
        load_features("inception", 32, CPU, tmp_path, OPTIONS)


def plain_inception(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Inception-v3 written out block by block, with batch normalisation as such; x [B, 3, 299, 299] in [-1, 1]."""
    network = inception.architecture()
    counters = {name: torch.tensor(0) for name in network.state_dict() if name.endswith("num_batches_tracked")}
    network.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")} | counters, assign=True)

    def run(block: str, *names: str, of: torch.Tensor) -> torch.Tensor:
        for name in names:
            of = network.get_submodule(f"{block}.{name}" if block else name)(of)
        return of

    def average(x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    x = run("", "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", of=x)
    x = run("", "Conv2d_3b_1x1", "Conv2d_4a_3x3", of=F.max_pool2d(x, 3, 2))
    x = F.max_pool2d(x, 3, 2)
    for b in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        triple = run(b, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3", of=x)
        pair = run(b, "branch5x5_1", "branch5x5_2", of=x)
        x = torch.cat([run(b, "branch1x1", of=x), pair, triple, run(b, "branch_pool", of=average(x))], 1)
    triple = run("Mixed_6a", "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3", of=x)
    x = torch.cat([run("Mixed_6a", "branch3x3", of=x), triple, F.max_pool2d(x, 3, 2)], 1)
    for b in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        sevens = run(b, "branch7x7_1", "branch7x7_2", "branch7x7_3", of=x)
        double = run(b, *(f"branch7x7dbl_{i}" for i in range(1, 6)), of=x)
        x = torch.cat([run(b, "branch1x1", of=x), sevens, double, run(b, "branch_pool", of=average(x))], 1)
    sevens = run("Mixed_7a", *(f"branch7x7x3_{i}" for i in range(1, 5)), of=x)
    x = torch.cat([run("Mixed_7a", "branch3x3_1", "branch3x3_2", of=x), sevens, F.max_pool2d(x, 3, 2)], 1)
    for b, pool in (("Mixed_7b", average), ("Mixed_7c", lambda x: F.max_pool2d(x, 3, 1, 1))):
        three = run(b, "branch3x3_1", of=x)
        double = run(b, "branch3x3dbl_1", "branch3x3dbl_2", of=x)
        parts = [run(b, "branch1x1", of=x), run(b, "branch3x3_2a", of=three), run(b, "branch3x3_2b", of=three)]
        parts += [run(b, "branch3x3dbl_3a", of=double), run(b, "branch3x3dbl_3b", of=double)]
        x = torch.cat([*parts, run(b, "branch_pool", of=pool(x))], 1)
    return x.mean(dim=(2, 3))


def test_inception_on_a_file_of_random_weights(tmp_path, published):
    state = inception_state()
    network = load_features("inception", 32, CPU, published("inception", state))
    assert network.dimension == 2048
    x = images(1)
    with torch.no_grad():
        expected = plain_inception(state, (inception.resize(x.float()) - 128) / 128).numpy()
    np.testing.assert_allclose(network(x), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_images_are_resized_as_tensorflow_1_does():
    """By a loop over pixels; corners stand on corners, so that a ramp stays one with the slope N/299."""
    image = torch.rand(1, 1, 16, 16, dtype=torch.float64)
    got = inception.resize(image)[0, 0]
    for i, j in ((0, 0), (7, 250), (298, 298), (123, 45)):
        y, x = i * 16 / 299, j * 16 / 299
        (a, b), (c, d) = ([image[0, 0, min(int(y) + p, 15), min(int(x) + q, 15)] for q in (0, 1)] for p in (0, 1))
        fy, fx = y - int(y), x - int(x)
        assert float(got[i, j]) == pytest.approx(
            float((1 - fy) * ((1 - fx) * a + fx * b) + fy * ((1 - fx) * c + fx * d))
        )


def test_inception_agrees_with_torch_fidelity(tmp_path):
    fidelity = package("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path / "weights.pth"
    state = inception_state() | {"fc.weight": torch.randn(1008, 2048), "fc.bias": torch.randn(1008)}
    torch.save(state, path)
    theirs = fidelity.FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    x = images(3, 64)
    expected = theirs(x)[0].detach().numpy()
    np.testing.assert_allclose(
        inception.Inception(state)(x).numpy(), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max()
    )


def plain_dinov2(state: dict[str, torch.Tensor], x: torch.Tensor, heads: int) -> torch.Tensor:
    """The transformer from PyTorch's modules: x [B, 3, 224, 224], normalised; positions of a 16 x 16 grid."""
    width = state["cls_token"].shape[-1]
    x = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=14).flatten(2).mT
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + state["pos_embed"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        layer = torch.nn.LayerNorm(width, eps=1e-6)
        layer.load_state_dict({"weight": state[f"{name}.weight"], "bias": state[f"{name}.bias"]})
        return layer(x)

    for block in (f"blocks.{i}" for i in range(2)):
        attention = torch.nn.MultiheadAttention(width, heads, batch_first=True)
        names = {"in_proj_weight": "qkv.weight", "in_proj_bias": "qkv.bias"}
        names |= {"out_proj.weight": "proj.weight", "out_proj.bias": "proj.bias"}
        attention.load_state_dict({ours: state[f"{block}.attn.{theirs}"] for ours, theirs in names.items()})
        y = norm(f"{block}.norm1", x)
        x = x + attention(y, y, y)[0] * state[f"{block}.ls1.gamma"]
        y = norm(f"{block}.norm2", x) @ state[f"{block}.mlp.fc1.weight"].T + state[f"{block}.mlp.fc1.bias"]
        y = torch.nn.GELU()(y) @ state[f"{block}.mlp.fc2.weight"].T + state[f"{block}.mlp.fc2.bias"]
        x = x + y * state[f"{block}.ls2.gamma"]
    return norm("norm", x)[:, 0]


def test_dinov2_on_a_file_of_random_weights(published):
    state = dinov2_state(width=128, grid=16)
    network = load_features("dinov2", 224, CPU, published("dinov2", state))
    assert network.dimension == 128
    x = images(2, 224)  # neither resized nor its positions interpolated
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (dinov2.COLOUR_MEAN, dinov2.COLOUR_DEVIATION))
    with torch.no_grad():
        expected = plain_dinov2(state, (x / 255 - mean) / deviation, heads=2).numpy()
    np.testing.assert_allclose(network(x), expected, rtol=1e-4, atol=1e-4)
    assert load_features("dinov2", 32, CPU, published("dinov2", dinov2_state()))(images()).shape == (2, 64)


def test_random_features_are_fixed_and_of_every_size():
    x = images(4, 64)
    torch.manual_seed(1)
    first, again = (load_features("random", 64, CPU) for _ in range(2))
    np.testing.assert_array_equal(first(x), again(x))
    np.testing.assert_allclose(np.concatenate([first(x[:1]), first(x[1:])]), first(x), rtol=1e-4, atol=1e-5)
    assert first.identity == again.identity != load_features("random", 32, CPU).identity
    ramp = (torch.arange(3 * 64 * 64) // 7 % 256).to(torch.uint8).reshape(1, 3, 64, 64)
    np.testing.assert_allclose(first(ramp)[0, [0, 30, 100, 300, 735]], FIXED, rtol=1e-3)
    for size in (16, 32, 128):
        grey = images(2, size, channels=1)
        network = load_features("random", size, CPU)
        np.testing.assert_array_equal(network(grey), network(grey.expand(-1, 3, -1, -1)))


FIXED = (0.493829, 2.581921, 2.945288, 1.954367, 0.790191)
