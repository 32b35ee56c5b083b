"""train.py and generate.py as users type them: the main job end to end, and one sentence for each mistake."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import skimage.data
import tifffile
import torch
from click.testing import CliRunner
from conftest import small_patches
from filelock import FileLock
from PIL import Image
from png import Reader
from tqdm import tqdm

import multiscale
from multiscale.cli import dataset_tool, generate, train
from multiscale.rendering.flights import Keyframe
from multiscale.rendering.request import parse_keyframe
from multiscale.runs import folder as folder_module
from multiscale.runs.folder import LOCK, held
from multiscale.runs.headers import BUNDLED, find_network, find_networks, snapshots_of
from multiscale.runs.history import read_starts
from multiscale.runs.migrations import FORMAT_VERSION
from multiscale.runs.snapshots import load_snapshot, save_snapshot
from multiscale.runs.states import load_state, states_of
from multiscale.training import launch
from multiscale.training.launch import Request, data_layer, resolve

ROOT = Path(__file__).parent.parent
QUICK = ["generator.channel_max=16", "generator.channel_base=32", "training.metrics=swd4", "training.sample_seeds=2"]


def run(command, *arguments):
    result = CliRunner().invoke(command.main, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def refused(command, *arguments) -> str:
    """The one sentence of a refusal."""
    result = run(command, *arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    return last


def quick_output(data: Path, folder: Path, *more: object) -> str:
    sets = [part for text in QUICK for part in ("--set", text)]
    usual = {"--kimg": 0.016, "--batch": 4}
    given = [part for pair in usual.items() if pair[0] not in more for part in pair]
    result = run(train, "--data", data, "--outdir", folder, "--gpus", 0, *given, *sets, *more)
    assert result.exit_code == 0, result.output
    return result.output


def quick_training(data: Path, folder: Path) -> Path:
    quick_output(data, folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps on 16-pixel patches of three octaves."""
    folder = tmp_path_factory.mktemp("trained")
    return quick_training(small_patches(folder / "patches.zip"), folder / "run")


# Training ------------------------------------------------------------------------------------------------------------


def test_a_run_leaves_what_its_users_look_for(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"config.yaml", "environment.json", "stats.jsonl", "reals.png", "generator-000000016.safetensors"} <= names
    assert "samples-000000016.png" in names
    assert not [name for name in names if name.endswith(".tmp")]
    environment = json.loads((trained / "environment.json").read_text())
    assert environment["versions"]["torch"]
    sheet = np.asarray(Image.open(trained / "samples-000000016.png"))
    assert sheet.shape[1] > sheet.shape[0] / 2  # one column for each of 1x, 2x, 4x, 8x; one row for each of two seeds


def test_its_config_can_be_given_back(trained, tmp_path):
    again = resolve(Request(data=str(trained.parent / "patches.zip"), config=str(trained / "config.yaml"), gpus=0))
    assert again.config.generator == load_snapshot(snapshots_of(trained)[-1]).generator.config
    assert again.config.training.batch == 4


