"""All measures of a small model: sound values, the same however the work is cut, and ordered as quality is."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import calibrated_generator, small_config, small_patches
from scipy import ndimage

from dnnlib.errors import UserError
from multiscale.data.patches import PatchDataset
from multiscale.data.prepare import make_demo
from multiscale.metrics.compare import compare, real_images
from multiscale.metrics.features import load_features
from multiscale.metrics.frechet import Moments
from multiscale.metrics.measure import KINDS
from multiscale.metrics.measures.diversity import pairwise_distances
from multiscale.metrics.measures.lattice import _ratios
from multiscale.metrics.parse import parse_metric, parse_metrics
from multiscale.metrics.pools import Patches, pools_for
from multiscale.metrics.reals import RealFeatures, content_digest, fixed_order
from multiscale.metrics.samples import done_by_all, own_batches
from multiscale.metrics.scales import Evaluation
from torch_utils import distributed
from torch_utils.distributed import Process

CPU = Process(torch.device("cpu"))
SIDE = 16
ALL = (
    "msfid24,msfid_octave10,mskid24,mskid_octave10,precision_recall10,swd8,spectrum8,lattice16,diversity9,"
    "consistency3,equivariance2,seam1,truth3,compression1"
)


def tiny_generator(octaves: int = 3):
    torch.manual_seed(0)  # in other processes too
    return calibrated_generator(small_config(img_resolution=SIDE, octaves=octaves, channel_max=16, channel_base=256))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The procedural planet in three octaves of 24 patches."""
    path = tmp_path_factory.mktemp("metrics") / "p.zip"
    make_demo(dest=str(path), resolution=SIDE, octaves=3, counts=[24, 24, 24], seed=5, workers=1, force=False)
    return path


@pytest.fixture(scope="module")
def evaluation(data: Path) -> Evaluation:
    return evaluation_of(data, ALL)


def evaluation_of(data: Path, metrics: str, process: Process = CPU, **options) -> Evaluation:
    dataset = PatchDataset(data)
    features = load_features("random", dataset.resolution, process.device)
    found = Evaluation(parse_metrics(metrics), dataset, features, process, **options)
    found.prepare()
    return found


def flat(results) -> dict[str, float]:
    """All numbers of results by their place (and no words)."""
    found = {}

    def walk(name, value):
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{name}/{key}", inner)
        elif isinstance(value, list):
            for i, inner in enumerate(value):
                walk(f"{name}/{i}", inner)
        elif value is not None and not isinstance(value, str):
            found[name] = value

    walk("", results)
    return found


@pytest.fixture(scope="module")
def measured(evaluation: Evaluation):
    return evaluation.measure(tiny_generator())


def test_every_measure_gives_sound_numbers(evaluation, measured):
    results, patches = measured
    assert set(results) == {metric.name for metric in evaluation.metrics}
    assert {metric.kind_name for metric in evaluation.metrics} == set(KINDS)
    assert json.loads(json.dumps(results)) == results
    assert np.isfinite(list(flat(results).values())).all()
    for metric in evaluation.metrics:
        if metric.kind.per == "octave":
            assert metric.kind_name == "compression" or len(results[metric.name]["octaves"]) == 3
    assert results["msfid24"]["value"] > 0 < results["swd8"]["value"]
    assert results["seam1"]["value"] < 1.5  # levels of 255: no seam is seen
    assert results["truth3"]["scene_seed"] == 5
    assert results["truth3"]["psnr_mean"] < 40
    assert results["compression1"]["raw_bytes"] == 3 * SIDE**2 * (1 + 4 + 16 + 64)
    assert (
        results["lattice16"]["value"]
        == max(results["lattice16"]["octaves"], key=lambda ratio: abs(math.log(ratio)))
        > 0
    )
    assert 0 < results["diversity9"]["value"] < 10 > results["diversity9"]["layout"] > 0
    assert patches[0].images.shape == (16, 3, SIDE, SIDE)
    assert patches[None].bank.shape == (24, evaluation.reals.features.dimension)


