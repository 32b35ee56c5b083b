"""The exported graphs render what PyTorch renders, whatever the network is, at any size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import calibrated_generator, small_config

from dnnlib.errors import UserError
from multiscale.interop.pickles import load_published
from multiscale.rendering.worlds import World
from multiscale.runs.snapshots import BUNDLED, load_snapshot
from multiscale.site import weights
from multiscale.site.onnx_export import export_graphs, points_of
from multiscale.site.weights import MOST_LEVELS, rounded, take_out, weights_of
from multiscale.view import AffineViews, Region
from torch_utils.random import latents

onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnx and onnxruntime: pip install onnx onnxruntime")
onnx = pytest.importorskip("onnx")

PUBLISHED = Path(__file__).parents[1] / "golden/published_a.pkl"
MIXED = {"fourier_features": 96, "channel_max": 16, "num_layers": 6, "num_critical": 1}
NETWORKS = {
    "radial": lambda: calibrated_generator(small_config(octaves=5)),
    "mixed, of both kinds of kernel": lambda: calibrated_generator(
        small_config(**MIXED, conv_kernel=3, radial_filters=False)
    ),
    "styled, grey": lambda: calibrated_generator(
        small_config(**MIXED, feature_style=True, img_channels=1, filter_size=4)
    ),
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
        views = AffineViews.of(transform)
        along = [part.numpy() for point in points_of(generator) for part in along_of(point.waves(views, size))]
        names = [argument.name for argument in synthesis.get_inputs()]
        [image] = synthesis.run(None, dict(zip(names, [ws, *along], strict=True)))
        with torch.no_grad():
            reference = generator.synthesis(expected, transform, size=size).numpy()
        assert image.shape == reference.shape
        assert np.abs(image - reference).max() < 1e-4


def along_of(waves):
    """Waves of one view as the synthesis graph's arguments along_x and along_y."""
    return torch.cat([waves.sin_x, waves.cos_x]), torch.cat([waves.sin_y, waves.cos_y])


def test_what_is_left_of_the_graphs_is_small_and_of_the_stated_version():
    generator = load_snapshot(BUNDLED).generator
    graphs = export_graphs(generator)
    assert [(opset.domain, opset.version) for graph in graphs for opset in graph.opset_import] == [("", 17)] * 2
    assert not [
        node for graph in graphs for node in graph.graph.node if node.op_type in ("Constant", "Cast", "Identity")
    ]
    take_out(graphs, weights_of(generator), 12)
    assert sum(graph.ByteSize() for graph in graphs) < 55_000


def test_weights_are_rounded_to_as_few_bits_as_pixels_allow(monkeypatch):
    generator = load_snapshot(BUNDLED).generator
    before = [parameter.clone() for parameter in generator.parameters()]
    less = rounded(generator)
    assert (less.bits, 0 < less.levels <= MOST_LEVELS) == (11, True)
    assert all(map(torch.equal, before, generator.parameters()))
    for name, parameter in less.generator.named_parameters():
        exact = generator.get_parameter(name)
        off = (parameter - exact).abs().flatten(1).amax(1) if name in weights_of(generator) else parameter - exact
        assert (
            off <= exact.abs().flatten(1).amax(1) / 2 ** (less.bits - 1) if off.ndim and off.any() else off == 0
        ).all()
    transform = Region.of_view(64.0, (0.1, -0.2), 64, 64).transform(64)
    with torch.no_grad():
        one, other = (network(latents(7, 64), transform) for network in (generator, less.generator))
    assert 0 < (one - other).abs().max() * 127.5 < 1
    monkeypatch.setattr(weights, "MOST_LEVELS", 1e-6)
    with pytest.raises(UserError, match=r"Weights of 16 bits change pixels .* use --tiles"):
        rounded(generator)


def test_weights_come_back_as_they_were_rounded():
    less = rounded(calibrated_generator(small_config(**MIXED)))
    generator, graphs = less.generator, export_graphs(less.generator)
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for graph in graphs for tensor in graph.graph.initializer}
    shapes, packed = take_out(graphs, weights_of(generator), less.bits)
    rows, count = sum(rows for rows, _ in shapes), sum(rows * columns for rows, columns in shapes)
    steps = np.repeat(np.frombuffer(packed, "<f4", rows), [columns for rows, columns in shapes for _ in range(rows)])
    lower, upper = np.frombuffer(packed, np.uint8, 2 * count, 4 * rows).reshape(2, count).astype(int)
    values = (lower + 256 * upper - 2 ** (less.bits - 1)) * steps
    external = [t for graph in graphs for t in graph.graph.initializer if t.data_location == t.EXTERNAL]
    assert {tensor.name for tensor in external} == weights_of(generator).keys()
    for tensor in external:
        facts = {entry.key: entry.value for entry in tensor.external_data}
        first = int(facts["offset"]) // 4
        part = values[first : first + int(facts["length"]) // 4].reshape(tuple(tensor.dims))
        np.testing.assert_allclose(part, held[tensor.name], rtol=1e-6)


def test_frames_of_worlds_are_refused():
    with pytest.raises(UserError, match="world_frame"):
        export_graphs(calibrated_generator(small_config(world_frame=True)))
