"""Pickles of the published code open exactly, and nothing in them is ever run, whatever they hold."""

import json
import os
import pickle
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from interop.published import EasyDict, module, published_config, published_generator, write_published
from PIL import Image

from dnnlib.errors import UserError
from multiscale.cli.generate import main as generate
from multiscale.explorer.networks import header_facts
from multiscale.interop import pickles
from multiscale.interop.__main__ import main as convert
from multiscale.interop.pickles import LICENCE, NAMES, load_published
from multiscale.interop.unpickler import Built, Name, PickleError, read_pickle
from multiscale.networks.generator import Generator
from multiscale.rendering.renderer import provenance
from multiscale.runs.headers import BUNDLED, find_network, read_header
from multiscale.runs.snapshots import load_snapshot
from multiscale.training.transfer import load_learned
from multiscale.view import unchecked_transform

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "tests/golden/published_a.pkl"
TINY = {"channel_base": 64, "num_layers": 4, "num_critical": 1}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small published file."""
    torch.manual_seed(0)
    return write_published(tmp_path_factory.mktemp("tiny") / "tiny.pkl", Generator(published_config(**TINY)).eval())


def images(generator, z, zoom, centre, psi=1.0):
    with torch.no_grad():
        return generator(z, unchecked_transform(zoom.double(), centre.double()), psi)


def test_a_published_file_gives_the_published_images():
    expected = {name: torch.from_numpy(array) for name, array in np.load(PUBLISHED.with_suffix(".npz")).items()}
    published = load_published(PUBLISHED)
    views = expected["z"], expected["zoom"], expected["centre"]
    for psi, name in ((1.0, "image"), (0.7, "image_psi07")):
        assert (images(published.generator, *views, psi) - expected[name]).abs().max() < 1e-4
    assert published.info["source"]["file"] == "published_a.pkl"
    assert (published.generator.config.octaves, published.generator.config.n_bins) == (6, 2)


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "img_resolution": 256,
            "octaves": 8,
            "n_bins": 3,
            "channel_max": 96,
            "channel_base": 2048,
            "z_dim": 32,
            "w_dim": 16,
        },
        {
            **{
                "img_resolution": 32,
                "octaves": 4,
                "n_bins": 1,
                "num_layers": 10,
                "bin_offset": 2.0,
                "blend_width": 2.0,
            },
            **{"blend_offset": 0.5, "radial_filters": False, "filter_size": 4, "conv_kernel": 3, "margin": 8},
            **{"mapping_layers": 3, "output_scale": 0.5, "num_critical": 1, "channel_max": 40},
        },
    ],
    ids=["small", "eight octaves", "all otherwise"],
)
def test_every_setting_comes_from_the_file(changes, protocol, tmp_path):
    config = published_config(**changes)
    generator = Generator(config).eval()
    opened = load_published(write_published(tmp_path / "network.pkl", generator, protocol)).generator
    z = torch.randn(2, config.z_dim)
    views = z, torch.tensor([1.0, 0.7 * 2**config.octaves]), torch.tensor([[0.0, 0.0], [0.31, -0.22]])
    torch.testing.assert_close(images(opened, *views), images(generator, *views), atol=1e-6, rtol=0)
    for name in ("octaves", "n_bins", "z_dim", "w_dim", "num_critical", "bin_offset", "conv_kernel", "channel_base"):
        assert getattr(opened.config, name) == getattr(config, name)


def test_every_command_takes_one(tiny, tmp_path):
    assert find_network(str(tiny)) == tiny
    snapshot = load_snapshot(tiny)
    assert read_header(tiny)[0] == snapshot.generator.config
    assert provenance(snapshot)["licence"] == LICENCE
    assert header_facts(tiny)["licence"] == LICENCE
    learned = load_learned(tiny)
    assert str(learned) == f"Beginning with the generator of {tiny}."
    assert set(learned.weights["G"]) == set(snapshot.generator.state_dict())
    done = CliRunner().invoke(generate, ["--network", str(tiny), "--scale", "5", "--out", str(tmp_path / "x.png")])
    assert done.exit_code == 0, done.output
    assert json.loads(Image.open(tmp_path / "x.png").text["multiscale"])["licence"] == LICENCE


def test_conversion_keeps_everything_and_says_where_it_is_from(tiny, tmp_path):
    done = CliRunner().invoke(convert, [str(tiny), str(tmp_path / "a.safetensors")])
    assert done.exit_code == 0, done.output
    assert LICENCE in done.output
    converted, original = load_snapshot(tmp_path / "a.safetensors"), load_snapshot(tiny)
    assert converted.info == original.info
    assert converted.info["source"]["sha256"] == original.digest
    for name, tensor in original.generator.state_dict().items():
        assert torch.equal(tensor, converted.generator.state_dict()[name])
    refused = CliRunner().invoke(convert, [str(tiny), str(tmp_path / "a.pt")])
    assert refused.exit_code == 2
    assert "does not end in .safetensors" in refused.output


def dump(path, contents):
    """Write contents that need names of the published code."""
    return write_published(path, Generator(published_config(**TINY)).eval(), **contents)


def test_plain_stylegan3_is_refused_for_having_no_scales(tmp_path):
    source = module(
        "SynthesisInput", {"weight": torch.zeros(4, 4)}, {"freqs": torch.zeros(4, 2), "phases": torch.zeros(4)}
    )
    plain = module("Generator", modules={"synthesis": module("SynthesisNetwork", modules={"input": source})}, z_dim=8)
    with pytest.raises(UserError, match="plain StyleGAN3, which has no scales"):
        load_published(dump(tmp_path / "plain.pkl", {"G_ema": plain}))


def test_networks_of_other_kinds_are_refused(tmp_path):
    other = module("Generator", modules={"synthesis": module("SynthesisNetwork", modules={"b4": module("Block")})})
    with pytest.raises(UserError, match="it is not a generator of the multiscale code"):
        load_published(dump(tmp_path / "other.pkl", {"G_ema": other}))
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(UserError, match="holds no network named G_ema"):
        load_published(tmp_path / "list.pkl")
    (tmp_path / "text.pkl").write_bytes(b"hello")
    with pytest.raises(UserError, match="is not a pickle"):
        load_published(tmp_path / "text.pkl")
    (tmp_path / "empty.pkl").write_bytes(b"")
    with pytest.raises(UserError, match="is not a pickle"):
        load_published(tmp_path / "empty.pkl")
    with pytest.raises(UserError, match="folder"):
        load_published(tmp_path)


def test_weights_of_another_shape_or_layout_are_refused(tmp_path, monkeypatch):
    generator = Generator(published_config(**TINY)).eval()
    generator.synthesis.layers[1].down_filter = generator.synthesis.layers[1].down_filter * 1.01
    with pytest.raises(UserError, match="grid or filters"):
        load_published(write_published(tmp_path / "filters.pkl", generator))
    generator = Generator(published_config(**TINY)).eval()
    generator.mapping.w_avg[0] = float("nan")
    with pytest.raises(UserError, match=r"not finite \(mapping.w_avg\)"):
        load_published(write_published(tmp_path / "nan.pkl", generator))


class Hostile:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "wanted, payload",
    [
        (f"{os.system.__module__}.system", Hostile(os.system, ("touch {mark}",))),
        ("builtins.eval", Hostile(eval, ("open('{mark}', 'w')",))),
        ("builtins.getattr", Hostile(getattr, (EasyDict, "__class__"))),
        ("builtins.exec", [Hostile(exec, ("open('{mark}', 'w')",))]),
        ("subprocess.Popen", {"a": Hostile(subprocess.Popen, (["touch", "{mark}"],))}),
        ("builtins.__import__", Hostile(__import__, ("antigravity",))),
        ("operator.attrgetter", Hostile(__import__("operator").attrgetter, ("__globals__",))),
        ("torch.serialization.load", Hostile(torch.load, ("{mark}",))),
        ("pathlib.PosixPath", Path("/etc")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("place", ["augment_pipe", "G_ema"])
def test_what_wants_anything_else_is_refused_by_name_and_not_run(wanted, payload, place, tmp_path):
    mark = tmp_path / "mark"
    path = dump(tmp_path / "hostile.pkl", {place: payload})
    path.write_bytes(path.read_bytes().replace(b"{mark}", str(mark).encode()[-6:]))
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        with pytest.raises(UserError, match=f"asks for '{wanted}.*nothing of it was run"):
            load_published(path)
    finally:
        os.chdir(here)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["hostile.pkl"]


@pytest.mark.parametrize(
    "program, reason",
    [
        (b"cos\nsystem\n\x8c\x04true\x85R.", "asks for 'os.system'"),
        (b"\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.", "asks for 'posix.system'"),
        (b"ccollections\nOrderedDict.__init__.__globals__\n)R.", "asks for 'collections.OrderedDict.__init__"),
        (b"K\x01)R.", "calls something that has no name"),
        (b"ccollections\nOrderedDict\n)R)R.", "calls something that has no name"),
        (b"ccollections\nOrderedDict\n)RK\x01b\x94}h\x00K\x01s.", "keys are not texts"),
        (b"(S'true'\nios\nsystem\n.", "holds the instruction"),
        (b"\x82\x01.", "holds the instruction"),
        (b"Pid\n.", "holds the instruction"),
        (b"\x8d" + (10**9).to_bytes(8, "little") + b"x.", "not a whole pickle"),
        (b"\x8e" + (2**63 - 1).to_bytes(8, "little") + b"x.", "not a whole pickle"),
        (b"\x8b" + (2**31 - 1).to_bytes(4, "little") + b"x.", "holds the instruction"),
        (b"c" + b"x" * 10**6 + b"\nb\n.", "name without end"),
        (b")" + b"\x85" * 10**5 + b"}" + b"N" + b"s.", "adds to something that is not a mapping"),
        (b"}" + b")" + b"\x85" * 10**5 + b"Ns.", "keys are not texts"),
        (b"N0" * 10**6 + b"N" * 10**6 + b".", "more than 2,000,000 instructions"),
        (b"]\x94" + b"h\x00h\x00a" * 1000 + b"0.", "no network named G_ema"),
        (b"N", "not a whole pickle"),
        (b"((t.", "no network named G_ema"),
        (b"0.", "not a whole pickle"),
        (b"h\x05.", "not a whole pickle"),
    ],
)
def test_programs_do_nothing(program, reason, tmp_path):
    path = tmp_path / "program.pkl"
    path.write_bytes(b"\x80\x04" + program)
    with pytest.raises(UserError, match=reason) as refused:
        load_published(path)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_a_pickle_is_data():
    data = pickle.dumps({"a": [1, 2.5, None, True, (1,), {2}, b"xy", -5, 2**70, "é"], "b": os.getcwd}, protocol=4)
    read = read_pickle(memoryview(data), {f"{os.getcwd.__module__}.getcwd"})
    assert read["b"] == Name(os.getcwd.__module__, "getcwd")
    assert [bytes(x) if isinstance(x, memoryview) else x for x in read["a"]] == [
        *(1, 2.5, None, True, (1,), [2], b"xy", -5, 2**70, "é")
    ]


def test_calls_are_described_and_never_made():
    program = b"\x80\x04ca\nb\nK\x07\x85R}\x8c\x01xK\x01sb."
    read = read_pickle(memoryview(program), {"a.b"})
    assert isinstance(read, Built)
    assert (str(read.name), read.arguments, read.state) == ("a.b", (7,), {"x": 1})
    with pytest.raises(PickleError, match=r"asks for 'a\.b'"):
        read_pickle(memoryview(program), NAMES)


def test_values_of_a_tensor_are_read_without_code(tmp_path):
    """The files of torch.save within the file may be hostile too."""

    class Blob:
        def __init__(self, data):
            self.data = data

        def __reduce__(self):
            return torch.storage._load_from_bytes, (self.data,)

    class Tensor:
        def __init__(self, data):
            self.data = data

        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Blob(self.data), 0, (1,), (1,), False, None)

    inner = pickles._LEGACY_TORCH + b"\x80\x02M\xe9\x03.\x80\x02}.\x80\x02cos\nsystem\nX\x05\x00\x00\x00touch\x85R."
    for data, reason in ((inner, "values cannot be read"), (pickle.dumps(Hostile(os.getcwd, ())), "where the values")):
        network = module("Generator", buffers={"x": Tensor(data)}, modules=_children(), z_dim=8)
        with pytest.raises(UserError, match=reason):
            load_published(dump(tmp_path / "blob.pkl", {"G_ema": network}))


def _children():
    source = module("MultiscaleSynthesisInput", n_bins=2)
    return {"synthesis": module("SynthesisNetwork", modules={"input": source})}


def test_modules_and_tensors_named_again_and_again_end(tmp_path):
    inner = module("Block")
    for _ in range(40):
        inner = module("Block", modules={"a": inner, "b": inner})
    network = module("Generator", modules={**_children(), "wide": inner})
    with pytest.raises(UserError, match="more than 1000 modules"):
        load_published(dump(tmp_path / "wide.pkl", {"G_ema": network}))
    one = torch.zeros(10_000)
    network = module("Generator", buffers={f"x{i}": one for i in range(1000)}, modules=_children())
    with pytest.raises(UserError, match="again and again"):
        load_published(dump(tmp_path / "same.pkl", {"G_ema": network}))


def test_claims_of_size_are_not_believed(tmp_path):
    network = published_generator(Generator(published_config(**TINY)).eval())
    network.state |= {"z_dim": 65536, "w_dim": 65536}
    with pytest.raises(UserError, match=r"the shape \[8\], but this configuration needs \[65536\]"):
        load_published(dump(tmp_path / "large.pkl", {"G_ema": network}))


def test_the_source_text_in_a_file_is_not_run(tiny):
    assert b"raise SystemExit" in tiny.read_bytes()
    load_published(tiny)


def test_damaged_files_are_refused_in_a_sentence_and_nothing_is_run(tiny, tmp_path, monkeypatch):
    """A few of the thousands that ``benchmarks/fuzz_pickles.py`` opens."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from fuzz_pickles import fuzz

    report = fuzz(tiny.read_bytes(), 150, seed=7, folder=tmp_path)
    assert report["opened"] + report["refused"] == 150
    assert report["refused"] > 75
    assert report["run_or_written"] == {}
    assert report["most_lines_of_a_refusal"] == 1
    assert report["slowest_cpu_sec"] < 10


def test_a_network_of_ours_needs_no_conversion(tmp_path):
    done = CliRunner().invoke(convert, [str(BUNDLED), str(tmp_path / "x.safetensors")])
    assert done.exit_code == 2
    assert "earth64.safetensors is a network of this program already" in done.output


def test_the_readmes_way_from_a_published_file_to_a_picture(tmp_path, monkeypatch):
    """As typed there, with a stand-in for the file that the paper's authors publish."""
    shutil.copy(PUBLISHED, tmp_path / "moon_rec6.pkl")
    readme = (ROOT / "README.md").read_text()
    [command] = re.findall(r"^python -m multiscale\.interop (.*?) *#", readme, flags=re.M)
    [python] = re.findall(r"^```python\n(.*?)^```$", readme, flags=re.M | re.S)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(convert, command.split())
    assert done.exit_code == 0, done.output
    exec(python, {})
    assert Image.open(tmp_path / "view.png").size == (1024, 768)