@pytest.mark.parametrize(("world_size", "batch", "count"), [(1, 4, 10), (2, 3, 10), (3, 4, 7), (4, 16, 3)])
def test_the_first_process_counts_for_all(world_size, batch, count):
    first = Process(CPU.device, 0, world_size)
    assert sum(done_by_all(first, indices, count) for indices in own_batches(first, count, batch)) == count
    every = [
        i
        for rank in range(world_size)
        for s in own_batches(Process(CPU.device, rank, world_size), count, batch)
        for i in s
    ]
    assert sorted(every) == list(range(count))


def test_views_are_counted_as_they_are_rendered(evaluation):
    counted = []
    evaluation.measure(tiny_generator(), counted.append)
    assert sum(counted) == evaluation.total_views()
    assert KINDS["consistency"].views(3, 3) == 12


def test_numbers_do_not_depend_on_the_batch_and_do_on_the_seed(data, measured):
    other = evaluation_of(data, ALL, batch=5)
    again, first = flat(other.measure(tiny_generator())[0]), flat(measured[0])
    assert again.keys() == first.keys()
    for name, value in first.items():
        assert again[name] == pytest.approx(value, rel=2e-3, abs=2e-4), name
    seeded = evaluation_of(data, "mskid24,consistency3", seed=1).measure(tiny_generator())[0]
    assert seeded["mskid24"]["value"] != measured[0]["mskid24"]["value"]
    assert seeded["consistency3"]["value"] != measured[0]["consistency3"]["value"]


def _share(process: Process, data: Path, out: Path) -> None:
    results, _ = evaluation_of(data, SHARED, process).measure(tiny_generator())
    (out / f"{process.rank}.json").write_text(json.dumps(results))


SHARED = "msfid24,mskid_octave10,swd8,consistency3,seam1"


