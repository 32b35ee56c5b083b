"""The training loop: one step of the multiscale GAN, repeated, with snapshots and sample sheets on the way.

Shapes: B images of this process's share of a batch, real [B, C, N, N] in [-1, 1], zoom s [B] in octaves, z [B, z_dim].
"""

from __future__ import annotations

import copy
import json
import math
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from dnnlib.errors import UserError
from dnnlib.progress import progress_bar
from dnnlib.signals import StopRequest
from multiscale.config import RunConfig, to_dict
from multiscale.data.patches import PatchDataset
from multiscale.data.sampling import SamplerState, ScaleSampler
from multiscale.networks.discriminator import Discriminator
from multiscale.networks.generator import Generator
from multiscale.rendering.renderer import Renderer, save_png
from multiscale.rendering.sheets import sample_sheet
from multiscale.training import adversarial
from multiscale.training.augment import AdaController, AugmentPipe
from multiscale.training.checkpoint import save_snapshot
from multiscale.training.consistency import consistency_loss, sample_zoom_out
from multiscale.training.evaluation import patch_distance, real_sheet
from multiscale.training.perceptual import load_lpips
from multiscale.training.state import identity_of, save_state
from multiscale.view import unchecked_transform, uniform_centres, zoom_out
from torch_utils.distributed import Process, any_of, average
from torch_utils.ema import half_life_decay, update_ema
from torch_utils.random import normal, stream
from torch_utils.stats import Means

G_BETAS = (0.0, 0.99)
ADAM_EPS = 1e-8
TICKS = 400
"""Lines of statistics in a run."""

STEPS_TO_AGREE = 8
"""Steps between which several processes ask each other whether to stop."""


