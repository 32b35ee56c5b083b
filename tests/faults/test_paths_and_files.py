"""Paths, claims and bytes of others: what cannot be looked at, believed or parsed is refused in one sentence, soon."""

import contextlib
import copy
import io
import json
import os
import re
import shlex
import struct
import subprocess
import sys
import zipfile
import zlib
from importlib import import_module
from pathlib import Path

import click
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from conftest import small_config, small_patches
from PIL import Image

from dnnlib import files
from dnnlib.cli import LONGEST, reports_user_errors
from dnnlib.errors import UserError
from dnnlib.files import cache_folder
from dnnlib.reading import from_yaml, parsed, read_text, regular_size
from multiscale.config import RunConfig, load_yaml, parse_assignment, to_dict
from multiscale.data import archive as archive_module
from multiscale.data.patches import PatchDataset
from multiscale.data.pictures import examine
from multiscale.data.vips import Reading
from multiscale.interop.official import discriminator_from_official, generator_from_official
from multiscale.runs import snapshots
from multiscale.runs.snapshots import load_snapshot
from multiscale.runs.states import load_state, save_state
from multiscale.training.resume import check_resumed
from multiscale.training.status import report_status
from multiscale.training.transfer import load_learned
from torch_utils import distributed

ROOT = Path(__file__).parents[2]
needs_posix = pytest.mark.skipif(os.name == "nt", reason="pipes and devices as POSIX has them; Linux and macOS run it")


def examine_picture(path):
    """As ``dataset_tool.py make`` looks at a file."""
    return examine(path, Reading(), 0)


# What the system refuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, text",
    [
        (PermissionError(13, "Permission denied", "/x"), "Error: Cannot use /x: Permission denied. MULTISCALE_DEBUG"),
        (OSError("odd."), "Error: Cannot use the system: odd. MULTISCALE_DEBUG"),
        (MemoryError(), "Error: There is not enough memory"),
        (RecursionError(), "Error: The input is nested too deeply"),
        (UserError("x" * 40_000_000), "Error: xxx"),
    ],
)
def test_what_the_system_refuses_is_one_sentence_and_a_traceback_on_request(monkeypatch, error, text):
    @click.command()
    @reports_user_errors
    def command():
        raise error

    result = CliRunner().invoke(command)
    assert result.exit_code == 2
    assert result.stderr.startswith(text)
    assert len(result.stderr) < LONGEST + 100
    monkeypatch.setenv("MULTISCALE_DEBUG", "1")
    assert CliRunner().invoke(command).exception is error