def test_two_processes_find_what_one_does(data, measured, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    distributed.run(_share, [torch.device("cpu")] * 2, data, tmp_path)
    found = [flat(json.loads((tmp_path / f"{rank}.json").read_text())) for rank in (0, 1)]
    assert found[0] == found[1]
    first = flat({name: measured[0][name] for name in SHARED.split(",")})
    for name, value in first.items():
        assert found[0][name] == pytest.approx(value, rel=2e-3, abs=2e-4), name


def test_real_patches_are_looked_at_once_for_a_data_set(data, tmp_path, monkeypatch):
    monkeypatch.setenv("MULTISCALE_CACHE", str(tmp_path / "cache"))
    digest = content_digest(data)
    moved = tmp_path / "moved.zip"
    moved.write_bytes(data.read_bytes())
    assert content_digest(moved) == digest != content_digest(small_patches(tmp_path / "other.zip"))
    features = load_features("random", SIDE, CPU.device)
    first = RealFeatures(PatchDataset(data), features, digest)
    indices = fixed_order(first.dataset, 1)[:10]
    assert len(first.missing(moments=False, indices=indices)) == 10
    first.prepare(CPU, moments=False, indices=indices, batch=4)
    assert len(first.missing(moments=True, indices=indices)) == 72
    first.prepare(CPU, moments=True, indices=indices, batch=7)
    again = RealFeatures(PatchDataset(moved), features, digest)
    assert again.missing(moments=True, indices=indices) == []
    np.testing.assert_array_equal(again.rows(indices), first.rows(indices))
    every = features(torch.from_numpy(real_images(first.dataset, 2, 24)))
    np.testing.assert_allclose(again.moments(2).mean, every.mean(0), rtol=1e-4, atol=1e-6)
    assert again.moments(None).count == 72
    for path in (tmp_path / "cache" / "metrics").glob("*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    assert len(RealFeatures(first.dataset, features, digest).missing(moments=True, indices=indices)) == 72


def test_a_folder_of_patches_is_known_by_its_content(data, tmp_path, monkeypatch):
    import zipfile

    monkeypatch.setenv("MULTISCALE_CACHE", str(tmp_path / "cache"))
    for name in ("a", "b"):
        zipfile.ZipFile(data).extractall(tmp_path / name)
    first = content_digest(tmp_path / "a")
    assert content_digest(tmp_path / "b") == first
    patch = next((tmp_path / "b").rglob("*.png"))
    patch.write_bytes(patch.read_bytes() + b"!")
    assert content_digest(tmp_path / "b") != first


class Damaged:
    """Generated patches that are real ones, damaged by a function of an image [C, N, N]."""

    def __init__(self, path: Path) -> None:
        self.dataset = PatchDataset(path)
        self.reals = RealFeatures(self.dataset, load_features("random", self.dataset.resolution, CPU.device), None)
        self.reals.prepare(CPU, moments=True, indices=range(len(self.dataset)), batch=32)

    def measure(self, name: str, damage) -> list[float]:
        metric = parse_metric(name)
        patches = {}
        for octave in range(self.dataset.octaves):
            images = np.stack([damage(x) for x in real_images(self.dataset, octave, 48)]).round().clip(0, 255)
            rows = self.reals.features(torch.from_numpy(images.astype(np.uint8)))
            moments = Moments(rows.shape[1])
            moments.add(rows)
            patches[octave] = Patches({metric.count: moments}, rows, images.astype(np.uint8))
        return compare(metric, self.dataset, self.reals, patches)["octaves"]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Damaged:
    path = tmp_path_factory.mktemp("damaged") / "p.zip"
    make_demo(dest=str(path), resolution=32, octaves=3, counts=[48, 48, 48], seed=0, workers=1, force=False)
    return Damaged(path)


@pytest.mark.parametrize("name", ["msfid_octave48", "mskid_octave48", "swd48", "spectrum48"])
def test_measures_grow_with_blur_and_with_noise_in_each_octave(damaged, name):
    def blur(sigma):
        return lambda x: ndimage.gaussian_filter(x.astype(float), (0, sigma, sigma))

    def noise(amplitude):
        return lambda x: x + np.random.default_rng(int(x.sum())).normal(0, amplitude, x.shape)

    for damage, strengths in ((blur, (0.4, 0.8, 1.6, 3.2)), (noise, (4, 8, 16, 32))):
        found = np.array([damaged.measure(name, damage(strength)) for strength in strengths])  # [4, S]
        assert (np.diff(found, axis=0) > 0).all(), (damage.__name__, found)


def test_a_set_is_at_distance_0_of_itself_in_each_octave(damaged):
    for name in ("msfid_octave48", "swd48", "spectrum48"):
        np.testing.assert_allclose(damaged.measure(name, lambda x: x.astype(float)), 0, atol=1e-6)


def test_a_lattice_that_the_real_patches_alone_have_counts_as_much():
    rng = np.random.default_rng(0)
    clean, other = (rng.integers(0, 255, (64, 3, 32, 32), dtype=np.uint8) for _ in range(2))
    wave = 60 * np.sin(2 * np.pi * 8 * np.arange(32) / 32)
    weave = np.clip(clean * 0.5 + 64 + wave, 0, 255).astype(np.uint8)
    for real, fake in (((clean, other), (weave, other)), ((weave, other), (clean, other))):
        result = _ratios(real, fake)
        assert result["octaves"][1] == 1
        assert result["value"] == result["octaves"][0]
        assert abs(math.log(result["value"])) > math.log(5)


def test_a_periodic_pattern_is_a_lattice_in_each_octave(damaged):
    x = np.arange(32)
    waves = np.sin(2 * np.pi * (7 * x[:, None] + 4 * x) / 32) + np.sin(2 * np.pi * (3 * x[:, None] - 8 * x) / 32)
    clean, more, most = (damaged.measure("lattice48", lambda image, a=a: image + a * waves) for a in (0, 10, 30))
    assert clean == [1, 1, 1]
    assert (np.array(more) > 1.5).all()
    assert (np.array(most) > more).all()


def test_worlds_of_one_layout_are_less_diverse_than_their_colours(damaged):
    metric, octave = parse_metric("diversity48"), real_images(damaged.dataset, 0, 48)

    def measure(images):
        return compare(metric, damaged.dataset, None, {0: Patches({}, np.zeros((0, 0)), images)})

    same = measure(octave)
    assert same["value"] == same["layout"] == 1
    copies = measure(np.repeat(octave[:1], 48, axis=0))
    assert copies["value"] == copies["layout"] == 0
    colours = np.random.default_rng(0).integers(0, 60, (48, 3, 1, 1))
    recoloured = measure((octave[:1] // 2 + colours).astype(np.uint8))
    assert recoloured["value"] > 0.3
    assert recoloured["layout"] < 1e-9


def test_pairwise_distances_are_those_of_plain_loops():
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    x = images / 127.5 - 1
    for found, y in zip(pairwise_distances(images), (x, x - x.mean(axis=(2, 3), keepdims=True)), strict=True):
        pairs = [np.sqrt(np.mean((y[i] - y[j]) ** 2)) for i in range(5) for j in range(i)]
        assert found == pytest.approx(np.mean(pairs))


def test_pools_are_as_large_as_the_greediest_measure_asks():
    mixture, *octaves = pools_for(parse_metrics("msfid30,mskid20,swd5,msfid_octave9,consistency"), 2, pictures=7)
    assert (mixture.count, mixture.moments, mixture.bank, mixture.images) == (30, {30}, 20, 0)
    assert [(p.count, p.moments, p.bank, p.images) for p in octaves] == [(9, {9}, 7, 7)] * 2
    assert pools_for(parse_metrics("consistency,seam"), 2) == []
    assert [(p.octave, p.count, p.images) for p in pools_for(parse_metrics("diversity20"), 3)] == [(0, 20, 20)]
    assert KINDS["diversity"].views(20, 3) == 20


def test_one_patch_of_an_octave_is_enough_to_compare_with_and_gives_no_floor(tmp_path):
    """Presets measure the distance: they must not refuse data that can be trained on."""
    dataset = small_patches(tmp_path / "one.zip", per_octave=1)
    results, _ = evaluation_of(dataset, "swd3,spectrum3").measure(tiny_generator())
    for result in results.values():
        assert len(result["octaves"]) == 3
        assert "floor" not in result
        assert result["value"] > 0
    assert "floor" in evaluation_of(small_patches(tmp_path / "two.zip"), "swd3").measure(tiny_generator())[0]["swd3"]


def test_what_does_not_fit_is_refused_before_any_work(data, tmp_path):
    with pytest.raises(UserError, match=r"makes patches of 32 pixels and .* has patches of 16 pixels"):
        evaluation_of(data, "swd8").check(calibrated_generator(small_config(octaves=3)))
    with pytest.raises(UserError, match=r"makes 4 octaves and .* has 3 octaves"):
        evaluation_of(data, "swd8").check(tiny_generator(4))
    with pytest.raises(UserError, match=r"not those of 'python dataset_tool.py demo'"):
        evaluation_of(small_patches(tmp_path / "p.zip"), "truth")
    few = small_patches(tmp_path / "few.zip", per_octave=4)
    with pytest.raises(UserError, match=r"Octave 0 of .* has 4 patches and precision_recall need at least 8 in each"):
        evaluation_of(few, "precision_recall")
    one = small_patches(tmp_path / "one.zip", per_octave=1)
    with pytest.raises(UserError, match=r"Octave 0 of .* has 1 patches and diversity need at least 2"):
        evaluation_of(one, "diversity")
    with pytest.raises(ValueError, match="not a measure of patches"):
        compare(parse_metric("consistency"), PatchDataset(one), None, {})
    with pytest.raises(ValueError, match="need features"):
        Evaluation(parse_metrics("msfid"), PatchDataset(data), None, CPU)


def test_a_worse_network_scores_worse(data):
    """The same network with noise on its output, and one that repeats itself."""
    good = tiny_generator()
    measures = evaluation_of(data, "mskid24,consistency3,equivariance2")
    clean = measures.measure(good)[0]

    class Noisy(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.config = inner, inner.config

        def forward(self, z, transform):
            return self.inner(z, transform) + 0.3 * torch.randn(len(z), 3, SIDE, SIDE)

    noisy = measures.measure(Noisy(good))[0]
    assert noisy["consistency3"]["value"] < clean["consistency3"]["value"] - 1
    assert noisy["equivariance2"]["value"] < clean["equivariance2"]["value"] - 3
