"""Three lines of Python: the same pixels as the commands, worlds mixed, films and pyramids; and the guide's examples run."""

import json
import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import calibrated_generator, small_config
from PIL import Image

import multiscale
from dnnlib.errors import UserError
from multiscale.cli.generate import main as generate
from multiscale.rendering.renderer import to_uint8
from multiscale.runs.headers import BUNDLED
from multiscale.runs.snapshots import save_snapshot
from multiscale.view import view_transform
from torch_utils.random import latents

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "generator-000000000.safetensors"
    save_snapshot(path, calibrated_generator(small_config(octaves=3, num_layers=6, num_critical=1)), {"kimg": 1.5})
    return multiscale.load(path)


def test_views_are_those_of_the_command(tmp_path):
    world = multiscale.load(BUNDLED).world(seed=3)
    for name, options, view in (
        ("a.png", ["--scale", "64", "--centre", "0.1,-0.2"], world.view(scale=64, centre=(0.1, -0.2))),
        ("b.png", ["--scale", "3", "--size", "96x64"], world.view(scale=3, size=(96, 64))),
    ):
        command = ["--seed", "3", "--network", str(BUNDLED), "--out", str(tmp_path / name), *options]
        assert CliRunner().invoke(generate, command).exit_code == 0
        assert np.array_equal(np.asarray(Image.open(tmp_path / name)), np.asarray(view))


def test_a_model_says_what_it_is(model):
    assert (model.octaves, model.resolution, model.info) == (3, 32, {"kimg": 1.5})
    assert not model.generator.training
    assert repr(model) == "<model generator-000000000.safetensors: 32 x 32 pixels, 3 octaves, on cpu>"
    assert repr(model.world(3, 0.5)) == "<world 3 at truncation 0.5 of generator-000000000.safetensors>"


def test_arrays_are_not_rounded(model):
    world = model.world(1)
    exact = world.array(scale=2, centre=(0.1, 0), size=(40, 24))
    assert (exact.shape, exact.dtype) == ((24, 40, 3), np.float32)
    view = world.view(scale=2, centre=(0.1, 0), size=(40, 24))
    assert np.array_equal(to_uint8(torch.from_numpy(exact).movedim(-1, 0)), np.asarray(view))


def test_what_is_finer_than_the_model_is_enlarged_or_extrapolated(model):
    world = model.world(1)
    finest = np.asarray(world.view(scale=8, size=32), dtype=float)
    enlarged = np.asarray(world.view(scale=8, size=96), dtype=float)
    assert enlarged.shape == (96, 96, 3)
    assert np.abs(enlarged.reshape(32, 3, 32, 3, 3).mean(axis=(1, 3)) - finest).mean() < 6
    extrapolated = np.asarray(world.view(scale=8, size=96, extrapolate=True), dtype=float)
    assert np.abs(extrapolated - enlarged).mean() > 0.1


def test_worlds_are_mixed(model):
    mixed = model.world(3).mixed(model.world(7), 0.25)
    assert mixed.view() == model.world("3~7:0.25").view()
    assert model.world(3).mixed(7, 0.0).view() == model.world(3).view()
    assert str(mixed.mixed(9, -0.5).world) == "3~7:0.25~9:-0.5"
    between = model.world(1).mixed(mixed, 0.5)
    torch.testing.assert_close(between.ws, model.world(1).ws.lerp(mixed.ws, 0.5))
    torch.testing.assert_close(
        model.world(1).mixed("3_7@2-4").ws, model.world(1).ws.lerp(model.world("3_7@2-4").ws, 0.5)
    )
    with pytest.raises(UserError, match="two models"):
        model.world(1).mixed(multiscale.load(model.path).world(2))


def test_each_world_of_a_mixture_keeps_its_own_truncation(model, tmp_path):
    calm, full = model.world(3, 0.5), model.world(7)
    torch.testing.assert_close(full.mixed(calm, 0.25).ws, full.ws.lerp(calm.ws, 0.25))
    torch.testing.assert_close(calm.mixed(full, 0.25).ws, calm.ws.lerp(full.ws, 0.25))
    torch.testing.assert_close(calm.mixed(7, 0.25).ws, calm.ws.lerp(model.world(7, 0.5).ws, 0.25))  # a seed has none
    torch.testing.assert_close(full.mixed(calm.mixed(9), 0.25).ws, full.ws.lerp(calm.mixed(9).ws, 0.25))
    assert str(calm.mixed(model.world(7, 0.5), 0.25).world) == "3~7:0.25"  # the same: as text
    frames = full.film(tmp_path / "frames", worlds=[calm], seconds=1, fps=2, size=32)
    np.testing.assert_array_equal(Image.open(frames / "frame-00001.png"), calm.view(size=32))


