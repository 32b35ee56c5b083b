"""The exported graphs render what PyTorch renders, whatever the network is, at any size."""

import copy
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import calibrated_generator, small_config

import multiscale
from dnnlib.errors import UserError
from multiscale.interop.pickles import load_published
from multiscale.networks.generator import Generator
from multiscale.rendering.worlds import World
from multiscale.runs.headers import BUNDLED
from multiscale.runs.snapshots import load_snapshot
from multiscale.site import weights
from multiscale.site.onnx_export import export_graphs, factors_of_view, points_of
from multiscale.site.weights import MOST_BITS, MOST_LEVELS, rounded, take_out, weights_of
from multiscale.view import Region, view_transform
from torch_utils.random import latents

onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnx and onnxruntime: pip install onnx onnxruntime")
onnx = pytest.importorskip("onnx")

PUBLISHED = Path(__file__).parents[1] / "golden/published_a.pkl"
MIXED = {"fourier_features": 96, "channel_max": 16, "num_layers": 6, "num_critical": 1}


def framed_generator():
    generator = calibrated_generator(small_config(**MIXED, feature_style=True, world_frame=True))
    torch.nn.init.normal_(generator.synthesis.frame.weight)
    return generator.requires_grad_(False)


def gated_generator():
    generator = calibrated_generator(small_config(**MIXED, feature_style=True, feature_gates=True))
    for gate in generator.synthesis.gates.values():
        torch.nn.init.normal_(gate, std=0.3)
    return generator.requires_grad_(False)


