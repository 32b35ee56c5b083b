"""Published weights give the published images; wrong ones give one sentence."""

import pytest
import torch

from dnnlib.errors import UserError
from multiscale.interop.official import centre_from_official, discriminator_from_official, generator_from_official
from multiscale.view import unchecked_transform


@pytest.fixture(scope="module")
def published(golden):
    g = golden("generator_reference_geometry")
    cfg = g.meta["cfg"]
    arguments = {
        "img_resolution": cfg["res"],
        "channel_base": cfg["cbase"],
        "channel_max": cfg["cmax"],
        "n_bins": cfg["n_bins"],
        "octaves": cfg["smax"],
        "z_dim": cfg["dim"],
        "w_dim": cfg["dim"],
    }
    return g, arguments, generator_from_official(g.weights(), **arguments)


def views(g, generator):
    zoom = torch.exp2(torch.tensor(g.meta["scales"], dtype=torch.float64))
    return unchecked_transform(zoom, centre_from_official(g["transform"][:, :2, 2].double(), generator.plan))


def test_mapping_agrees(published):
    g, _, generator = published
    torch.testing.assert_close(generator.mapping(g["z"]), g["ws"], atol=1e-5, rtol=0)
    torch.testing.assert_close(generator.mapping(g["z"], 0.7), g["ws_psi07"], atol=1e-5, rtol=0)


def test_images_and_activations_agree(published):
    g, _, generator = published
    activations = {}
    hooks = [
        layer.register_forward_hook(lambda module, _, out: activations.__setitem__(module.plan.index, out))
        for layer in generator.synthesis.layers
    ]
    with torch.no_grad():
        image = generator(g["z"], views(g, generator))
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(image, g["image"], atol=1e-4, rtol=0)
    torch.testing.assert_close(activations[3], g["act3"], atol=1e-4, rtol=0)
    for i, name in enumerate(g.meta["layer_names"]):
        width = generator.plan.layers[i].conv_channels
        expected = g[f"act_mean/{name}"][:, :width]
        torch.testing.assert_close(activations[i].mean(dim=[2, 3]), expected, atol=1e-4, rtol=0)


def test_input_features_agree(published):
    g, _, generator = published
    maps = []
    hook = generator.synthesis.layers[0].register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
    with torch.no_grad():
        generator(g["z"], views(g, generator))
    hook.remove()
    torch.testing.assert_close(maps[0], g["fourier_L_in"], atol=1e-4, rtol=0)


def test_imported_generator_survives_a_snapshot(published, tmp_path):
    from multiscale.runs.snapshots import load_snapshot, save_snapshot

    g, _, generator = published
    save_snapshot(tmp_path / "generator-000000000.safetensors", generator, {"kimg": 0})
    again = load_snapshot(tmp_path / "generator-000000000.safetensors").generator
    with torch.no_grad():
        assert torch.equal(again(g["z"], views(g, generator)), generator(g["z"], views(g, generator)))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.pop("mapping.fc1.bias"),
        lambda state: state.update({"synthesis.L9_84_64.bias": torch.zeros(7)}),
        lambda state: [state.pop(name) for name in list(state) if ".L" in name],
    ],
)
def test_wrong_states_are_refused_in_a_sentence(published, spoil):
    g, arguments, _ = published
    state = g.weights()
    spoil(state)
    with pytest.raises(UserError, match="published weights"):
        generator_from_official(state, **arguments)


def test_discriminator_agrees_with_its_gradient(golden):
    g = golden("discriminator")
    discriminator = discriminator_from_official(
        g.weights(),
        img_resolution=g.meta["res"],
        channel_base=g.meta["channel_base"],
        channel_max=g.meta["channel_max"],
    )
    image = g["img"].requires_grad_()
    logits = discriminator(image)
    logits.sum().backward()
    assert (logits - g["logits"]).abs().max() < 1e-4 * g["logits"].abs().max()
    assert (image.grad - g["grad_img"]).abs().max() < 1e-4 * g["grad_img"].abs().max()