def test_numbers_may_be_tensors_and_arrays(model):
    world = model.world(3)
    expected = world.view(2, (0.125, -0.125), (48, 32))
    for kind in (np.array, torch.tensor, lambda values: [np.float32(v) if isinstance(v, float) else v for v in values]):
        assert world.view(np.float32(2), kind([0.125, -0.125]), kind([48, 32])) == expected
    assert world.view(torch.tensor(2), torch.tensor([0.125, -0.125]).requires_grad_(), (np.int64(48), 32)) == expected
    assert world.strip(torch.tensor([0.125, -0.125])) == world.strip((0.125, -0.125))
    assert world.mixed(7, torch.tensor(0.25)).world == world.mixed(7, 0.25).world


def test_a_world_is_made_of_a_latent(model, tmp_path):
    z = latents(3, model.generator.config.z_dim)[0]
    world = model.world(z)
    assert (
        world.view()
        == model.world(3).view()
        == model.world(z.numpy()).view()
        == model.world(z.clone().requires_grad_()).view()
    )
    assert world.mixed(7, 0.25).view() == model.world("3~7:0.25").view()
    assert model.world(7).mixed(z, 0.25).view() == model.world("7~3:0.25").view()
    assert model.world(-z).view() != world.view()
    assert str(world.world) == str(model.world(z).world) != str(model.world(-z).world)
    film = world.film(tmp_path / "a.mp4", (2, 0, 0), seconds=0.5, fps=4, size=32)
    with av.open(film) as opened:
        facts = json.loads(opened.metadata["comment"])
    assert facts["world"] == str(world.world)
    assert torch.equal(torch.tensor(facts["latents"][facts["world"]]), z)


def test_a_world_is_made_of_styles(model, tmp_path):
    truncated = model.world(3, 0.5)
    world = model.world(truncated.ws.requires_grad_())
    assert world.view() == truncated.view()
    assert torch.equal(model.world(truncated.ws[0].numpy()).ws, truncated.ws)
    ws = truncated.ws
    ws[:, 4:] = torch.randn(1, ws.shape[1] - 4, ws.shape[2], generator=torch.Generator().manual_seed(0))  # of no latent
    found = model.world(ws)
    names = [str(model.world(each).world) for each in (ws, ws[0], truncated.ws)]
    assert names[0] == names[1] != names[2]
    torch.testing.assert_close(found.mixed(7, 0.25).ws, ws.lerp(model.world(7).ws, 0.25))
    torch.testing.assert_close(truncated.mixed(ws, 0.25).ws, truncated.ws.lerp(ws, 0.25))
    frames = found.film(tmp_path / "frames", worlds=[5], seconds=1, fps=2, size=32)
    with Image.open(frames / "frame-00000.png") as image:
        np.testing.assert_array_equal(image, found.view(size=32))
        facts = json.loads(image.text["multiscale"])
    assert facts["world"] == [names[0], "5"]
    assert torch.equal(torch.tensor(facts["styles"][names[0]]), ws[0])
    assert "latents" not in facts
    found.pyramid(tmp_path / "w.dzi")
    assert json.loads((tmp_path / "w_files/made-of.json").read_text())["world"] == names[0]
    with pytest.raises(UserError, match="holds other tiles"):
        world.pyramid(tmp_path / "w.dzi")


def test_worlds_have_the_styles_that_render_them(model):
    worlds = [model.world("3~7:0.25", 0.5), model.world(5)]
    images = model.generator.synthesis(torch.cat([world.ws for world in worlds]), view_transform(2.0, (0.1, 0)))
    for world, image in zip(worlds, images, strict=True):
        np.testing.assert_allclose(image.movedim(0, -1), world.array(2, (0.1, 0)), atol=2e-3)
    worlds[0].ws.zero_()
    assert worlds[0].ws.any()