LONG = "n" * 300


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--data", LONG),
        ("train", "--status", LONG),
        ("train", "--data", "p.zip", "--outdir", LONG),
        ("train", "--data", "p.zip", "--resume", LONG),
        ("train", "--data", "p.zip", "--transfer", LONG),
        ("train", "--data", "p.zip", "--config", f"{LONG}.yaml"),
        ("generate", "--network", LONG),
        ("generate", "--out", LONG),
        ("generate", "--pyramid", f"{LONG}.dzi"),
        ("dataset_tool", "make", "--source", LONG, "--dest", "d.zip"),
        ("dataset_tool", "inspect", LONG),
        ("calc_metrics", "--data", "p.zip", "--network", LONG),
        ("train", "--data", "loop"),
        ("dataset_tool", "make", "--source", "loop", "--dest", "d.zip"),
    ],
)
@needs_posix
def test_names_that_are_too_long_and_links_in_a_circle_are_one_sentence(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    small_patches(tmp_path / "p.zip", per_octave=1)
    (tmp_path / "loop").symlink_to("loop")
    name, *arguments = words
    result = CliRunner().invoke(import_module(f"multiscale.cli.{name}").main, arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert result.stderr.strip().splitlines()[-1].startswith("Error: ")


@pytest.mark.parametrize(
    "module, words",
    [
        ("multiscale.cli.calc_metrics", "--data none.zip --out file/x"),
        ("multiscale.cli.dataset_tool", "inspect none.zip --sheet file/x.png"),
        ("multiscale.cli.dataset_tool", "make --source none.tif --dest file/x.zip"),
        ("multiscale.cli.dataset_tool", "collect --source none --scales exif --dest file/x"),
        ("multiscale.cli.dataset_tool", "demo --dest file/x"),
        ("multiscale.cli.generate", "--network none --out file/x"),
        ("multiscale.cli.generate", "--network none --out file/x.png"),
        ("multiscale.cli.generate", "--network none --grid --out file/x"),
        ("multiscale.cli.generate", "--network none --pyramid file/x.dzi"),
        ("multiscale.cli.generate", "--network none --tiff file/x.tif"),
        ("multiscale.cli.generate", "--network none --video file/x.mp4 --to 2,0,0"),
        ("multiscale.cli.zoom", "--network none --export file/x"),
        ("multiscale.cli.zoom", "--network none --export file/x --tiles"),
        ("multiscale.cli.pack", "none file/x.safetensors"),
        ("multiscale.cli.pack", "none new.safetensors --networks file/x.pt"),
        ("multiscale.interop.__main__", "none.pkl file/x.safetensors"),
        ("multiscale.share.__main__", "push file hf://a/b --folder file/x"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, monkeypatch, module, words):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("in the way")
    result = CliRunner().invoke(import_module(module).main, words.split())
    assert result.exit_code == 2, result.output
    sentence = r"^Error: Cannot write file/x.*: file is a file, not a folder; give another place\.$"
    assert re.search(sentence, result.stderr.strip().splitlines()[-1])
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def refused_beside_patches(folder, monkeypatch, module, words):
    """What a command answers that is refused, in a folder that holds ``p.zip``."""
    monkeypatch.chdir(folder)
    small_patches(folder / "p.zip", per_octave=1)
    result = CliRunner().invoke(import_module(module).main, words.split())
    assert result.exit_code == 2, result.output
    return result


@pytest.mark.parametrize(
    "module, words",
    [
        ("multiscale.cli.calc_metrics", "--data p.zip --out report.html"),
        ("multiscale.cli.generate", "--out report.html"),
        ("multiscale.cli.zoom", "--export report.html"),
        ("multiscale.cli.zoom", "--export report.html --tiles"),
        ("multiscale.cli.train", "--data p.zip --outdir report.html"),
        ("multiscale.share.__main__", "push none hf://a/b --folder report.html"),
    ],
)
def test_no_folder_is_called_as_a_file_unless_that_is_meant(tmp_path, monkeypatch, module, words):
    result = refused_beside_patches(tmp_path, monkeypatch, module, words)
    last = result.stderr.strip().splitlines()[-1]
    assert re.search(r"^Error: --\w+ report.html .* a folder \(if it is to have that name: report.html/\)", last)
    assert list(tmp_path.iterdir()) == [tmp_path / "p.zip"]


@pytest.mark.parametrize(
    "module, words",
    [
        ("multiscale.cli.calc_metrics", "--data p.zip --network none"),
        ("multiscale.cli.generate", "--network none"),
        ("multiscale.cli.zoom", "--network none --export x"),
        ("multiscale.cli.zoom", "--network none"),
        ("multiscale.cli.pack", "none x.safetensors"),
        ("multiscale.cli.train", "--data p.zip --transfer none"),
        ("multiscale.interop.__main__", "none x.safetensors"),
        ("multiscale.share.__main__", "push none hf://a/b"),
        ("multiscale.share.__main__", "push none hf://a/b --folder x"),
    ],
)
def test_a_network_that_is_not_there_has_one_sentence(tmp_path, monkeypatch, module, words):
    result = refused_beside_patches(tmp_path, monkeypatch, module, words)
    assert "Error: There is no network none; give " in result.stderr


PICTURES = {"PNG": "a.png", "JPEG": "a.jpg", "TIFF": "a.tif", "GIF": "a.gif", "BMP": "a.bmp", "WebP": "a.webp"}
PICTURES |= {"JPEG 2000": "a.jp2", "PGM or PPM": "a.ppm", "AVIF or HEIF": "a.avif"}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_in_place_of_a_network_or_patches_is_known_by_its_first_bytes(tmp_path, kind):
    path = tmp_path / PICTURES[kind]
    try:
        Image.new("RGB", (20, 20)).save(path)
    except (KeyError, OSError) as error:  # Pillow's builds differ
        pytest.skip(f"this Pillow does not write {kind} ({error})")
    with pytest.raises(UserError, match=rf"is an? {kind} picture, not a network; give the folder of a run"):
        load_snapshot(path)
    with pytest.raises(UserError, match=rf"is an? {kind} picture, not a training state; give a state-"):
        load_state(path)
    command = f"make one from it: python dataset_tool.py make --source {shlex.quote(str(path))} --dest"
    with pytest.raises(UserError, match=rf"is an? {kind} picture, not a set of patches; {re.escape(command)}"):
        PatchDataset(path)
    with pytest.raises(UserError, match=re.escape(f"python dataset_tool.py make --source {tmp_path} --dest")):
        PatchDataset(tmp_path)
    if kind != "PGM or PPM":  # of which a small one is text
        with pytest.raises(UserError, match=f"Cannot read the config .*: it is an? {kind} picture, not text"):
            load_yaml(path)


def test_tiles_of_a_server_in_place_of_patches_are_answered_with_the_command_that_makes_them():
    address = "https://example.org/iiif/1/info.json"
    with pytest.raises(UserError, match=re.escape(f"make --source {address} --dest patches.zip")):
        PatchDataset(address)


@needs_posix
def test_pipes_devices_and_folders_are_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a pipe"), (Path("/dev/zero"), "a device"), (tmp_path, "a folder")):
        for read in (load_yaml, load_state, load_snapshot, examine_picture):
            with pytest.raises(UserError, match=f"it is {kind}; give a file"):
                read(path)
    (tmp_path / "pipe.zip").symlink_to("pipe")
    with pytest.raises(UserError, match="a pipe"):
        PatchDataset(tmp_path / "pipe.zip")


@needs_posix
def test_without_a_home_the_cache_is_a_private_folder_which_is_said_once(tmp_path, monkeypatch, caplog):
    for name in ("MULTISCALE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(files.Path, "home", homeless)
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    for planted in (False, True):
        files._homeless_cache.cache_clear()
        folder = cache_folder()
        assert cache_folder() == folder
        assert (folder == tmp_path / f"multiscale-{os.getuid()}") != planted
        assert folder.stat().st_mode & 0o777 == 0o700
        (tmp_path / f"multiscale-{os.getuid()}").chmod(0o777)
    assert len([r for r in caplog.records if "No home folder" in r.message]) == 2
    files._homeless_cache.cache_clear()


# What files claim ----------------------------------------------------------------------------------------------------


def test_a_snapshot_that_claims_a_huge_network_is_refused_before_one_is_built(tmp_path, monkeypatch):
    config = to_dict(small_config()) | {"channel_base": 2**24, "channel_max": 8192, "z_dim": 65536, "w_dim": 65536}
    metadata = {
        "format": snapshots.FORMAT,
        "format_version": "2",
        "config": json.dumps(config),
        "info": "{}",
    }
    (tmp_path / "g.safetensors").write_bytes(safetensors.torch.save({"x": torch.zeros(1)}, metadata))
    monkeypatch.setattr(snapshots, "Generator", lambda _: pytest.fail("it was built"))
    with pytest.raises(UserError, match=r"do not fit its config \(it claims 17,[\d,]+ weights, and they are 1\)"):
        load_snapshot(tmp_path / "g.safetensors")


def test_a_state_that_is_packed_is_refused_before_it_is_unpacked(tmp_path):
    path = save_state(tmp_path, 4, {"config": {}, "G": {"x": torch.zeros(1 << 20)}})
    packed = tmp_path / "state-000000008.pt"
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as small:
        for member in whole.infolist():
            small.writestr(member.filename, whole.read(member))
    assert load_state(path)["G"]["x"].shape == (1 << 20,)
    with pytest.raises(UserError, match="not a whole training state"):
        load_state(packed)


def test_yaml_cannot_stand_for_more_than_it_holds(tmp_path):
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n"
        for a, b in zip("abcdefg", "bcdefgh", strict=True)
    )
    (tmp_path / "c.yaml").write_text(bomb)
    with pytest.raises(UserError, match="alias") as caught:
        load_yaml(tmp_path / "c.yaml")
    assert len(str(caught.value)) < 500
    for text in ("[" * 100_000, "{a: " * 5000, "- " * 3000):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(UserError, match=r"nested more than|not valid YAML"):
            load_yaml(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text("a" * (2 << 20))
    with pytest.raises(UserError, match="1048576 are allowed"):
        load_yaml(tmp_path / "c.yaml")


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_picture_whose_header_claims_more_than_its_bytes_can_hold_is_refused(tmp_path, format):
    stream = io.BytesIO()
    Image.new("L", (64, 64)).save(stream, format)
    data = bytearray(stream.getvalue())
    if format == "PNG":
        data[16:24] = struct.pack(">II", 60_000, 60_000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    else:
        start = data.index(b"\xff\xc0")
        data[start + 5 : start + 9] = struct.pack(">HH", 60_000, 60_000)
    path = tmp_path / "bomb"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="too few for the 60000 x 60000 pixels"):
        examine_picture(path)
    Image.new("L", (2000, 2000)).save(path, format)  # as small as honest ones become
    picture = examine_picture(path)
    assert (picture.width, picture.height) == (2000, 2000)


@pytest.mark.parametrize("name", ["dataset.json", "the last patch"])
def test_members_of_a_zip_are_not_unpacked_beyond_what_the_set_can_need(tmp_path, monkeypatch, name):
    whole = small_patches(tmp_path / "p.zip", per_octave=1)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(tmp_path / "q.zip", "w", zipfile.ZIP_DEFLATED) as dest:
        target = name if name in source.namelist() else [n for n in source.namelist() if n.endswith(".png")][-1]
        for member in source.namelist():
            dest.writestr(member, source.read(member) + (b" " * (8 << 20) if member == target else b""))
    unpacked, inflate = [0], archive_module._inflate
    monkeypatch.setattr(archive_module, "_inflate", lambda data, size: (unpacked.append(size), inflate(data, size))[1])
    with pytest.raises(UserError, match="claims"):
        dataset = PatchDataset(tmp_path / "q.zip")
        for i in range(len(dataset)):
            dataset[i]
    assert max(unpacked) < 8 << 20


# What parsers say ----------------------------------------------------------------------------------------------------


def test_parsers_end_in_one_place():
    for error in (AssertionError(), struct.error("x"), AttributeError("x"), RecursionError(), KeyError("x")):

        def fail(error=error):
            raise error

        with pytest.raises(UserError, match=r"^The file is damaged"):
            parsed(fail, "The file is damaged ({reason}).")
    with pytest.raises(UserError) as caught:
        parsed(lambda: int("x" * 10**6), "No: {reason}.")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["2001-99-99", "!!python/name:os.system x", "? {a: 1}\n: 2", "0b", "!!int x", "\x00"])
def test_yaml_that_pyyaml_stumbles_over_is_one_sentence(tmp_path, text):
    (tmp_path / "c.yaml").write_text(f"{text}")
    with pytest.raises(UserError, match=r"The config .* (not valid YAML|must hold sections)"):
        load_yaml(tmp_path / "c.yaml")
    with contextlib.suppress(UserError):
        parse_assignment(f"training.batch={text}")


@pytest.mark.parametrize(
    "text",
    ["training: {batch: 8, batch: 16}", "training:\n  batch: 8\n  seed: 1\n  batch: 8\n", "batch: 1\n'batch': 1"],
)
def test_a_setting_that_is_there_twice_is_one_sentence(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=r"The config .* is not valid YAML: it has 'batch' twice; keep one of them\.$"):
        load_yaml(tmp_path / "c.yaml")


def test_texts_are_regular_bounded_and_utf8(tmp_path):
    (tmp_path / "t").write_bytes(b"\xff")
    with pytest.raises(UserError, match="utf-8"):
        read_text(tmp_path / "t", "the text")
    assert regular_size(tmp_path / "t", "the text") == 1
    assert from_yaml("a: [1, {b: 2}]") == {"a": [1, {"b": 2}]}


def test_a_state_with_odd_fields_is_one_sentence(tmp_path):
    for name, value in (("step", "1"), ("G", [1]), ("format_version", None), ("format_version", "2"), ("config", 3)):
        path = save_state(tmp_path, 4, {"config": {}, "step": 1, name: value})
        with pytest.raises(UserError):
            load_state(path)


def test_commands_show_no_traceback_for_a_full_or_odd_state(tmp_path):
    state = tmp_path / "state-000000004.pt"
    state.write_bytes(b"PK\x05\x06" + bytes(18))
    words = [sys.executable, "train.py", "--data", str(small_patches(tmp_path / "p.zip")), "--resume", str(state)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: {state} is not a whole training state; it may be truncated")


def test_a_transfer_asks_for_networks_alone_and_a_resumed_run_for_all(tmp_path):
    whole = {"config": {}, **{key: {"x": torch.zeros(2)} for key in ("G", "D", "G_ema")}}
    assert set(load_learned(save_state(tmp_path, 4, whole)).weights) == {"G", "D", "G_ema"}
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    with pytest.raises(UserError, match="holds no step"):
        check_resumed(tmp_path / "state-000000004.pt", RunConfig(), dataset)
    for name in ("G", "D", "G_ema"):
        with pytest.raises(UserError, match=f"holds no {name},"):
            load_learned(save_state(tmp_path, 5, {key: value for key, value in whole.items() if key != name}))
        for odd in ([1], {"x": 3}, {1: torch.zeros(2)}, {"x": torch.zeros(1).expand(1 << 40)}):
            with pytest.raises(UserError, match=f"another {name}"):
                load_learned(save_state(tmp_path, 5, {**whole, name: odd}))


def test_states_whose_parts_overlap_are_refused(tmp_path):
    path = save_state(tmp_path, 4, {"config": {}, "G": {"x": torch.zeros(1 << 16)}})
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    # the directory gets the largest member thrice: other names for the same bytes
    with zipfile.ZipFile(io.BytesIO(data), "a") as archive:
        for suffix in ("1", "2"):
            archive.filelist.append(twin := copy.copy(largest))
            twin.filename += suffix
        archive._didModify = True
        stream = archive.fp
        archive.fp.seek(archive.start_dir)
        archive._write_end_record()
        path.write_bytes(stream.getvalue())
    with pytest.raises(UserError, match="not a whole training state"):
        load_state(path)


@pytest.mark.parametrize("odd", ['"x"', "[[1]]", '{"a": 1}', "true", "[true]", '["x"]', "9" * 400, "1e999", "NaN"])
def test_lines_of_odd_types_do_not_end_the_status(tmp_path, capsys, odd):
    keys = ("img/s", "swd", "swd mean", "loss/D", "gradients/D norm", "seconds/step", "octave mix", "augment/p")
    lines = ['{"kimg": 1, "swd": [1, 2], "loss/D": 0.5}']
    lines += (
        ['{"kimg": 2}'] + [f'{{"kimg": 2, "{key}": {odd}}}' for key in keys] + [f'{{"kimg": {odd}}}', "[" * 5000, odd]
    )
    (tmp_path / "stats.jsonl").write_text("\n".join(lines))
    (tmp_path / "config.yaml").write_text("training: {kimg: 4}\n")
    report_status(tmp_path)
    assert "2 of 4 kimg" in capsys.readouterr().out
    assert (tmp_path / "plot.png").exists()
    (tmp_path / "environment.json").write_text('{"devices": 7}')
    with pytest.raises(UserError, match="is damaged"):
        report_status(tmp_path)


def test_published_weights_of_odd_shapes_are_one_sentence():
    for state in (
        {"synthesis.input.freqs": torch.zeros(3), "synthesis.L0_16_3.weight": torch.zeros(2)},
        {"synthesis.input.freqs": 3, "synthesis.L0_16_3.weight": None},
    ):
        with pytest.raises(UserError, match="published weights"):
            generator_from_official(state, img_resolution=32, channel_base=512, channel_max=24, n_bins=2, octaves=3)
    with pytest.raises(UserError, match="published weights"):
        discriminator_from_official(
            {"b32.fromrgb.weight": torch.zeros(1)}, img_resolution=32, channel_base=64, channel_max=8
        )


def refuse(process):
    if process.rank == 1:
        raise OSError(28, "No space left on device", "/run/x")


@pytest.mark.slow
def test_what_the_system_refuses_a_spawned_process_is_one_sentence():
    with pytest.raises(UserError, match=r"^In process 1: Cannot use /run/x: No space left") as caught:
        distributed.run(refuse, [torch.device("cpu")] * 2)
    assert "Traceback" not in str(caught.value)
