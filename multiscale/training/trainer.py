"""The training loop: one step of the multiscale GAN, repeated, with snapshots and sample sheets on the way.

A step's batch is shared by P processes, and what a process gets is computed in M parts (micro-batches) that fit its memory;
part k of the K = P M is the images k, k + K, k + 2K ... of the batch. What is drawn for an image depends on its place in the
batch only, so a run is the same run on any number of devices but for the statistics that are taken over a part.

Shapes: B images of a part, real and generated [B, C, N, N] in [-1, 1], zoom s [B] in octaves, z [B, z_dim].
"""

from __future__ import annotations

import copy
import functools
import math
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from dnnlib.errors import UserError
from dnnlib.names import typed_path
from dnnlib.progress import Stopwatch, progress_bar
from dnnlib.reading import short_reason
from dnnlib.signals import ENDING, StopRequest
from multiscale.config import RunConfig, to_dict
from multiscale.data.patches import Mirrored, PatchDataset, octave_of
from multiscale.data.sampling import SamplerState, ScaleSampler
from multiscale.metrics.reals import content_digest
from multiscale.networks.discriminator import make_discriminator
from multiscale.networks.generator import Generator
from multiscale.rendering.files import save_picture
from multiscale.rendering.renderer import Renderer
from multiscale.rendering.sheets import sample_sheet
from multiscale.runs.folder import remove_remains
from multiscale.runs.journal import Journal, read_metrics
from multiscale.runs.snapshots import save_snapshot
from multiscale.runs.states import identity_of, save_state, states_of
from multiscale.training import adversarial
from multiscale.training.augment import augmentation
from multiscale.training.cuda_graphs import Replays
from multiscale.training.evaluation import is_best, measured_lines, real_sheet, snapshot_evaluation
from multiscale.training.objective import Generated, Losses, Objective, Part
from multiscale.training.perceptual import load_lpips
from multiscale.training.transfer import with_new
from multiscale.view import unchecked_transform, uniform_centres
from torch_utils.devices import Arriving, float32_products, peak_memory, to_device
from torch_utils.distributed import (
    Process,
    any_of,
    average,
    check_alike,
    checksum,
    copy_from_first,
    from_first,
    largest,
)
from torch_utils.ema import half_life_decay, update_ema
from torch_utils.gradients import Gradients
from torch_utils.random import BatchRows, normal, stream
from torch_utils.stats import Means
from torch_utils.workers import failed_reading

if TYPE_CHECKING:  # some systems have no semaphores
    from multiprocessing.synchronize import Event

G_BETAS = (0.0, 0.99)
ADAM_EPS = 1e-8

TICKS = 400
"""Least number of lines of statistics in a run."""

TICK_KIMG = 4.0
"""Most thousands of images between two lines of statistics."""

SNAPSHOT_KIMG = 200.0
"""Most thousands of images between two snapshots, unless the config overrides it."""

STEPS_TO_AGREE = 8
"""Steps between two checks whether any process was asked to stop and whether gradients are finite."""

BAD_STEPS = 100
"""Consecutive steps with non-finite gradients after which a run stops."""

STOPPING = (
    "Stopping: this step, or the snapshot or measurement under way, is finished first and the state saved. "
    "Ctrl-C again ends it at once; the steps since the last state are then lost."
)
"""What is said as soon as a signal asks to stop."""

BEST = "best.safetensors"
"""The best snapshot of a run so far, by the first of ``training.metrics``."""


