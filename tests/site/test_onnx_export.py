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
from multiscale.site.onnx_export import export_graphs, points_of
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
    mapping, synthesis = map(onnxruntime.InferenceSession, export_graphs(generator))
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


def test_weights_that_half_precision_holds_are_stored_in_it():
    generator = load_snapshot(BUNDLED).generator
    whole, weights = sum(map(len, export_graphs(generator))), sum(p.numel() for p in generator.parameters())
    assert 2 * weights < whole < 2.3 * weights


def test_the_operators_are_of_the_stated_version():
    _, synthesis = export_graphs(calibrated_generator(small_config(**MIXED)))
    model = onnx.load_model_from_string(synthesis)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]


def test_frames_of_worlds_are_refused():
    with pytest.raises(UserError, match="world_frame"):
        export_graphs(calibrated_generator(small_config(world_frame=True)))