def test_films_and_pyramids(model, tmp_path):
    world = model.world(2)
    frames = world.film(
        tmp_path / "frames", worlds=[world.mixed(4), "5"], start=(2, 0, 0), loop=True, seconds=1, fps=6, size=32
    )
    for i, shown in ((0, world), (2, world.mixed(4)), (4, model.world(5))):
        with Image.open(frames / f"frame-0000{i}.png") as image:
            np.testing.assert_array_equal(image, shown.view(2, size=32))
    film = world.film(tmp_path / "a.mp4", to=[(4, 0.1, 0), (1, 0, 0)], seconds=0.5, fps=4, size=32)
    assert film.stat().st_size > 500
    tiles = []
    assert world.pyramid(tmp_path / "w.dzi", tiles.append) == tmp_path / "w.dzi"
    assert sum(tiles) == len(list((tmp_path / "w_files").rglob("*.png"))) == 9
    assert world.strip().height > 32
    assert world._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "mistake, sentence",
    [
        (lambda model: model.world("3~"), "cannot be read"),
        (lambda model: model.world("3_4@90"), "names layer 90"),
        (lambda model: model.world(3, float("nan")), "Truncation nan"),
        (lambda model: model.world().view(scale=0.5), "Scale 0.5"),
        (lambda model: model.world().view(scale=float("nan"), size=8), "Scale nan"),
        (lambda model: model.world().view(scale=9), "Scale 9"),
        (lambda model: model.world().view(scale=2, centre=(0.4, 0)), "outside the world"),
        (lambda model: model.world().view(size=(0, 3)), r"Size \(0, 3\)"),
        (lambda model: model.world().view(size=100.5), "Size 100.5"),
        (lambda model: model.world().view(size="64"), "Size '64'"),
        (lambda model: model.world().array(size=0), "Size 0"),
        (
            lambda model: model.world().view(size=100_000),
            r"100000 x 100000 pixels .* at most 268,435,456 pixels \(such as 16384 x 16384\).* --tiff FILE --enlarge",
        ),
        (lambda model: model.world().array(size=(16384, 16385)), "16384 x 16385 pixels is too large to hold"),
        (lambda model: model.world().film("a.mp4", (2, 0, 0), size=100_000), "100000 x 100000 pixels"),
        (lambda model: model.world().view(scale=[1, 2]), r"Scale \[1, 2\] is not a finite number"),
        (lambda model: model.world().array(scale="2"), "Scale '2' is not"),
        (lambda model: model.world().view(scale=True), "Scale True is not"),
        (lambda model: model.world().view(scale=10**400), "is not a finite number"),
        (lambda model: model.world().view(centre=(0.1, 0.1, 0.1)), r"Centre \(0.1, 0.1, 0.1\) is not a point"),
        (lambda model: model.world().array(centre="0.1,0.1"), "Centre '0.1,0.1' is not a point"),
        (lambda model: model.world().strip(torch.zeros(2, 2)), r"Centre of shape \[2, 2\] and torch.float32 is not"),
        (lambda model: model.world(3, truncation_psi="a"), "Truncation 'a' is not"),
        (lambda model: model.world(torch.zeros(7)), r"array \[16\] of finite numbers, .*; given: of shape \[7\]"),
        (lambda model: model.world(np.full(16, np.nan)), r"array \[16\] of finite numbers"),
        (
            lambda model: model.world(torch.zeros(2, 3, 16)),
            r"\[16\] of finite numbers, and styles are one of \[\d+, 16\] or \[1, \d+, 16\]; given: of shape \[2, 3, 16\]",
        ),
        (lambda model: model.world(torch.full((1, 16, 16), torch.nan)), "array .* of finite numbers"),
        (lambda model: model.world(model.world(3).ws, 0.5), "Truncation 0.5 does not apply to styles"),
        (lambda model: model.world().mixed(7, "x"), "Weight 'x' is not"),
        (lambda model: model.world().mixed(7, 101), "Weight 101 is out of range"),
        (lambda model: model.world("~".join(["1", *["2:0.5"] * 15])).mixed(3), "has 16 terms already"),
        (lambda model: model.world().film("a.mp4", 3), "The place 3 is not"),
        (lambda model: model.world().film("a.mp4", [(2, 0, 0), "2,0"]), "The place '2,0' is not"),
        (lambda model: model.world().film("a.mp4", (2, 0, 0), fps=2.5), "2.5 frames a second"),
        (lambda model: model.world().film("a.mp4", (2, 0, 0), seconds=float("nan")), "A film of nan seconds"),
        (lambda model: model.world().pyramid(None), "None is not the name of a file"),
        (lambda model: model.world().array(scale=8, size=64), "finer than"),
        (lambda model: model.world().film("a.avi", (2, 0, 0)), "does not end in .mp4"),
        (lambda model: model.world().film("a.mp4", (2, 0)), "not \\(zoom, x, y\\)"),
        (lambda model: model.world().film("a.mp4"), "two places or more to fly between, or two worlds"),
        (lambda model: model.world().pyramid("a.png"), "does not end in .dzi"),
        (lambda model: multiscale.load("nowhere"), "no network nowhere"),
        (lambda model: multiscale.load(5), "5 is not the name of a network; give the folder of a run"),
        (lambda model: multiscale.load(model.path, device="nothing"), "no device 'nothing'"),
    ],
)
def test_mistakes_are_sentences(mistake, sentence, model):
    with pytest.raises(UserError, match=sentence):
        mistake(model)


def test_only_devices_that_are_there_are_named(model, monkeypatch):
    for cuda, mps, named in (
        (False, False, "'cpu', or"),
        (True, False, "'cpu', 'cuda', or"),
        (False, True, "'cpu', 'mps', or"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        with pytest.raises(UserError, match=f"give {named} nothing"):
            multiscale.load(model.path, device="cuda:99")


def test_the_guides_examples_run(tmp_path, monkeypatch, capsys):
    """All but the pyramid of the bundled model, which takes minutes."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/python.md").read_text(), flags=re.M | re.S)
    lines = [line for line in "\n".join(blocks).splitlines() if ".pyramid(" not in line]
    assert len(lines) > 20
    monkeypatch.chdir(tmp_path)
    exec("\n".join(lines), {})
    for line in capsys.readouterr().out.splitlines():
        if line.startswith(("<model", "torch.Size")):
            assert line in "\n".join(blocks)
    assert {path.name for path in tmp_path.iterdir()} == {
        "view.png",
        "flight.mp4",
        "tour.mp4",
        "worlds.webp",
        "found.gif",
        "patches.zip",
    }