NETWORKS = {
    "radial": lambda: calibrated_generator(small_config(octaves=5)),
    "mixed, of both kinds of kernel": lambda: calibrated_generator(
        small_config(**MIXED, conv_kernel=3, radial_filters=False)
    ),
    "styled, grey": lambda: calibrated_generator(
        small_config(**MIXED, feature_style=True, img_channels=1, filter_size=4)
    ),
    "even packets": lambda: calibrated_generator(
        small_config(**MIXED, feature_style=True, even_features=True, feature_bandwidth=0.2)
    ),
    "gated": gated_generator,
    "enveloped": lambda: calibrated_generator(
        small_config(
            **MIXED, n_bins=3, feature_style=True, feature_bandwidth=0.2, feature_envelope=0.5, envelope_octaves=2
        )
    ),
    "in frames of their own": framed_generator,
    "bundled": lambda: load_snapshot(BUNDLED).generator,
    "published": lambda: load_published(PUBLISHED).generator,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_graphs_render_what_pytorch_renders(name):
    torch.manual_seed(0)
    generator = NETWORKS[name]()
    config, step = generator.config, generator.plan.step
    mapping, synthesis = (onnxruntime.InferenceSession(graph.SerializeToString()) for graph in export_graphs(generator))
    largest = 2.0**config.octaves
    for zoom, psi, more in ((1.0, 1.0, (0, 0)), (largest, 0.6, (2 * step, 5 * step))):
        size = (config.img_resolution + more[0], config.img_resolution + more[1])
        transform = Region.of_view(zoom, (0.1, -0.2), *(config.img_resolution,) * 2).transform(config.img_resolution)
        feeds = {"z": latents(3, config.z_dim).numpy(), "psi": np.array([psi], dtype=np.float32)}
        [ws] = mapping.run(None, feeds)
        expected = World.parse(3).ws(generator, psi)
        np.testing.assert_allclose(ws, expected, atol=1e-5)
        [image] = synthesis.run(None, {"ws": ws, **factors_of_view(generator, ws, transform, size)})
        with torch.no_grad():
            reference = generator.synthesis(expected, transform, size=size).numpy()
        assert image.shape == reference.shape
        assert np.abs(image - reference).max() < 1e-4


def test_the_guides_example_runs(tmp_path, monkeypatch):
    guide = (Path(__file__).parents[2] / "docs/python.md").read_text()
    block = next(b for b in re.findall(r"(?<=\n\n)(?: {4}.*\n|\n)+", guide) if "export_graphs" in b)
    monkeypatch.chdir(tmp_path)
    names = {"multiscale": multiscale, "torch": torch, "np": np, "view_transform": view_transform}
    exec(textwrap.dedent(block), names)
    z = torch.from_numpy(names["z"])
    expected = names["model"].generator(z, view_transform(8.0, (-0.089, -0.096)))
    np.testing.assert_allclose(names["image"], expected, atol=1e-4)
    assert onnx.load("synthesis.onnx").graph.input[1].name == "along_x0"


def test_what_is_left_of_the_graphs_is_small_and_of_the_stated_version():
    generator = load_snapshot(BUNDLED).generator
    graphs = export_graphs(generator)
    assert [(opset.domain, opset.version) for graph in graphs for opset in graph.opset_import] == [("", 17)] * 2
    assert not [
        node for graph in graphs for node in graph.graph.node if node.op_type in ("Constant", "Cast", "Identity")
    ]
    take_out(graphs, {name: np.zeros(len(weight), np.int8) for name, weight in weights_of(generator).items()})
    assert sum(graph.ByteSize() for graph in graphs) < 140_000


def test_weights_are_rounded_where_pixels_allow_it():
    generator = load_snapshot(BUNDLED).generator
    before = [parameter.clone() for parameter in generator.parameters()]
    less = rounded(generator)
    assert 0 < less.levels <= MOST_LEVELS
    assert all(map(torch.equal, before, generator.parameters()))
    assert less.steps.keys() == weights_of(generator).keys()
    sizes = []
    for name, parameter in less.generator.named_parameters():
        exact, values = generator.get_parameter(name), parameter.flatten(1) if name in less.steps else None
        if values is None:
            assert torch.equal(parameter, exact)
            continue
        step = torch.from_numpy(2.0 ** (less.steps[name][:, None] / 4)).float()
        multiples = values / step
        torch.testing.assert_close(multiples, multiples.round(), rtol=0, atol=0.01)
        assert ((values - exact.flatten(1)).abs() <= 0.505 * step).all()
        sizes += [(2 * multiples.abs().amax(1) + 1).log2()] * multiples.shape[1]
    bits = torch.cat(sizes)
    assert bits.max() <= MOST_BITS
    assert bits.max() - bits.min() > 3  # spent where they matter
    transform = Region.of_view(64.0, (0.1, -0.2), 64, 64).transform(64)
    with torch.no_grad():
        one, other = (network(latents(7, 64), transform) for network in (generator, less.generator))
    assert 0 < (one - other).abs().max() * 127.5 < 2 * MOST_LEVELS
    turned = torch.cat([turns_of(*pair) for pair in zip(points_of(generator), points_of(less.generator), strict=True)])
    assert 0 < turned.max() < 0.3  # radians: in no world a pair near 0 points elsewhere
    # Alike for all, as many bits as these are on average do more harm.
    ours, theirs = levels_of(generator, less.generator, alike(generator, float(bits.mean())))
    assert ours < 0.8 * theirs


def test_weights_that_cannot_be_rounded_are_refused(monkeypatch):
    monkeypatch.setattr(weights, "MOST_LEVELS", 1e-6)
    with pytest.raises(UserError, match=r"Rounded weights change pixels .* makes one that shows a world of it"):
        rounded(calibrated_generator(small_config(**MIXED)))


def alike(generator, bits):
    """The generator with each row's weights in that many bits."""
    other = copy.deepcopy(generator)
    for name in weights_of(generator):
        values = other.get_parameter(name).flatten(1)
        step = values.abs().amax(1, keepdim=True).clamp(min=1e-8) / (2 ** (bits - 1) - 1)
        other.get_parameter(name).copy_(((values / step).round() * step).view_as(other.get_parameter(name)))
    return other


def turns_of(point, other):
    """By how much the amplitudes (A, B) of a point's features point elsewhere at another, in radians, in 256 worlds."""
    w = torch.nn.functional.normalize(torch.randn(256, point.config.w_dim, generator=torch.Generator().manual_seed(0)))
    pairs = [(w @ each.style.T).unflatten(1, (-1, 2))[:, ~each.anchored].double() for each in (point, other)]
    angle, other_angle = (torch.atan2(pair[..., 0], pair[..., 1]) for pair in pairs)
    return (angle - other_angle + torch.pi).remainder(2 * torch.pi).sub(torch.pi).abs().flatten()


def levels_of(generator, *others):
    """Root mean square difference of pixels of others, of views that rounding has not seen."""
    views = weights._views(generator, "test", 16)
    exact = weights._images(generator, views)
    return [float((exact - weights._images(other, views)).square().mean().sqrt() * 127.5) for other in others]


@pytest.mark.parametrize("factor", [1e-9, 1e-3, 1e3], ids=["finest", "between", "coarsest"])
def test_weights_come_back_as_they_were_rounded(factor):
    generator = calibrated_generator(small_config(**MIXED)).eval()
    generator.synthesis.layers[0].weight.data[0] = 0
    sensitivity = {name: np.linspace(0, 1, len(weight)) for name, weight in weights_of(generator).items()}
    fewest = weights._fewest_bits(generator)
    steps = {
        name: weights._steps(w.numpy(), sensitivity[name], factor, fewest[name])
        for name, w in weights_of(generator).items()
    }
    graphs = export_graphs(generator)
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for graph in graphs for tensor in graph.graph.initializer}
    shapes, parts = take_out(graphs, steps)
    values, read = unpacked(parts, shapes), 0
    external = [t for graph in graphs for t in graph.graph.initializer if t.data_location == t.EXTERNAL]
    assert {tensor.name for tensor in external} == weights_of(generator).keys()
    for tensor in external:
        facts = {entry.key: entry.value for entry in tensor.external_data}
        first = int(facts["offset"]) // 4
        part = values[first : first + int(facts["length"]) // 4].reshape(len(steps[tensor.name]), -1)
        step = 2.0 ** (steps[tensor.name][:, None] / 4)
        assert (np.abs(part - held[tensor.name].reshape(part.shape)) <= 0.505 * step).all()
        read += part.size
    assert read == values.size
    assert max(parts["shifts"]) == {1e-9: 8, 1e3: 0}.get(factor, max(parts["shifts"]))


def unpacked(parts, shapes):
    """Weights as the page reads them, in plain Python integers."""
    lower, read, values = int.from_bytes(parts["lower"], "little"), 0, []
    steps, shifts, upper = (
        np.frombuffer(parts[n], kind) for n, kind in (("steps", "i1"), ("shifts", "u1"), ("upper", "i1"))
    )
    rows = [columns for count, columns in shapes for _ in range(count)]
    for step, shift, columns in zip(steps.tolist(), shifts.tolist(), rows, strict=True):
        for _ in range(columns):
            low = (lower >> read) & (2**shift - 1)
            values.append((int(upper[len(values)]) * 2**shift + low) * 2.0 ** (step / 4))
            read += shift
    assert -(-read // 8) == len(parts["lower"])
    return np.array(values)


def test_packets_in_frames_of_their_own_are_refused():
    generator = Generator(small_config(**MIXED, world_frame=True, feature_bandwidth=0.2))
    with pytest.raises(UserError, match="cannot be exported to a page"):
        export_graphs(generator)