class Trainer:
    """A run in one process.

    Args:
        config: The resolved run.
        dataset: Its patches; their size, channels and octaves agree with the config.
        folder: Where the run is written; it exists.
        process: This process and its device.
        batch_gpu: Images that are computed at a time, a divisor of this process's share of a batch; None: all of it.
        replay: Replay the networks of a step from CUDA graphs; on a GPU, where all images of the device are computed at a time.
    """

    def __init__(
        self,
        config: RunConfig,
        dataset: PatchDataset,
        folder: Path,
        process: Process,
        batch_gpu: int | None = None,
        *,
        replay: bool = False,
    ) -> None:
        self.config, self.dataset, self.folder, self.process = config, dataset, folder, process
        self.device = process.device
        training = config.training
        self.device_batch = training.batch // process.world_size
        self.batch_gpu = training.batch_gpu or batch_gpu or self.device_batch
        self.step = 0
        self.total_steps = max(math.ceil(training.kimg * 1000 / training.batch), 1)
        self.means = Means()
        self.journal: Journal | None = None
        self._has_ended: Event | None = None
        self.bad_steps = torch.zeros([], device=self.device)  # in a row, up to now
        self._bad_steps_before: Arriving | None = None

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            self.G = Generator(config.generator).to(self.device)
            self.D = make_discriminator(
                config.discriminator,
                img_resolution=config.generator.img_resolution,
                img_channels=config.generator.img_channels,
                octaves=config.generator.octaves,
            ).to(self.device)
        self._calibrate()
        self.G_ema = copy.deepcopy(self.G).eval().requires_grad_(False)

        fused = self.device.type in ("cpu", "cuda")
        self.g_optimiser = torch.optim.Adam(
            self.G.parameters(), lr=training.g_lr, betas=G_BETAS, eps=ADAM_EPS, fused=fused
        )
        self.d_lr, d_betas = adversarial.lazy_adam(training.d_lr, G_BETAS, training.r1_interval)
        self.d_optimiser = torch.optim.Adam(self.D.parameters(), lr=self.d_lr, betas=d_betas, eps=ADAM_EPS, fused=fused)
        self.g_gradients = Gradients(self.G.parameters(), process)
        self.d_gradients = Gradients(self.D.parameters(), process)

        perceptual = None
        if training.consistency_weight and training.consistency_metric == "l1+lpips":
            folder_of_weights = None if training.lpips_folder is None else typed_path(training.lpips_folder)
            perceptual = load_lpips(folder_of_weights).to(self.device)
        digest = None
        if training.metrics is not None:
            digest = from_first(process, lambda: content_digest(dataset.path))
        self.evaluation = snapshot_evaluation(training, dataset, process, digest)
        self.augment, self.ada = augmentation(config)
        self.objective = Objective(
            config,
            self.G,
            self.D,
            augment=self.augment,
            perceptual=perceptual,
            compiled=torch.compile(self.D) if training.compile_discriminator else None,
            replays=Replays() if replay else None,
        )
        self.training_set = Mirrored(dataset) if training.mirror else dataset
        self.sampler = ScaleSampler(
            self.training_set.patch_octaves,
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

    def run(self) -> int:
        """Train to the end, or until SIGINT, SIGTERM, SIGHUP or SIGUSR1: then finish the step and save the state.

        Returns:
            The number of the signal that stopped it, the same in all processes; 0 at the end.

        Raises:
            UserError: memory or disk are full, gradients have not been finite for ``BAD_STEPS`` steps, or the processes
                no longer agree. Files written before are intact.
        """
        if self.step >= self.total_steps:
            return 0
        has_begun = from_first(self.process, lambda: bool(states_of(self.folder)))
        if self.process.is_first:
            if not has_begun:
                remove_remains(self.folder)
            self.journal = Journal(self.folder, self.images_seen if has_begun else -1)
        try:
            with StopRequest(STOPPING if self.process.is_first else None) as stop:
                return self._run(stop, has_begun)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise UserError(self._out_of_memory()) from error
        except RuntimeError as error:
            if "can't allocate memory" in str(error):  # the CPU's allocator has no exception of its own
                raise UserError(self._out_of_memory()) from error
            if (reason := failed_reading(error)) is not None:
                raise UserError(reason) from error
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise UserError(
                    "torch.compile does not work on this machine, perhaps for want of a compiler "
                    f"({type(error).__name__}); leave out training.compile_discriminator."
                ) from error
            raise
        finally:
            if self._has_ended is not None:
                self._has_ended.set()
            if self.journal is not None:
                self.journal.close()

    def _run(self, stop: StopRequest, has_begun: bool) -> int:
        training = self.config.training
        per_snapshot = self._steps(training.snapshot_kimg or min(training.kimg / 50, SNAPSHOT_KIMG))
        per_tick = max(min(self.total_steps // TICKS, self._steps(TICK_KIMG)), 1)
        if not has_begun:
            self._save_state()  # first: from here on the run can go on, whatever ends it
        if number := self._complete(stop, per_snapshot):
            return number
        bar = progress_bar(
            total=self.total_steps * training.batch,
            initial=self.images_seen,
            unit="img",
            disable=not self.process.is_first,
        )
        batches, watch = self._batches(), Stopwatch()
        with bar:
            while self.step < self.total_steps:
                try:
                    real, labels = next(batches)
                except UserError:  # a patch is damaged
                    if self.process.world_size == 1:
                        self._save_state()
                    raise
                watch.lap("data")
                self.train_step(real, labels)
                bar.update(training.batch)
                ends = self.step == self.total_steps
                if self.step % per_tick == 0 or ends:
                    self._tick(bar, watch)
                watch.lap("step")
                if self.step % STEPS_TO_AGREE == 0:
                    self._stop_if_broken()
                if (number := self._asked_to_stop(stop)) and not ends:
                    self._save_state()  # first: whoever asks may not wait for the rest
                    self._snapshot()
                    return number
                if self.step % per_snapshot == 0 or ends:
                    path = self._snapshot()
                    if ends or self.step % (per_snapshot * training.metrics_every) == 0:
                        self._take_metrics()
                    self._save_state()
                    watch.lap("snapshot")
        if self.bad_steps:  # since then neither states nor snapshots have been written
            raise UserError(self._broken(int(self.bad_steps)))
        if self.process.is_first:
            print(f"Trained {self.images_seen / 1000:g} kimg: {path}, sheets {self.folder}/samples-*.png")
        return 0

    def _complete(self, stop: StopRequest, per_snapshot: int) -> int:
        """Write what the current step should have left and is missing; returns the signal if asked to stop, else 0.

        In a new run that is everything, which shows at once whether the disk has room; otherwise the run was ended between
        saving its state and the rest.
        """
        makers = {
            "reals": self._show_reals,
            "snapshot": self._snapshot,
            "metrics": self._take_metrics,
        }
        for name in from_first(self.process, lambda: self._missing(per_snapshot)):
            if number := largest(stop.number, self.process):
                return number
            makers[name]()
        return largest(stop.number, self.process)

    def _missing(self, per_snapshot: int) -> list[str]:
        training, name = self.config.training, f"{self.images_seen:09d}"
        missing = [] if (self.folder / "reals.png").exists() else ["reals"]
        if self.step % per_snapshot == 0:
            files = (f"generator-{name}.safetensors", f"samples-{name}.png")
            kimg = self.images_seen / 1000
            if not all((self.folder / file).exists() for file in files):
                missing.append("snapshot")
            measures = set() if self.evaluation is None else {metric.name for metric in self.evaluation.metrics}
            if self.step % (per_snapshot * training.metrics_every) == 0 and not any(
                line["kimg"] == kimg and measures <= line["results"].keys() for line in read_metrics(self.folder)
            ):
                missing.append("metrics")
        return missing

    def _show_reals(self) -> None:
        if self.journal is not None:
            sheet = real_sheet(self.dataset, self.config.training.sample_seeds)
            save_picture(self.folder / "reals.png", sheet, {})
            self.journal.show(self.images_seen, "reals", sheet)

    def _asked_to_stop(self, stop: StopRequest) -> int:
        """The signal that asked any process to stop, else 0; several agree every few steps, and so stop at the same step."""
        agree = self.process.world_size == 1 or self.step % STEPS_TO_AGREE == 0
        return largest(stop.number, self.process) if agree else 0

    def _stop_if_broken(self) -> None:
        """UserError if gradients have not been finite for long, by a count a few steps old: reading it waits for nothing."""
        if self._bad_steps_before is not None and self._bad_steps_before.read() >= BAD_STEPS:
            raise UserError(self._broken(BAD_STEPS))
        self._bad_steps_before = Arriving(self.bad_steps)

    def _broken(self, steps: int) -> str:
        return (
            f"Gradients have not been finite for {steps} step{'s' * (steps != 1)} in a row; the run stopped after "
            f"{self.images_seen / 1000:g} kimg. Its last good state is {states_of(self.folder)[-1]}. To resume from there "
            f"with smaller steps: the same command with --outdir {self.folder} and lower training.g_lr and training.d_lr."
        )

    def _out_of_memory(self) -> str:
        smaller = [n for n in range(1, self.batch_gpu) if self.device_batch % n == 0]
        advice = (
            f"give --batch-gpu {smaller[-1]}: the same batch in smaller parts"
            if smaller
            else "lower generator.channel_max, discriminator.channel_max or discriminator.channel_base with --set, in a new run"
        )
        return f"The memory of {self.device} does not hold a step with {self.batch_gpu} images at a time; {advice}."

    def state_dict(self) -> dict[str, Any]:
        """Everything that later steps depend on, and the counts for the next line of statistics."""
        sampler = self.sampler.state_after(self.step)
        return {
            "step": self.step,
            "config": to_dict(self.config),
            "data": identity_of(self.dataset),
            "batch_gpu": self.batch_gpu,
            "G": self.G.state_dict(),
            "D": self.D.state_dict(),
            "G_ema": self.G_ema.state_dict(),
            "g_optimiser": self.g_optimiser.state_dict(),
            "d_optimiser": self.d_optimiser.state_dict(),
            "augment_p": None if self.augment is None else self.augment.p.tolist(),
            "ada": None if self.ada is None else self.ada.state_dict(),
            "drawn": list(sampler.drawn),
            "means": self.means.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()`` of a run with the same networks and data; the schedule may differ.

        Raises:
            UserError: it is not a state of this program.
        """
        try:
            self._load(state)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # whatever a field of another type or shape makes of itself
            raise UserError(
                f"The training state to resume from is damaged ({short_reason(error)}); remove it to use the one before."
            ) from error

    def _load(self, state: Mapping[str, Any]) -> None:
        self.step = int(state["step"])
        if self.config.training.batch_gpu is None and self.device_batch % state["batch_gpu"] == 0:
            self.batch_gpu = state["batch_gpu"]
        if self.batch_gpu < self.device_batch:  # in several parts calls come several times
            self.objective.replays = None
        for name in ("G", "D", "G_ema", "g_optimiser", "d_optimiser"):
            getattr(self, name).load_state_dict(state[name])
        if self.augment is not None and state["augment_p"] is not None and self.config.training.augment == "ada":
            p = torch.as_tensor(state["augment_p"])
            self.augment.p.copy_(p if p.ndim <= self.augment.p.ndim else p.mean())
        if self.ada is not None and state["ada"] is not None:
            self.ada.load_state_dict(state["ada"])
        self.sampler.go_on_from(SamplerState(self.step, tuple(state["drawn"])))
        self.means.load_state_dict(state["means"], self.device)

    def train_step(self, real: torch.Tensor, labels: torch.Tensor) -> None:
        """One step of D and one of G: this process's real patches uint8 [b, C, N, N] and zooms s [b], on the CPU.

        It never waits for the device.
        """
        with float32_products(tf32=self.config.training.tf32):
            self._train_step(real, labels)

    def _train_step(self, real: torch.Tensor, labels: torch.Tensor) -> None:
        training = self.config.training
        factor = adversarial.lr_factor(self.step / self.total_steps, training.lr_end)
        for optimiser, lr in ((self.g_optimiser, training.g_lr), (self.d_optimiser, self.d_lr)):
            for group in optimiser.param_groups:
                group["lr"] = lr * factor
        count = len(real) // self.batch_gpu
        parts = [self._part(real[m::count], labels[m::count], m, count) for m in range(count)]
        generated, bad_d = self._discriminator_step(parts)
        bad_g = self._generator_step(parts, generated)
        self.bad_steps = (self.bad_steps + 1) * (bad_d | bad_g)

        average(self.G.observations(), self.process)
        self.G.update_running_means(training.batch, len(parts))
        self._update_ema()
        self.step += 1
        if self.augment is not None and self.ada is not None:
            self.ada.step(self.augment, training.batch, self.process)

    def _update_ema(self) -> None:
        """Update the averaged generator; early in a run its half-life is a fraction of the images seen."""
        training = self.config.training
        half_life = 1000 * (training.ema_kimg or training.batch * 10 / 32)
        if training.ema_rampup is not None:
            half_life = min(half_life, (self.images_seen + training.batch) * training.ema_rampup)
        update_ema(self.G_ema, self.G, half_life_decay(training.batch, half_life))

    def _part(self, real: torch.Tensor, labels: torch.Tensor, number: int, count: int) -> Part:
        rows = slice(self.process.rank + self.process.world_size * number, None, self.process.world_size * count)
        octave = octave_of(labels.numpy(), self.dataset.octaves)
        z = self._draws("latents", rows).standard_normal((self.config.generator.z_dim, len(real))).T
        zoom = torch.exp2(labels)
        return Part(
            real=to_device(real, self.device).float() / 127.5 - 1,
            labels=labels,
            zoom_log2=to_device(labels.float(), self.device),
            octave=octave,
            octaves=to_device(F.one_hot(torch.from_numpy(octave), self.dataset.octaves).float(), self.device),
            z=to_device(torch.from_numpy(z).float(), self.device),
            transform=to_device(
                unchecked_transform(zoom, uniform_centres(zoom, self._draws("centres", rows))), self.device
            ),
            images_seen=self.images_seen,
            draws=lambda purpose: self._draws(purpose, rows),
            train_fine=stream(self.config.training.seed, "coin", self.step).random() < 0.5,
        )

    def _discriminator_step(self, parts: Sequence[Part]) -> tuple[Generated | None, torch.Tensor]:
        """Take D's step; return what a single part generated, for G's step, and whether any gradient was not finite."""
        objective = self.objective
        self.D.requires_grad_(True)
        generated = None
        for part in parts:
            with torch.set_grad_enabled(len(parts) == 1):
                ws, fake = objective.generate(part, observe=True)
            if len(parts) == 1:
                generated = ws, fake
            losses = objective.discriminator(part, fake)
            self._backward(losses.total, part, parts, self.d_gradients)
            if self.ada is not None and losses.sureness is not None:
                self.ada.observe(losses.sureness, part.octaves if self.ada.groups else None)
            self._note(losses, part)
        bad = self._optimise(self.d_gradients, self.d_optimiser, "D")
        if objective.needs_penalties and self.step % self.config.training.r1_interval == 0:
            bad = bad | self._regularise(parts, generated)
        self.D.requires_grad_(False)
        return generated, bad

    def _regularise(self, parts: Sequence[Part], generated: Generated | None) -> torch.Tensor:
        """Take D's step for the gradient penalties alone (lazy); return whether any gradient was not finite."""
        for part in parts:
            fake = None
            if self.objective.penalises_generated:
                with torch.no_grad():
                    fake = (generated or self.objective.generate(part, observe=False))[1]
            losses = self.objective.penalties(part, fake)
            self._backward(losses.total, part, parts, self.d_gradients)
            self._note(losses, part)
        return self._optimise(self.d_gradients, self.d_optimiser, "D")

    def _generator_step(self, parts: Sequence[Part], generated: Generated | None) -> torch.Tensor:
        """Take G's step; return whether any gradient was not finite."""
        for part in parts:
            losses = self.objective.generator(part, generated or self.objective.generate(part, observe=False))
            self._backward(losses.total, part, parts, self.g_gradients)
            self._note(losses, part)
        return self._optimise(self.g_gradients, self.g_optimiser, "G")

    def _note(self, losses: Losses, part: Part) -> None:
        """Add what the objective reports to the means of the next line of statistics."""
        for name, values in losses.means.items():
            self.means.add(name, values)
        for name, values in losses.by_octave.items():
            self.means.add_grouped(name, values, part.octaves)

    def _backward(self, loss: torch.Tensor, part: Part, parts: Sequence[Part], gradients: Gradients) -> None:
        """Accumulate a part's gradients; those of the last part are averaged over processes as they become ready."""
        loss = loss / len(parts)
        if part is parts[-1]:
            with gradients.last_backward():
                loss.backward()
        else:
            loss.backward()

    def _optimise(self, gradients: Gradients, optimiser: torch.optim.Optimizer, name: str) -> torch.Tensor:
        """Take the step with averaged gradients, made finite; return whether any was not, on the device."""
        norm, broken = gradients.finish()
        self.means.add(f"gradients/{name} norm", norm)
        self.means.add(f"gradients/{name} not finite", broken)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return broken > 0

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        workers = self.config.training.workers
        workers = (0 if self.device.type == "cpu" else 3) if workers is None else workers  # a CPU has none to spare
        init = None
        if workers:
            self._has_ended = multiprocessing.Event()
            init = functools.partial(_ends_with_the_trainer, self._has_ended)
        return iter(
            DataLoader(
                self.training_set,  # type: ignore[arg-type]
                batch_sampler=self.sampler,
                num_workers=workers,
                pin_memory=self.device.type == "cuda",
                worker_init_fn=init,
            )
        )

    def begin_with(self, weights: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Load the weights of trained networks by name (``G``, ``G_ema``, ``D``); everything else starts afresh."""
        for name, tensors in weights.items():
            network = getattr(self, name)
            network.load_state_dict(with_new(tensors, network.state_dict()))  # an error if more than that is missing

    @float32_products()
    def _calibrate(self) -> None:
        """Initialise the running means from the untrained network's activations over all zooms, not with 0 and 1."""
        rng = stream(self.config.training.seed, "calibration")
        places = (np.arange(16) + rng.random(16)) / 16  # one in each sixteenth of the zooms
        zoom = torch.exp2(torch.from_numpy(places * self.config.generator.octaves))
        z = normal(rng, 16, self.config.generator.z_dim).to(self.device)
        self.G.calibrate(z, unchecked_transform(zoom, uniform_centres(zoom, rng)))
        copy_from_first(self.G.running_means(), self.process)

    def _draws(self, purpose: str, rows: slice) -> BatchRows:
        """Draws for the rows of a part, out of those for the whole batch."""
        return BatchRows(stream(self.config.training.seed, purpose, self.step), self.config.training.batch, rows)

    def _steps(self, kimg: float) -> int:
        return max(round(kimg * 1000 / self.config.training.batch), 1)

    def _tick(self, bar: tqdm, watch: Stopwatch) -> None:
        """Read the statistics (the only wait for the device), log and print them."""
        stats = self.means.read(self.process)
        watch.lap("step")
        data = watch.seconds["data"] / watch.laps["data"]
        step = data + watch.seconds["step"] / watch.laps["data"]
        cpu = (watch.cpu_seconds["data"] + watch.cpu_seconds["step"]) / watch.laps["data"]
        watch.clear()
        if self.journal is None:
            return
        mix = self.sampler.probabilities(self.images_seen)
        augment_p: dict[str, Any] = {} if self.augment is None else {"augment/p": float(self.augment.p.mean())}
        if self.augment is not None and self.augment.p.ndim:
            augment_p["augment/p by octave"] = self.augment.p.tolist()
        timing = {
            "seconds/step": step,
            "seconds/data": data,
            "seconds/cpu": cpu,
            "img/s": self.config.training.batch / step,
        }
        if (peak := peak_memory(self.device)) is not None:
            timing["memory/peak GiB"] = peak / 2**30
        self.journal.write(self.images_seen, {**stats, **augment_p, "octave mix": mix.round(4).tolist(), **timing})
        losses = " ".join(
            f"{name} {stats[f'loss/{name}']:.2f}" for name in ("D", "G", "consistency") if f"loss/{name}" in stats
        )
        bar.set_description(f"{self.images_seen / 1000:.1f} kimg", refresh=False)
        octaves = "/".join(f"{100 * p:.0f}" for p in mix)
        bar.set_postfix_str(f"{losses} octaves {octaves}% data {data / step:.1%}", refresh=False)

    def _save_state(self) -> None:
        """Write the training state; all processes call this at the same step."""
        if self.ada is not None:
            self.ada.pool(self.process)
        self.means.pool(self.process)
        self._check_alike()
        if self.process.is_first and not self.bad_steps:
            save_state(self.folder, self.images_seen, self.state_dict())

    def _check_alike(self) -> None:
        """Check that all processes hold the same weights, to the bit."""
        if self.process.world_size == 1:
            return
        modules = {"generator": self.G, "discriminator": self.D, "mean generator": self.G_ema}
        facts = {name: checksum(module.state_dict().values()) for name, module in modules.items()}
        optimisers = {"optimiser of G": self.g_optimiser, "optimiser of D": self.d_optimiser}
        for name, optimiser in optimisers.items():
            facts[name] = checksum(t for state in optimiser.state.values() for t in state.values())
        advice = "its device or memory may be faulty; start the job again without it: it resumes from its last training state"
        check_alike(self.process, facts, dict.fromkeys(facts, advice))

    def _snapshot(self) -> Path:
        """Write the averaged generator and its sample sheet, in the first process; return its path.

        Nothing is written while gradients are not finite.
        """
        name = f"{self.images_seen:09d}"
        path = self.folder / f"generator-{name}.safetensors"
        if self.journal is None or self.bad_steps:
            return path
        info = self._info()
        save_snapshot(path, self.G_ema, info)
        seeds = range(self.config.training.sample_seeds)
        sheet = sample_sheet(Renderer(self.G_ema, self.device), seeds)
        save_picture(self.folder / f"samples-{name}.png", sheet, {"network": path.name, **info})
        self.journal.show(self.images_seen, "samples", sheet)
        return path

    def _info(self) -> dict[str, Any]:
        """Facts that a snapshot holds besides its weights."""
        return {"kimg": self.images_seen / 1000, "data": self.dataset.path.name, "patches": len(self.dataset)}

    def _take_metrics(self) -> None:
        """Take ``training.metrics`` of the averaged generator, all processes together, and keep the best one."""
        if self.evaluation is None or any_of(bool(self.bad_steps), self.process):
            return
        self.evaluation.prepare()
        results, _ = self.evaluation.measure(self.G_ema)
        if self.journal is None:
            return
        line = {"kimg": self.images_seen / 1000, **self.evaluation.facts, "results": results}
        lines = [*read_metrics(self.folder), line]
        if is_best(self.evaluation, lines):
            name = self.evaluation.metrics[0].name
            best = {"best": {name: results[name]["value"]}}
            save_snapshot(self.folder / BEST, self.G_ema, self._info() | best)
        self.journal.measure(self.images_seen, results, self.evaluation.facts)  # last: it says that this is done
        if self.step in (0, self.total_steps):
            print("\n".join(measured_lines(self.evaluation, lines)), flush=True)


def _ends_with_the_trainer(has_ended: Event, _: int) -> None:
    """Have a loader's worker ignore signals until the trainer has ended.

    A terminal or job may signal all its processes, and the trainer still needs batches for the step that it finishes. At its
    own exit Python sends SIGTERM to workers that are left, as they are after an error, and waits for them.
    """
    for number in (signal.SIGINT, *ENDING):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if has_ended.is_set() else None)