class Trainer:
    """A run in one process.

    Args:
        config: The resolved run.
        dataset: Its patches; their size, channels and octaves agree with the config.
        folder: Where the run is written; it exists.
        process: This process and its device.
    """

    def __init__(self, config: RunConfig, dataset: PatchDataset, folder: Path, process: Process) -> None:
        self.config, self.dataset, self.folder, self.process = config, dataset, folder, process
        self.device = process.device
        training = config.training
        self.share = training.batch // process.world_size
        self.step = 0
        self.total_steps = max(math.ceil(training.kimg * 1000 / training.batch), 1)
        self.means = Means()
        self.distances: list[float] = []

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            self.G = Generator(config.generator).to(self.device)
            self.D = Discriminator(
                config.discriminator,
                img_resolution=config.generator.img_resolution,
                img_channels=config.generator.img_channels,
            ).to(self.device)
        self._calibrate()
        self.G_ema = copy.deepcopy(self.G).eval().requires_grad_(False)

        fused = self.device.type in ("cpu", "cuda")
        self.g_optimiser = torch.optim.Adam(
            self.G.parameters(), lr=training.g_lr, betas=G_BETAS, eps=ADAM_EPS, fused=fused
        )
        d_lr, d_betas = adversarial.lazy_adam(training.d_lr, G_BETAS, training.r1_interval)
        self.d_optimiser = torch.optim.Adam(self.D.parameters(), lr=d_lr, betas=d_betas, eps=ADAM_EPS, fused=fused)

        self.perceptual = None
        if training.consistency_weight and training.consistency_metric == "l1+lpips":
            folder_of_weights = None if training.lpips_folder is None else Path(training.lpips_folder)
            self.perceptual = load_lpips(folder_of_weights).to(self.device)
        self.augment = None if training.augment == "none" else AugmentPipe(p=training.augment_p)
        self.ada = AdaController(target=training.ada_target) if training.augment == "ada" else None
        self.sampler = ScaleSampler(
            dataset.patch_octaves,
            octaves=dataset.octaves,
            batch=training.batch,
            schedule=config.schedule,
            seed=training.seed,
            rank=process.rank,
            world_size=process.world_size,
        )

    @property
    def images_seen(self) -> int:
        """Real images shown so far, over all processes."""
        return self.step * self.config.training.batch

    def run(self) -> None:
        """Train to the end, or until SIGINT or SIGTERM asks to stop: then the step is finished and the state kept."""
        training = self.config.training
        per_snapshot = self._steps(training.snapshot_kimg or training.kimg / 50)
        per_tick = max(self.total_steps // TICKS, 1)
        first = self.process.is_first
        if self.step >= self.total_steps:
            return
        if self.step == 0:
            self._begin()
        bar = progress_bar(
            total=self.total_steps * training.batch, initial=self.images_seen, unit="img", disable=not first
        )
        with bar, StopRequest() as stop:
            for real, labels in self._batches():
                self.train_step(real, labels)
                bar.update(training.batch)
                ends = self.step >= self.total_steps
                if self.step % per_tick == 0 or ends:
                    self._tick(bar)
                if ends:
                    break
                asked = self._is_asked_to_stop(stop)
                if self.step % per_snapshot == 0 or asked:
                    self._snapshot()
                    self._save_state()
                if asked:
                    return
        if first:
            print(f"Trained {self.images_seen / 1000:g} kimg: {self._snapshot()}, sheets {self.folder}/samples-*.png")
            self._measure()
        self._save_state()

    def _begin(self) -> None:
        """What a new run writes before its first step; a disk that is too small for its files shows at once."""
        if self.process.is_first:
            save_png(self.folder / "reals.png", real_sheet(self.dataset, self.config.training.sample_seeds), {})
            self._measure()
        self._snapshot()
        self._save_state()

    def _is_asked_to_stop(self, stop: StopRequest) -> bool:
        """Whether any process has been asked to stop; several agree on it every few steps, so that all stop at the same."""
        agree = self.process.world_size == 1 or self.step % STEPS_TO_AGREE == 0
        return agree and any_of(stop.received, self.process)

    def state_dict(self) -> dict[str, Any]:
        """All that the steps to come depend on, and what has been counted for the next line of statistics."""
        sampler = self.sampler.state_after(self.step)
        return {
            "step": self.step,
            "config": to_dict(self.config),
            "data": identity_of(self.dataset),
            "G": self.G.state_dict(),
            "D": self.D.state_dict(),
            "G_ema": self.G_ema.state_dict(),
            "g_optimiser": self.g_optimiser.state_dict(),
            "d_optimiser": self.d_optimiser.state_dict(),
            "augment_p": None if self.augment is None else float(self.augment.p),
            "ada": None if self.ada is None else self.ada.state_dict(),
            "drawn": list(sampler.drawn),
            "means": self.means.state_dict(),
            "distances": self.distances,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict()`` of a run with the same networks and data; the schedule may be another."""
        self.step = int(state["step"])
        for name in ("G", "D", "G_ema", "g_optimiser", "d_optimiser"):
            getattr(self, name).load_state_dict(state[name])
        if self.augment is not None and state["augment_p"] is not None and self.config.training.augment == "ada":
            self.augment.p.fill_(state["augment_p"])
        if self.ada is not None and state["ada"] is not None:
            self.ada.load_state_dict(state["ada"])
        self.sampler.go_on_from(SamplerState(self.step, tuple(state["drawn"])))
        self.means.load_state_dict(state["means"], self.device)
        self.distances = list(state["distances"])

    def train_step(self, real: torch.Tensor, labels: torch.Tensor) -> None:
        """One step of D and one of G: real patches uint8 [B, C, N, N] and their zooms s [B] (CPU)."""
        training = self.config.training
        real = real.to(self.device, non_blocking=True).float() / 127.5 - 1
        transform = unchecked_transform(
            torch.exp2(labels), uniform_centres(torch.exp2(labels), self._stream("centres"))
        )
        z = normal(self._stream("latents"), len(real), self.config.generator.z_dim).to(self.device)
        ws = self.G.mapping(z, update_emas=True)
        fake = self.G.synthesis(ws, transform, update_emas=True)  # serves D's step, detached, and then G's

        self._discriminator_step(real, fake.detach())
        self._generator_step(fake, ws, transform, labels)

        images = self.images_seen + training.batch
        half_life = 1000 * (training.ema_kimg or training.batch * 10 / 32)
        if training.ema_rampup is not None:
            half_life = min(half_life, images * training.ema_rampup)
        update_ema(self.G_ema, self.G, half_life_decay(training.batch, half_life))
        self.step += 1
        if self.augment is not None and self.ada is not None:
            self.ada.step(self.augment, training.batch, self.process)

    def _discriminator_step(self, real: torch.Tensor, fake: torch.Tensor) -> None:
        training = self.config.training
        self.D.requires_grad_(True)
        real_logits, fake_logits = self.D(self._shown(real, "augment real")), self.D(self._shown(fake, "augment fake"))
        loss = adversarial.discriminator_loss(fake_logits, real_logits)
        loss.backward()
        self._optimise(self.D, self.d_optimiser, "D")
        if training.r1_gamma and self.step % training.r1_interval == 0:
            seen = real.detach().requires_grad_(True)
            logits = self.D(self._shown(seen, "augment r1"))
            penalty = adversarial.r1_penalty(logits, seen, training.r1_gamma)
            (penalty * training.r1_interval).backward()
            self._optimise(self.D, self.d_optimiser, "D")
            self.means.add("loss/r1", penalty)
        self.D.requires_grad_(False)
        if self.ada is not None:
            self.ada.observe(real_logits)
        self.means.add("loss/D", loss)
        self.means.add("logits/real", real_logits)
        self.means.add("logits/fake", fake_logits)

    def _generator_step(
        self, fake: torch.Tensor, ws: torch.Tensor, transform: torch.Tensor, labels: torch.Tensor
    ) -> None:
        weight = self.config.training.consistency_weight
        loss = adversarial.generator_loss(self.D(self._shown(fake, "augment G")))
        self.means.add("loss/G", loss)
        if weight:
            consistency = self._consistency(fake, ws, transform, labels)
            self.means.add("loss/consistency", consistency)
            loss = loss + weight * consistency
        loss.backward()
        self._optimise(self.G, self.g_optimiser, "G")
        average(self.G.running_means(), self.process)

    def _consistency(
        self, fine: torch.Tensor, ws: torch.Tensor, transform: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Render the same latents farther out about the same centres and compare; a coin detaches one of the two."""
        factor = sample_zoom_out(labels, self._stream("zoom out"))
        train_fine = self._stream("coin").random() < 0.5
        with torch.set_grad_enabled(not train_fine):
            coarse = self.G.synthesis(ws, zoom_out(transform, factor))
        return consistency_loss(fine if train_fine else fine.detach(), coarse, factor, self.perceptual)

    def _shown(self, images: torch.Tensor, purpose: str) -> torch.Tensor:
        """What the discriminator sees of ``images``: augmented, then blurred while the run is young."""
        training = self.config.training
        if self.augment is not None:
            images = self.augment(images, generator=self._stream(purpose))
        fade_kimg = training.blur_fade_kimg or training.batch * 200 / 32
        sigma = adversarial.blur_sigma(self.images_seen, sigma_px=training.blur_sigma_px, fade_images=fade_kimg * 1000)
        return adversarial.blur(images, sigma)

    def _optimise(self, module: nn.Module, optimiser: torch.optim.Optimizer, name: str) -> None:
        """Average gradients over processes, replace what is not finite (and count it), take the step."""
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        average(gradients, self.process)
        norms = torch.stack(torch._foreach_norm(gradients))
        broken = torch.stack([(~torch.isfinite(g)).sum() for g in gradients]).sum()
        for g in gradients:
            torch.nan_to_num(g, nan=0.0, posinf=1e5, neginf=-1e5, out=g)
        self.means.add(f"gradients/{name} norm", norms.square().sum().sqrt())
        self.means.add(f"gradients/{name} not finite", broken)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        workers = self.config.training.workers
        workers = (0 if self.device.type == "cpu" else 3) if workers is None else workers  # a CPU has none to spare
        return iter(
            DataLoader(
                self.dataset,  # type: ignore[arg-type]
                batch_sampler=self.sampler,
                num_workers=workers,
                pin_memory=self.device.type == "cuda",
                worker_init_fn=_ignore_interrupt,
            )
        )

    def _calibrate(self) -> None:
        """Start the running means from what the untrained network shows over all zooms, not from 0 and 1."""
        rng = stream(self.config.training.seed, "calibration")
        zoom = torch.exp2(torch.from_numpy(rng.uniform(0, self.config.generator.octaves, size=16)))
        z = normal(rng, 16, self.config.generator.z_dim).to(self.device)
        self.G.calibrate(z, unchecked_transform(zoom, uniform_centres(zoom, rng)))

    def _stream(self, purpose: str) -> Any:
        return stream(self.config.training.seed, purpose, self.step, self.process.rank)

    def _steps(self, kimg: float) -> int:
        return max(round(kimg * 1000 / self.config.training.batch), 1)

    def _tick(self, bar: tqdm) -> None:
        """Read the statistics (the only wait for the device), log them and show them."""
        stats = self.means.read()
        if not self.process.is_first:
            return
        mix = self.sampler.probabilities(self.images_seen)
        augment_p = {} if self.augment is None else {"augment/p": float(self.augment.p)}
        self._log({**stats, **augment_p, "octave mix": mix.round(4).tolist()})
        losses = " ".join(
            f"{name} {stats[f'loss/{name}']:.2f}" for name in ("D", "G", "consistency") if f"loss/{name}" in stats
        )
        bar.set_description(f"{self.images_seen / 1000:.1f} kimg", refresh=False)
        bar.set_postfix_str(f"{losses} octaves {'/'.join(f'{100 * p:.0f}' for p in mix)}%", refresh=False)

    def _log(self, values: dict[str, Any]) -> None:
        """Append one line to ``stats.jsonl``."""
        path = self.folder / "stats.jsonl"
        try:
            with open(path, "a", encoding="utf-8") as lines:
                lines.write(json.dumps({"kimg": self.images_seen / 1000, **values}) + "\n")
        except OSError as error:
            raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error

    def _save_state(self) -> None:
        """Write the training state; to be called by all processes at the same step."""
        if self.ada is not None:
            self.ada.share(self.process)
        if self.process.is_first:
            save_state(self.folder, self.images_seen, self.state_dict())

    def _snapshot(self) -> Path:
        """Write the mean generator and its sample sheet (one process does); return the snapshot's path."""
        name = f"{self.images_seen:09d}"
        path = self.folder / f"generator-{name}.safetensors"
        if not self.process.is_first:
            return path
        info = {"kimg": self.images_seen / 1000, "data": self.dataset.path.name, "patches": len(self.dataset)}
        save_snapshot(path, self.G_ema, info)
        seeds = range(self.config.training.sample_seeds)
        sheet = sample_sheet(Renderer(self.G_ema, self.device), seeds)
        save_png(self.folder / f"samples-{name}.png", sheet, {"network": path.name, **info})
        return path

    def _measure(self) -> None:
        """Distance of generated from real patches, logged and printed beside the start's (if ``swd_patches`` asks)."""
        count = self.config.training.swd_patches
        if not count:
            return
        per_octave, mean = patch_distance(self.G_ema, self.dataset, count, self.device, self.config.training.seed)
        self._log({"swd": per_octave, "swd mean": mean})
        self.distances.append(mean)
        progress = " -> ".join(f"{distance:.3f}" for distance in self.distances)
        octaves = " ".join(f"{distance:.3f}" for distance in per_octave)
        kimg = f"{self.images_seen / 1000:g} kimg"
        print(f"Distance of generated from real patches after {kimg}: {progress}", flush=True)
        print(f"  (sliced Wasserstein on Laplacian pyramids, mean over octaves; now by octave: {octaves})", flush=True)


def _ignore_interrupt(_: int) -> None:
    """Ctrl-C reaches every process of the terminal; loader workers leave it to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