def test_data_alone_chooses_the_rest_and_says_so(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(train, "--data", trained.parent / "patches.zip", "--dry-run")
    assert result.exit_code == 0
    for word in ("demo", "runs/00000-patches-demo", "kimg", "toRGB", "Parameters", "Memory", "r1_gamma"):
        assert word in result.output
    assert result.output.index("r1_gamma") < result.output.index("toRGB") < result.output.index("Memory")
    assert not (tmp_path / "runs").exists(), "a dry run writes nothing"


@pytest.mark.parametrize(
    "sets, words",
    [
        (
            ["training.consistency_metric=l1+lpips"],
            ["Missing before this run can start: LPIPS needs alexnet", "=l1 does"],
        ),
        (["training.metrics=msfid1k", "training.metrics_features=dinov2"], ["The features 'dinov2' need"]),
    ],
)
def test_a_dry_run_reports_though_weights_are_missing_and_a_run_does_not_start(tmp_path, monkeypatch, sets, words):
    monkeypatch.setenv("MULTISCALE_CACHE", str(tmp_path / "cache"))
    data = small_patches(tmp_path / "p.zip", side=32)
    options = ["--data", data, "--outdir", tmp_path / "run", *(part for text in sets for part in ("--set", text))]
    dry = run(train, *options, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "Parameters" in dry.output
    assert all(word in dry.output.splitlines()[-1] for word in words)
    refused = run(train, *options)
    assert (refused.exit_code, "Parameters" in refused.output) == (2, False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "option, given, allowed",
    [
        ("--seed", "abc", "a whole number of 0 or more"),
        ("--seed", "-1", "a whole number of 0 or more"),
        ("--seed", "1.5", "a whole number of 0 or more"),
        ("--kimg", "abc", "a number above 0"),
        ("--kimg", "0", "a number above 0"),
        ("--kimg", "inf", "a number above 0"),
        ("--kimg", "nan", "a number above 0"),
        ("--procs", "257", "a whole number from 1 to 256"),
        ("--batch", "9" * 5000, "a whole number of 1 or more"),
    ],
)
def test_a_number_that_is_not_allowed_is_answered_with_those_that_are(option, given, allowed):
    shown = repr(given) if len(given) < 80 else repr(given)[:80] + " ..."
    result = run(train, "--data", "p.zip", option, given)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        2,
        f"Error: {option} {shown} is not allowed; give {allowed}.",
    )


@pytest.mark.parametrize(
    "load, threads, advises", [(9.0, None, True), (1.0, None, False), (9.0, "2", False)], ids=["busy", "idle", "chosen"]
)
def test_on_a_busy_machine_fewer_threads_are_advised(monkeypatch, load, threads, advises):
    monkeypatch.setattr(launch, "available_cores", lambda: 2)
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    advice = launch.busy_advice()
    assert (advice is not None) == advises
    if advises:
        assert advice.startswith("This machine is busy (load 9.0 on 2 cores): ")
        assert "OMP_NUM_THREADS=1 in front of the command" in advice


def test_a_dry_run_shows_the_waves_that_features_are_mixed_from(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = trained.parent / "patches.zip"
    mixed = run(train, "--data", data, "--set", "generator.fourier_features=174", "--dry-run")
    assert mixed.exit_code == 0
    (first,) = [line for line in mixed.output.splitlines() if line.startswith("input ")]
    assert re.match(r"input +\d+ of \d+ ", first)
    plain = run(train, "--data", data, "--dry-run")
    assert not re.search(r"\d of \d+ +\d+ >", plain.output)


def test_a_preset_is_meant_even_where_a_folder_has_its_name(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    request = Request(data=str(trained.parent / "patches.zip"), config="demo", gpus=0)
    assert resolve(request).config.generator.channel_max == 64


def test_numbered_folders_count_up(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "00007-x").mkdir(parents=True)
    assert resolve(Request(data=str(trained.parent / "patches.zip"), gpus=0)).folder == Path("runs/00008-patches-demo")


@pytest.mark.parametrize(
    "resolution, octaves, bins",
    [(256, 6, 2), (256, 8, 3), (32, 6, 3), (64, 6, 3), (16, 3, 2), (16, 10, 4), (1024, 3, 1)],
)
def test_bins_follow_from_octaves_and_resolution(resolution, octaves, bins):
    data = SimpleNamespace(resolution=resolution, octaves=octaves, num_channels=3)
    assert data_layer(data)["generator"]["n_bins"] == bins


def test_grey_data_train_and_render(tmp_path):
    folder = quick_training(small_patches(tmp_path / "grey.zip", channels=1), tmp_path / "run")
    assert run(generate, "--network", folder, "--out", tmp_path / "a.png").exit_code == 0
    assert Image.open(tmp_path / "a.png").mode == "L"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "nowhere.zip"], "nowhere.zip"),
        (["--gpus", "99"], "--gpus 99 was given but this machine has"),
        (["--config", "missing.yaml"], "Cannot read the config missing.yaml"),
        (["--set", "training.bacth=3"], "did you mean 'batch'"),
        (["--set", "training.batch=-3"], "training.batch=-3"),
        (["--set", "generator.n_bins=17"], "generator.n_bins=17"),
        (["--set", "training.batch"], "not an assignment"),
        (["--set", "training=5"], "must be a section"),
        (
            ["--batch", "8", "--set", "training.batch=16"],
            "--batch 8 and --set training.batch=16 are the same setting; give one",
        ),
        (
            ["--set", "training={batch_gpu: 2}", "--batch-gpu", "2"],
            "--batch-gpu 2 and --set training={batch_gpu: 2} are the",
        ),
        (["--set", "generator.widths=[1,2]"], "must have num_layers"),
        (["--config", "mooon"], "did you mean 'moon'"),
        (["--set", "generator.img_resolution=64"], "the patches of .* have 16"),
        (["--set", "training.consistency_metric=l1+lpips"], "LPIPS needs images of 32 pixels"),
        (["--outdir", "good.zip"], "is a file"),
    ],
)
def test_training_mistakes_are_one_sentence(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    small_patches(tmp_path / "good.zip")
    given = arguments if "--data" in arguments else ["--data", "good.zip", *arguments]
    assert re.search(message, refused(train, *given))
    assert not (tmp_path / "runs").exists()


def test_missing_lpips_weights_say_how_to_get_them_and_what_does_without(tmp_path, monkeypatch):
    monkeypatch.setenv("MULTISCALE_CACHE", str(tmp_path / "cache"))
    data = small_patches(tmp_path / "p.zip", side=32)
    options = ["--data", data, "--outdir", tmp_path / "run", "--set", "training.consistency_metric=l1+lpips"]
    sentence = refused(train, *options)
    for word in ("alexnet-owt-7be5be79.pth", "https://", str(tmp_path / "cache"), "consistency_metric=l1"):
        assert word in sentence


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_run_in_the_folder_is_not_overwritten_by_another(trained):
    before, data = contents(trained), trained.parent / "patches.zip"
    other_model = refused(train, "--data", data, "--outdir", trained)
    assert "has another model" in other_model
    assert "generator.channel_max: 16 -> " in other_model
    same = [part for text in QUICK for part in ("--set", text)]
    assert "training.batch: " in refused(train, "--data", data, "--outdir", trained, *same, "--batch", 2)
    assert "already holds a run" in refused(train, "--data", data, "--outdir", trained, "--fresh")
    assert contents(trained) == before


def test_the_same_command_goes_on_with_its_run(tmp_path):
    data, folder = small_patches(tmp_path / "p.zip"), tmp_path / "run"
    quick_training(data, folder)
    before = contents(folder)
    assert "is trained: 0.016 of 0.016 kimg" in quick_output(data, folder)
    shorter = quick_output(data, folder, "--kimg", "0.008", "--set", "training.mirror=true")
    assert "is trained: 0.016 of 0.008 kimg" in shorter
    assert "Changed settings" not in shorter
    assert contents(folder) == before
    longer = quick_output(data, folder, "--kimg", "0.024")
    assert "Changed settings: training.kimg: 0.016 -> 0.024" in longer
    assert "Resuming from" in longer
    assert {path.name for path in states_of(folder)} == {"state-000000016.pt", "state-000000024.pt"}
    starts = read_starts(folder)
    assert [start["kimg"] for start in starts] == [0, 0.016]
    assert [start["changed"] for start in starts] == [{}, {"training.kimg": [0.016, 0.024]}]
    assert (starts[0]["program"], starts[0]["torch"]) == (multiscale.__version__, torch.__version__)
    assert json.loads((folder / "environment.json").read_text())["cpu"] == starts[0]["cpu"] != ""


def test_a_run_begins_with_the_state_of_another(tmp_path):
    data, folder = small_patches(tmp_path / "p.zip"), tmp_path / "run"
    quick_training(data, folder)
    state = states_of(folder)[-1]
    other = tmp_path / "other"
    assert "Resuming from" in quick_output(data, other, "--kimg", "0.024", "--resume", state)
    assert states_of(other)[-1].name == "state-000000024.pt"
    bad = tmp_path / "bad.pt"
    bad.write_bytes(state.read_bytes()[:1000])
    options = ("--data", data, "--outdir", tmp_path / "x", "--resume")
    assert "not a whole training state" in refused(train, *options, bad)
    assert "Cannot read" in refused(train, *options, tmp_path / "none.pt")
    assert not (tmp_path / "x").exists()


def test_a_run_begins_with_the_networks_of_another(tmp_path):
    data, folder = small_patches(tmp_path / "p.zip"), tmp_path / "run"
    quick_training(data, folder)
    other_data = small_patches(tmp_path / "other.zip", per_octave=6)
    still = ("--set", "training.g_lr=1e-12", "--set", "training.d_lr=1e-12", "--batch", 2)
    snapshot, state = snapshots_of(folder)[-1], states_of(folder)[-1]
    for file, what in ((snapshot, "generator"), (state, "networks")):
        other = tmp_path / what
        given = folder if file == state else file  # of a run's folder it is the newest state
        assert f"Beginning with the {what} of {file}." in quick_output(other_data, other, "--transfer", given, *still)
        assert [start.get("begins_with") for start in read_starts(other)] == [str(file)]
        learned = load_state(state)["G" if what == "networks" else "G_ema"]
        for name, tensor in load_state(states_of(other)[-1])["G"].items():
            if not name.endswith(("magnitude_ema", "w_avg")):  # these move without a learning rate
                torch.testing.assert_close(tensor, learned[name])
        again = quick_output(other_data, other, "--transfer", file, *still, "--kimg", "0.02")
        assert "Resuming from" in again
        assert "Beginning" not in again
    old, new = (load_state(states_of(run)[-1])["D"] for run in (folder, tmp_path / "networks"))
    for name, tensor in old.items():
        torch.testing.assert_close(new[name], tensor)


def test_runs_that_began_otherwise_are_not_resumed_in_place_of_a_transfer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, source = (
        small_patches(tmp_path / "p.zip"),
        quick_training(small_patches(tmp_path / "q.zip"), tmp_path / "source"),
    )
    short = [part for text in QUICK for part in ("--set", text)] + ["--kimg", 0.004, "--batch", 4, "--gpus", 0]

    def trained_in(*words: object) -> str:
        output = run(train, "--data", data, *short, *words).output
        return ("new " if "Trained" in output else "") + re.search(r"runs/\d+", output)[0]

    assert trained_in() == "new runs/00000"
    assert trained_in("--transfer", source) == "new runs/00001"
    assert [trained_in(), trained_in("--transfer", source), trained_in("--transfer", states_of(source)[-1])] == [
        "runs/00000",
        "runs/00001",
        "runs/00001",
    ]
    assert trained_in("--transfer", snapshots_of(source)[-1]) == "new runs/00002"
    first = next((tmp_path / "runs").glob("00000-*"))
    sentence = refused(train, "--data", data, *short, "--outdir", first, "--transfer", source)
    assert f"The run in {first} did not begin with the networks of {source}" in sentence


def test_networks_that_do_not_fit_are_not_transferred(tmp_path):
    data, folder = small_patches(tmp_path / "p.zip"), tmp_path / "run"
    quick_training(data, folder)
    snapshot, state = snapshots_of(folder)[-1], states_of(folder)[-1]
    options = ("--outdir", tmp_path / "x", "--transfer")
    other = refused(train, "--data", data, *options, snapshot, "--set", "generator.channel_max=48")
    assert "has another model" in other
    assert other.endswith("; leave out what follows from its networks.")
    assert "discriminator" in refused(train, "--data", data, *options, state, "--set", "discriminator.channel_base=64")
    fewer = small_patches(tmp_path / "fewer.zip", octaves=2)
    assert "generator.octaves=3 but the patches of" in refused(train, "--data", fewer, *options, snapshot)
    assert "There is no network" in refused(train, "--data", data, *options, tmp_path / "none.pt")
    (tmp_path / "empty").mkdir()
    message = refused(train, "--data", data, *options, tmp_path / "empty")
    assert "holds no training state (state-*.pt), nor does a folder in it; give the folder of a run" in message
    assert "hf://owner/repo" in message
    assert "Both --resume and --transfer" in refused(train, "--data", data, *options, state, "--resume", state)
    assert not (tmp_path / "x").exists()


def test_a_run_does_not_go_on_with_other_data(tmp_path):
    data, folder = small_patches(tmp_path / "p.zip"), tmp_path / "run"
    quick_training(data, folder)
    sets = [part for text in QUICK for part in ("--set", text)]
    with zipfile.ZipFile(data) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    labels = json.loads(contents["dataset.json"])
    labels["labels"][0][1] += 0.125
    contents["dataset.json"] = json.dumps(labels).encode()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    again = ("--data", data, "--gpus", 0, "--kimg", 0.016, "--batch", 4, *sets)
    assert "was trained on other data" in refused(train, *again, "--outdir", folder)
    elsewhere = ("--outdir", tmp_path / "x", "--resume", states_of(folder)[-1])
    assert "was trained on other data" in refused(train, *again, *elsewhere)


def test_two_runs_cannot_share_a_folder(tmp_path, monkeypatch):
    data, folder = small_patches(tmp_path / "p.zip"), tmp_path / "run"
    with held(folder):
        assert "Another process trains in" in refused(train, "--data", data, "--outdir", folder)
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
        assert "another of the 8 tasks that srun began" in refused(train, "--data", data, "--outdir", folder)


def test_who_looks_whether_a_process_trains_keeps_none_from_starting(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "LOOK_SECONDS", 120)
    looking = threading.Event()

    def look():
        with FileLock(tmp_path / LOCK, fallback_to_soft=False):
            looking.set()
            time.sleep(0.2)

    thread = threading.Thread(target=look)
    thread.start()
    assert looking.wait(120)
    with held(tmp_path):
        pass
    thread.join()


def test_of_two_runs_that_start_at_once_in_one_folder_the_second_is_refused(tmp_path, monkeypatch):
    data = small_patches(tmp_path / "p.zip")
    resolved = resolve(Request(data=str(data), gpus=0, outdir=str(tmp_path / "run")))
    quick_training(data, tmp_path / "run")
    monkeypatch.setattr(launch, "resolve", lambda *_: resolved)
    assert "taken by another run" in refused(train, "--data", data)


def test_killed_training_leaves_whole_files_only(tmp_path):
    """SIGKILL at any moment: every snapshot that is there can be read."""
    data = small_patches(tmp_path / "p.zip")
    sets = [part for text in [*QUICK, "training.snapshot_kimg=0.004"] for part in ("--set", text)]
    command = [
        sys.executable,
        "train.py",
        "--data",
        data,
        "--outdir",
        tmp_path / "run",
        "--gpus",
        "0",
        "--batch",
        "4",
        *sets,
    ]
    process = subprocess.Popen(
        [str(c) for c in command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(3000):
        if len(snapshots_of(tmp_path / "run")) > 3:
            break
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
        break
    process.kill()
    process.wait()
    found = snapshots_of(tmp_path / "run")
    assert len(found) > 3
    for path in found:
        load_snapshot(path)


def rewritten(source: Path, dest: Path, change) -> Path:
    """A copy of a ZIP in which ``change(name, data)`` has replaced each file's bytes (None leaves it out)."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(dest, "w") as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return dest


LAST = "00000/img00000023.png"


def png(side: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side)).save(stream, "png")
    return stream.getvalue()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda name, data: data[:-20] if name == LAST else data, LAST),
        (lambda name, data: png(32) if name == LAST else data, LAST),
        (lambda name, data: None if name == "dataset.json" else data, "dataset.json"),
        (lambda name, data: None if name == LAST else data, LAST),
        (lambda name, data: data.replace(b", 2.", b", -2.") if name == "dataset.json" else data, "-2"),
        (lambda name, data: data[:50] if name == "dataset.json" else data, "dataset.json"),
        (lambda name, data: data if name == "dataset.json" else png(48), "48"),
        (lambda name, data: None, "."),
    ],
)
def test_data_that_cannot_be_trained_on_are_refused_before_anything_is_written(tmp_path, change, message):
    data = rewritten(small_patches(tmp_path / "good.zip"), tmp_path / "bad.zip", change)
    assert message in refused(train, "--data", data, "--outdir", tmp_path / "run", "--gpus", 0)
    assert not (tmp_path / "run").exists()


def test_an_octave_without_patches_is_refused_before_anything_is_written(tmp_path):
    def gap(name, data):
        return data.replace(b", 1.", b", 2.") if name == "dataset.json" else data

    data = rewritten(small_patches(tmp_path / "good.zip"), tmp_path / "gap.zip", gap)
    for dry in ([], ["--dry-run"]):
        assert "no patch in octave 1 of 3" in refused(train, "--data", data, "--outdir", tmp_path / "run", *dry)
    assert not (tmp_path / "run").exists()


def test_pixels_that_break_in_the_middle_of_a_run_are_named(tmp_path):
    """A PNG whose ends are whole but whose pixels are not is found when it is read, in a loader process."""

    def spoil(name, data):
        return data[:60] + bytes(20) + data[80:] if name.endswith(".png") else data

    data = rewritten(small_patches(tmp_path / "good.zip"), tmp_path / "bad.zip", spoil)
    sentence = refused(
        train, "--data", data, "--outdir", tmp_path / "run", "--gpus", 0, "--set", "training.metrics=null"
    )
    assert "img000000" in sentence


def test_a_photograph_goes_all_the_way(tmp_path):
    photograph = tmp_path / "astronaut.png"
    Image.fromarray(skimage.data.astronaut()).save(photograph)
    data = tmp_path / "patches.zip"
    made = run(dataset_tool, "make", "--source", photograph, "--dest", data, "--resolution", 64, "--counts", "8,12,16")
    assert made.exit_code == 0, made.output
    inspected = run(dataset_tool, "inspect", data, "--sheet", tmp_path / "sheet.png")
    assert inspected.exit_code == 0, inspected.output
    assert Image.open(tmp_path / "sheet.png").width > 64
    folder = quick_training(data, tmp_path / "run")
    rendered = run(generate, "--network", folder, "--seed", 3, "--scale", 8, "--out", tmp_path / "view.png")
    assert rendered.exit_code == 0, rendered.output
    assert Image.open(tmp_path / "view.png").size == (64, 64)


# Rendering -----------------------------------------------------------------------------------------------------------


def test_an_image_says_where_it_comes_from(trained, tmp_path):
    out = tmp_path / "one.png"
    result = run(generate, "--network", trained, "--seed", 3, "--scale", 8, "--centre", "0.1,-0.2", "--out", out)
    assert result.output.strip() == str(out)
    image = Image.open(out)
    assert image.size == (16, 16)
    facts = json.loads(image.text["multiscale"])
    assert (facts["world"], facts["scale"], facts["centre"]) == ("3", 8, [0.1, -0.2])
    assert facts["sha256"] == load_snapshot(snapshots_of(trained)[-1]).digest


def test_the_same_command_gives_the_same_bytes_and_seeds_differ(trained, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(generate, "--network", trained, "--seed", seed, "--out", tmp_path / f"{name}.png")
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_several_seeds_make_a_folder_in_their_order_each_once(trained, tmp_path):
    out = tmp_path / "f"
    result = run(generate, "--network", trained, "--seeds", "7,0-2,07,1-2", "--scale", "2.5", "--out", out)
    assert result.exit_code == 0
    made = [out / f"seed{seed:04d}-2.5x.png" for seed in (7, 0, 1, 2)]
    assert result.stdout.splitlines() == [str(path) for path in made]
    assert sorted(out.iterdir()) == sorted(made)
    alone = run(generate, "--network", trained, "--seeds", "3,3~7:0,3", "--out", tmp_path / "one.png")
    assert "2 seeds cannot be written to the one file" in alone.stderr  # a mix, even of weight 0, is another world
    assert run(generate, "--network", trained, "--seeds", "3,3", "--out", tmp_path / "one.png").exit_code == 0


def test_a_strip_outlines_each_view_in_the_one_before(trained, tmp_path):
    run(generate, "--network", trained, "--strip", "--centre", "0.1,-0.07", "--out", tmp_path / "strip.png")
    pixels = np.asarray(Image.open(tmp_path / "strip.png"))
    assert pixels.shape[1] > 3.5 * pixels.shape[0]  # 1x, 2x, 4x, 8x
    white = (pixels == 255).all(axis=-1)
    assert white[18:, 8:120].sum() > 100  # the outline inside the first picture


def test_the_newest_run_is_taken_and_the_bundled_model_before_there_is_one(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_network(None) == BUNDLED
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "00000-a").symlink_to(trained)
    assert run(generate).stdout.strip() == "out/seed0000-1x.png"


def test_of_a_folder_of_runs_the_snapshot_written_last_is_taken_and_named(trained, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    older, newer = (Path("mine", run, snapshots_of(trained)[-1].name) for run in ("b", "a"))
    for age, path in ((100, older), (0, newer)):
        path.parent.mkdir(parents=True)
        path.write_bytes(snapshots_of(trained)[-1].read_bytes())
        os.utime(path, (time.time() - age,) * 2)
    says = f"Using {newer} (0.016 kimg), the snapshot written last in mine; --network takes another."
    for folder in ("mine", "mine/"):
        assert run(generate, "--network", folder).stderr == f"{says}\n"
        assert find_networks([folder]) == [newer]
    assert run(generate, "--network", "mine/b").stderr == "", "a run is named"
    assert multiscale.load("mine").path == newer
    assert caplog.messages == [says.replace("--network", "load()")]
    state = Path("mine/b", states_of(trained)[-1].name)
    state.write_bytes(states_of(trained)[-1].read_bytes())
    data = trained.parent / "patches.zip"
    assert resolve(Request(data=str(data), transfer="mine", outdir="x", gpus=0)).job.transfer == state
    empty = tmp_path / "mine" / "c" / "deeper"
    empty.mkdir(parents=True)
    assert "c holds no snapshot (generator-*.safetensors), nor does a folder in it; give" in refused(
        generate, "--network", empty.parent
    )


def test_a_network_that_nobody_named_is_named_on_stderr_and_an_untrained_one_is_called_so(
    trained, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    bundled = f"{load_snapshot(BUNDLED).info['kimg']:.0f}"
    assert run(generate).stderr == f"Using the bundled model ({bundled} kimg); --network takes another.\n"
    multiscale.load()
    assert caplog.messages == [f"Using the bundled model ({bundled} kimg); load() takes another."]
    own = tmp_path / "runs" / "00000-a"
    own.mkdir(parents=True)
    path = Path("runs/00000-a/generator-000000016.safetensors")
    path.write_bytes(snapshots_of(trained)[-1].read_bytes())
    says = f"Using {path} (0.016 kimg), the snapshot written last in runs; --network takes another."
    assert run(generate).stderr == f"{says}\n"
    assert find_networks([]) == [path]
    assert run(generate, "--network", path).stderr == ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        multiscale.load()
    snapshot = load_snapshot(path)
    save_snapshot(path, snapshot.generator, snapshot.info | {"kimg": 25000})
    assert run(generate).stderr.startswith(f"Using {path} (25,000 kimg), the snapshot")
    path.unlink()
    path = path.with_name("generator-000000000.safetensors")
    path.write_bytes(snapshots_of(trained)[0].read_bytes())
    says = (
        f"Using {path}, the snapshot written last in runs, which is untrained (0 kimg) and shows noise; "
        f"--network takes another, such as the bundled model, earth.\n"
    )
    assert run(generate).stderr == says
    with pytest.warns(UserWarning, match="untrained .0 kimg. and shows noise; load.. takes another") as caught:
        multiscale.load()
    assert caught[0].filename == __file__
    path.write_bytes(b"")  # what is wrong with it is said after which it is
    first, second = run(generate).stderr.splitlines()
    assert first == f"Using {path}, the snapshot written last in runs; --network takes another."
    assert second.startswith(f"Error: {path} is an empty file")


def test_a_large_image_has_a_bar_of_progress_over_its_tiles(trained, tmp_path, monkeypatch):
    steps = []

    class Bar(tqdm):
        def update(self, n=1):
            steps.append(n)
            return super().update(n)

    monkeypatch.setattr(
        "multiscale.rendering.commands.progress_bar", lambda **options: Bar(**options, file=io.StringIO())
    )
    monkeypatch.setattr(
        "multiscale.rendering.renderer.TILE_PX", {"cpu": 1, "cuda": 1}
    )  # tiles of the network's own size
    for options, views in (
        (["--size", "96x40"], 1),
        (["--size", "96x40", "--bits", "16"], 1),
        (["--strip", "--size", 40], 2),
    ):
        steps.clear()
        run(generate, "--network", trained, *options, "--out", tmp_path / "a.png")
        assert len(steps) > 4 * views
        assert sum(steps) == pytest.approx(1)
        assert max(steps[:-1]) < 0.5


def test_images_of_any_size_and_depth(trained, tmp_path):
    run(generate, "--network", trained, "--size", "96x40", "--bits", "16", "--out", tmp_path / "a.png")
    run(generate, "--network", trained, "--size", "96x40", "--out", tmp_path / "b.png")
    pyvips = pytest.importorskip("pyvips")
    deep, shallow = (pyvips.Image.new_from_file(str(tmp_path / name)) for name in ("a.png", "b.png"))
    assert (deep.width, deep.height, deep.format) == (96, 40, "ushort")
    np.testing.assert_allclose(deep.numpy() / 257, shallow.numpy(), atol=1)
    assert json.loads(Image.open(tmp_path / "a.png").text["multiscale"])["world"] == "0"


def test_a_sheet_of_worlds(trained, tmp_path):
    run(generate, "--network", trained, "--seeds", "0-2,1~2:0.5,3_4@0-5", "--grid", "--out", tmp_path / "g.png")
    assert Image.open(tmp_path / "g.png").size[0] > 3 * 128
    assert json.loads(Image.open(tmp_path / "g.png").text["multiscale"])["world"][3:] == ["1~2:0.5", "3_4@0-5"]


def test_a_sheet_names_its_worlds_and_takes_any_shape(trained, tmp_path):
    options = ("--network", trained, "--grid", "--size", "16x8", "--scale", "1")
    run(generate, *options, "--seeds", "0-2", "--out", tmp_path / "g.png")
    pixels = np.asarray(Image.open(tmp_path / "g.png")).astype(int)
    wide, high = 256, 128  # enlarged to show pixels
    assert pixels.shape == (4 + 2 * (18 + high + 4), 4 + 2 * (wide + 4), 3)
    for number, (row, column) in enumerate([(0, 0), (0, 1), (1, 0)]):
        top, left = 4 + row * (18 + high + 4), 4 + column * (wide + 4)
        caption = pixels[top : top + 18, left : left + wide]
        assert (caption < 128).any(), f"the name of world {number}"
        run(generate, *options[:2], *options[3:], "--seed", number, "--out", tmp_path / "one.png")
        alone = np.asarray(Image.open(tmp_path / "one.png")).repeat(16, axis=0).repeat(16, axis=1)
        np.testing.assert_array_equal(pixels[top + 18 : top + 18 + high, left : left + wide], alone)
    assert (pixels[4 + 18 + high + 4 :, 4 + wide + 4 :] == 255).all(), "no fourth"


def test_the_finest_pixels_are_enlarged_where_that_is_asked_for(trained, tmp_path):
    world = multiscale.load(trained).world(3)
    options = ("--network", trained, "--seed", 3, "--enlarge", "--out", tmp_path / "a.png")
    for scale, size in ((8, "64x48"), (2, "64x48"), (8, None)):
        sides = (64, 48) if size else None
        assert run(generate, *options, "--scale", scale, *(["--size", size] if size else [])).exit_code == 0
        np.testing.assert_array_equal(Image.open(tmp_path / "a.png"), world.view(scale, size=sides))
    assert run(generate, *options, "--scale", 8, "--size", "64x48", "--bits", 16).exit_code == 0
    width, height, rows, info = Reader(str(tmp_path / "a.png")).read_flat()
    assert (width, height, info["bitdepth"]) == (64, 48, 16)
    fine = np.array(rows).reshape(48, 64, 3) / 257
    assert np.abs(fine - np.asarray(world.view(8, size=(64, 48)))).mean() < 1.5
    for bits in (8, 16):  # a file of tiles and halves
        tiff = ("--tiff", tmp_path / "a.tif", "--size", "300x200", "--scale", 8, "--bits", bits)
        assert run(generate, *options[:-2], *tiff).exit_code == 0
        page = tifffile.imread(tmp_path / "a.tif") / (257 if bits == 16 else 1)
        assert np.abs(page - np.asarray(world.view(8, size=(300, 200)))).mean() < 1.5


def test_a_strip_takes_the_side_of_its_views(trained, tmp_path):
    run(generate, "--network", trained, "--strip", "--size", "160", "--out", tmp_path)
    pixels = np.asarray(Image.open(tmp_path / "seed0000-strip-160x160.png"))
    assert pixels.shape == (18 + 160 + 4, 4 + 4 * (160 + 4), 3)
    deepest = multiscale.load(trained).world(0).view(8, size=(160, 160))
    np.testing.assert_array_equal(pixels[18 : 18 + 160, -4 - 160 : -4], deepest)


def test_films_and_large_files(trained, tmp_path):
    film = ("--video", tmp_path / "f.mp4", "--to", "8,0.2,0.1", "--seconds", "0.5", "--fps", "8", "--size", "32x32")
    assert "From 4x on the film enlarges" in run(generate, "--network", trained, *film).output
    run(generate, "--network", trained, "--pyramid", tmp_path / "p.dzi")
    run(generate, "--network", trained, "--tiff", tmp_path / "t.tif")
    assert len(list((tmp_path / "p_files").glob("*/*.png"))) == 8  # 128 a side, on one tile
    assert {path.name for path in tmp_path.iterdir()} == {"f.mp4", "p.dzi", "p_files", "t.tif"}


@pytest.mark.parametrize("room", [256 * 256 * 3, 256 * 256 * 3 - 1])
def test_a_tiff_that_may_not_fit_the_disk_says_so_first(trained, tmp_path, monkeypatch, room):
    usage = shutil.disk_usage(tmp_path)._replace(free=room)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    done = run(generate, "--network", trained, "--tiff", tmp_path / "new" / "t.tif")  # 128 a side, on one tile
    assert done.exit_code == 0, done.output
    assert ("t.tif may take up to 0.0 GB, and 0.0 GB are free." in done.stderr) == (room < 256 * 256 * 3)


def test_films_walk_through_worlds_and_resume(trained, tmp_path):
    film = ("--seeds", "3,5,3", "--scale", "2", "--loop", "--video", tmp_path / "f", "--fps", "6", "--seconds", "1")
    for _ in range(2):
        assert run(generate, "--network", trained, *film, "--size", 32).stdout.strip() == str(tmp_path / "f")
        (tmp_path / "f" / "frame-00003.png").unlink()
    names = [path.name for path in sorted((tmp_path / "f").iterdir())]
    assert names == [f"frame-{i:05d}.png" for i in (0, 1, 2, 4, 5)] + ["made-of.json"]
    for seed, i in ((3, 0), (5, 2), (3, 4)):
        still = multiscale.load(trained).world(seed).view(2, size=32)
        np.testing.assert_array_equal(Image.open(tmp_path / "f" / f"frame-0000{i}.png"), still)
    assert "holds something else" in refused(generate, "--network", trained, *film, "--size", 64)


@pytest.mark.parametrize("ending", ["jpg", "webp", "tif", "png"])
def test_pictures_in_each_format_show_the_same_and_say_what(trained, tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    run(generate, "--network", trained, "--seed", 3, "--scale", 2, "--size", "48x32", "--out", path)
    expected = np.asarray(multiscale.load(trained).world(3).view(2, size=(48, 32))).astype(float)
    with Image.open(path) as image:
        assert np.abs(np.asarray(image) - expected).mean() <= {"jpg": 2, "webp": 8}.get(ending, 0)
        said = {"png": lambda: image.text["multiscale"], "tif": lambda: image.tag_v2[270]}
        facts = json.loads(said.get(ending, lambda: image.getexif()[270])())
    assert (facts["world"], facts["scale"]) == ("3", 2)


def test_pictures_and_a_large_tiffs_first_page_state_pixels_an_inch(trained, tmp_path):
    run(generate, "--network", trained, "--out", tmp_path / "a.tif", "--dpi", 300)
    with Image.open(tmp_path / "a.tif") as image:
        assert image.info["dpi"] == (300, 300)
    run(generate, "--network", trained, "--tiff", tmp_path / "t.tif", "--dpi", 240)
    with tifffile.TiffFile(tmp_path / "t.tif") as file:
        tags = file.pages[0].tags
        assert (tags["XResolution"].value, tags["YResolution"].value) == ((240, 1), (240, 1))
        assert tags["ResolutionUnit"].value == 2
        assert json.loads(tags["ImageDescription"].value)["dpi"] == 240


def test_a_name_that_ends_as_files_of_other_formats_do_is_a_folders_only_if_it_says_so(trained, tmp_path):
    out = tmp_path / "bild.heic"
    says = f"--out {out} asks for a format that pictures cannot have here; give a name that ends in .png, .jpg, "
    for more in ([], ["--grid"], ["--strip"]):
        assert says in refused(generate, "--network", trained, "--out", out, *more)
    assert not out.exists()
    for name in (f"{out}/", out, tmp_path / "v1.5", f"{tmp_path / 'a.png'}/"):
        assert run(generate, "--network", trained, "--out", name).stdout.strip() == f"{Path(name)}/seed0000-1x.png"


def test_names_of_files_may_begin_at_home_though_no_shell_has_looked_at_them(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").symlink_to(trained)
    assert run(generate, "--network=~/x", "--out=~/a.png").stdout == f"{tmp_path}/a.png\n"
    model = multiscale.load("~/x")
    assert model.path == tmp_path / "x" / snapshots_of(trained)[-1].name
    assert model.world(0).pyramid("~/a.dzi") == tmp_path / "a.dzi"
    assert model.world(0).film("~/a.gif", (2, 0, 0), seconds=0.1, size=16) == tmp_path / "a.gif"
    assert "There is no network" in refused(generate, "--network=~/y")
    settings = ("--set", "training.lpips_folder=~/weights", "--set", "training.consistency_metric=l1+lpips")
    data = small_patches(tmp_path / "p.zip", side=32)
    assert f"into {tmp_path}/weights;" in refused(train, "--data", data, "--outdir=~/run", *settings)
    assert {path.name for path in tmp_path.iterdir()} == {"x", "p.zip", "a.png", "a.dzi", "a_files", "a.gif"}


def test_a_zoom_may_be_written_as_files_are_called(trained, tmp_path):
    for scale in ("2", "2x", "2X"):
        said = run(generate, "--network", trained, "--scale", scale, "--out", tmp_path).stdout
        assert said == f"{tmp_path}/seed0000-2x.png\n"
    assert parse_keyframe("64x,0.1,-0.2") == parse_keyframe("64,0.1,-0.2") == Keyframe(64, 0.1, -0.2)


def test_truncation_changes_the_image(trained, tmp_path):
    for psi in ("0", "1"):
        run(generate, "--network", trained, "--trunc", psi, "--out", tmp_path / f"{psi}.png")
    assert (tmp_path / "0.png").read_bytes() != (tmp_path / "1.png").read_bytes()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--scale", "9"], "out of range: this model zooms from 1 to 8"),
        (["--scale", "0.5"], "Scale 0.5 is out of range"),
        (["--scale", "nan"], "--scale 'nan' is not allowed; give a number"),
        (["--scale", "2", "--centre", "0.3,0"], r"must lie in \[-0.25, 0.25\]"),
        (["--centre", "0.3"], "Centre '0.3' cannot be read"),
        (["--centre", "nan,0"], "Centre 'nan,0' cannot be read"),
        (["--seeds", "5-1"], "Seeds '5-1' run backwards"),
        (["--seeds", "1,x"], "World 'x' cannot be read"),
        (["--seeds", "0-999999999"], "more than 100,000"),
        (["--seed", "1", "--seeds", "2"], "give one of them"),
        (["--seeds", "0-3", "--out", "a.png"], "cannot be written to the one file"),
        (["--seeds", "0-3", "--out", "a.png"], "give a folder as --out, or --grid for one sheet of all"),
        (["--seeds", "0-3", "--strip", "--out", "a.png"], "give a folder as --out.$"),
        (["--seed", "3,4"], "--seed 3,4 is more than one world; give --seeds 3,4"),
        (["--seed", "0-7"], "--seed 0-7 is more than one world; give --seeds 0-7"),
        (["--seed", "3,x"], "World 'x' cannot be read"),
        (["--network", "nowhere"], "There is no network nowhere"),
        (["--trunc", "nan"], "--trunc 'nan' is not allowed; give a number from -2 to 2"),
        (["--strip", "--scale", "3"], "shows every zoom; leave out --scale"),
        (["--size", "64", "--scale", "4"], "2 times finer than this model has learned"),
        (["--size", "64", "--scale", "1e300", "--extrapolate"], "at most 1,024"),
        (["--size", "64", "--scale", "0"], "Scale 0 is out of range"),
        (["--size", "64", "--scale", "4"], "or enlarge its finest pixels .--enlarge., or have it invent finer ones"),
        (["--size", "64", "--scale", "4", "--bits", "16"], "or enlarge its finest pixels .--enlarge."),
        (
            ["--size", "64", "--scale", "9", "--enlarge"],
            "of at most 2, with --enlarge a scale of at most 8, or have it invent finer ones .--extrapolate.",
        ),
        (["--scale", "9", "--enlarge"], "out of range: this model zooms from 1 to 8"),
        (["--size", "64", "--scale", "4", "--centre", "0.5,0", "--enlarge"], "puts this 4x view outside the world"),
        (["--enlarge", "--extrapolate"], "--enlarge takes the model's finest pixels, and .*; give one of them"),
        (["--strip", "--size", "64x32"], "shows square views, not of 64 x 32 pixels; give one side, such as --size 64"),
        (
            ["--strip", "--size", "9000"],
            "4 views of 9000 x 9000 pixels are too many for one PNG; give a smaller --size",
        ),
        (["--grid", "--seeds", "0-3", "--size", "9000"], "4 views of .* give a smaller --size or fewer --seeds"),
        (["--video", "a.mp4", "--to", "4,0.9,0"], "outside the world"),
        (["--video", "a.mp4", "--to", "4,0,0", "--size", "33x33"], "give even sides"),
        (["--tiff", "a.tif", "--size", "64", "--scale", "4"], "or enlarge its finest pixels .--enlarge."),
        (["--tiff", "a.tif", "--size", "999999", "--scale", "4", "--enlarge"], "at most 1,024 are allowed"),
        (["--seeds", "0-3", "--scale", "9"], "out of range: this model zooms from 1 to 8"),
        (["--seeds", "0-3", "--grid", "--scale", "9"], "out of range: this model zooms from 1 to 8"),
        (["--seeds", "0,1_2@40-50"], "names layer 50; this network has layers 0 to"),
        (["--fps", "0"], "--fps '0' is not allowed; give a whole number from 1 to 240"),
        (["--seconds", "abc"], "--seconds 'abc' is not allowed; give a number above 0"),
        (["--size", "64x"], "Size '64x' cannot be read"),
        (
            ["--size", "99999x99999"],
            r"too large to be held .* a PNG is .* give --tiff FILE.tif .* part by part \(with --enlarge, .* or for the whole",
        ),
        (["--size", "99999x99999", "--out", "a.jpg"], "too large to be held .* a JPEG is .* give --tiff FILE.tif in"),
        (["--size", "99999x99999", "--out", "a.webp"], "too large to be held .* a WebP is .* give --tiff FILE.tif in"),
        (
            ["--size", "99999x99999", "--out", "a.TIF"],
            "too large to be held .* a TIFF is .* give --tiff a.TIF in place of --out, ",
        ),
        (
            ["--size", "99999x99999", "--grid", "--seeds", "1,2"],
            "Views of 99999 x 99999 pixels are too large for a PNG; give a smaller --size",
        ),
        (
            ["--grid", "--seeds", "0-3", "--size", "9000", "--out", "a.tif"],
            "too many for one TIFF; give a smaller --size",
        ),
        (["--grid", "--strip"], "--strip and --grid make different things"),
        (["--video", "a.mp4"], "give --to zoom,x,y"),
        (["--video", "a.avi", "--to", "4,0,0"], "does not end in .mp4, .webm, .gif, .webp"),
        (["--video", "a.gif", "--to", "4,0,0", "--fps", "60"], "give at most 50"),
        (["--video", "a.mp4", "--seeds", "1-300"], "give at most 256"),
        (["--video", "a.mp4", "--seeds", "1,2_3@99"], "names layer 99"),
        (["--video", "a.mp4", "--seeds", "1,2", "--scale", "4", "--centre", "0.9,0"], "outside the world"),
        (["--loop"], "--loop belongs to a film"),
        (["--video", "a.mp4", "--to", "4,0"], "Place '4,0' cannot be read"),
        (["--video", "a.mp4", "--to", "4,0,0", "--scale", "2"], "leave out --scale"),
        (
            ["--video", "a.mp4", "--to", "-0.19,-0.02,64"],
            "Place '-0.19,-0.02,64' has the zoom -0.19, and 1 is the whole world; write zoom,x,y in this order, such as 64,",
        ),
        (
            ["--video", "a.mp4", "--to", "64,0.1,0"],
            r"Scale 64 of the place .64, 0.1, 0. is out of range: .* from 1 to 8, and places are .zoom, x, y.",
        ),
        (["--scale", "4xx"], "--scale '4xx' is not allowed; give a number"),
        (["--scale", "infx"], "--scale 'infx' is not allowed; give a number"),
        (["--scale", "9x"], "Scale 9 is out of range"),
        (["--to", "4,0,0"], "belong to a film; give --video FILE.mp4"),
        (["--pyramid", "a.dzi", "--size", "64"], "leave out --size"),
        (["--pyramid", "a.dzi", "--seeds", "0-1"], "shows one world and 2 were given"),
        (["--tiff", "a.png"], "does not end in .tif or .tiff; give a name that does"),
        (["--tiff", "a.tif", "--out", "b.png"], "--tiff names the file itself; leave out --out b.png"),
        (["--video", "a.mp4", "--to", "2,0,0", "--out", "b"], "--video names the file itself; leave out --out b"),
        (["--seconds", "5"], "--seconds belongs to a film; give --video FILE.mp4 with it"),
        (["--fps", "5", "--strip"], "--fps belongs to a film"),
        (
            ["--tiff", "a.tif", "--scale", "9", "--size", "99", "--enlarge"],
            "with --enlarge a scale of at most 8, or have",
        ),
        (["--pyramid", "a.dzi", "--dpi", "300"], "--pyramid makes none; leave out --dpi"),
        (["--video", "a.mp4", "--to", "2,0,0", "--dpi", "300"], "--video makes none; leave out --dpi"),
        (["--strip", "--centre", "9,9"], "outside the world"),
        (
            ["--out", "a.gif"],
            "a format that pictures cannot have here; give a name that ends in .png, .jpg, .jpeg, .webp, .tif",
        ),
        (["--out", "a.jpg", "--bits", "16"], "cannot hold 16 bits a channel; give a name that ends in .png or .tif"),
        (["--out", "a.webp", "--enlarge", "--size", "16384x64"], "takes up to 16,383 a side"),
        (["--network", "."], "holds no snapshot"),
    ],
)
def test_rendering_mistakes_are_one_sentence(trained, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    network = [] if "--network" in arguments else ["--network", trained]
    assert re.search(message, refused(generate, *network, *arguments))
    assert "%" not in run(generate, *network, *arguments).stderr, "no bar of progress before what is refused"
    assert list(tmp_path.iterdir()) == []


def test_snapshots_that_are_not_whole_or_not_ours(trained, tmp_path):
    good = snapshots_of(trained)[-1].read_bytes()
    path = tmp_path / "generator-000000001.safetensors"
    path.write_bytes(good[: len(good) // 2])
    assert "not a whole safetensors file" in refused(generate, "--network", path)
    path.write_bytes(b"")
    assert "is an empty file, not a network" in refused(generate, "--network", path)
    path.write_bytes(safetensors.torch.save({"a": torch.zeros(1)}))
    assert "not a generator of this program" in refused(generate, "--network", path)
    version = b'"format_version":"%d"' % FORMAT_VERSION
    path.write_bytes(good.replace(version, b'"format_version":"x"'))
    assert "does not say which snapshot format" in refused(generate, "--network", path)
    snapshot = load_snapshot(snapshots_of(trained)[-1])
    next(snapshot.generator.parameters()).fill_(float("nan"))
    save_snapshot(path, snapshot.generator, {})
    assert "not finite" in refused(generate, "--network", path)
    newer = good.replace(version, b'"format_version":"9"')
    assert newer != good
    path.write_bytes(newer)
    assert f"newer than the format {FORMAT_VERSION}" in refused(generate, "--network", path)


def test_a_training_state_and_a_snapshot_in_place_of_each_other_are_told_apart(trained, tmp_path):
    state, snapshot = states_of(trained)[-1], snapshots_of(trained)[-1]
    says = "is a training state (for --resume and --transfer), not a network to render; give"
    assert f"{state} {says} {snapshot}, the snapshot beside it." in refused(generate, "--network", state)
    first = tmp_path / states_of(trained)[0].name
    first.write_bytes(state.read_bytes())
    assert f"{first} {says} a generator-*.safetensors file of its run." in refused(generate, "--network", first)
    first.write_bytes(state.read_bytes()[:1000])
    assert f"{first} {says}" in refused(generate, "--network", first), "even if it is not whole"
    renamed = tmp_path / "best.pt"
    renamed.write_bytes(state.read_bytes())
    (tmp_path / snapshot.name).write_bytes(snapshot.read_bytes())
    assert f"{renamed} {says} {tmp_path / snapshot.name}, the snap" in refused(generate, "--network", renamed)
    patches = trained.parent / "patches.zip"
    assert f"{patches} is a ZIP, not a network; give" in refused(generate, "--network", patches)
    again = refused(train, "--data", patches, "--outdir", tmp_path / "x", "--resume", snapshot)
    assert f"{snapshot} is a snapshot of a generator, not a training state; give {state}, the state beside" in again


def test_an_output_folder_that_cannot_be_made_is_named(trained, tmp_path):
    (tmp_path / "file").write_text("")
    assert "Cannot write" in refused(generate, "--network", trained, "--out", tmp_path / "file" / "deeper")


def test_a_probability_of_no_augmentation_is_remarked_upon(tmp_path):
    data = small_patches(tmp_path / "p.zip")
    words = ("--data", data, "--outdir", tmp_path / "x", "--dry-run", "--set", "training.augment_p=0.1")
    assert "Remark: training.augment_p=0.1 has no effect" in run(train, *words).output
    assert "Remark" not in run(train, *words, "--set", "training.augment=fixed").output


def test_pairs_with_unequal_penalties_are_remarked_upon(tmp_path):
    words = (
        "--data",
        small_patches(tmp_path / "p.zip"),
        "--outdir",
        tmp_path / "x",
        "--dry-run",
        "--set",
        "training.adversarial=pairs",
    )
    for more, remarked in (("training.r1_gamma=2", True), ("training.r2_gamma=0.15", False)):
        result = run(train, *words, "--set", "training.r1_gamma=0.15", "--set", more)
        assert ("Remark: training.adversarial=pairs" in result.output) == remarked, result.output
