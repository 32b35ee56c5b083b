"""The multiscale generator: an image for every latent, zoom and centre, out of one continuous world.

Shapes: B images, C channels, N image side, D size of w.

All layers are convolutions on grids that share one coordinate system, so the same network also gives images larger than
N x N: the same pixels, more of them (``size``), but near the borders, where convolutions see what lies beyond. Each layer's
grid then grows by as much of the view as the image does.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from multiscale.config import GeneratorConfig
from multiscale.networks.fourier import Grid, Waves, draw_features, waves_of_views
from multiscale.networks.layers import Linear, MappingNetwork, SynthesisLayer, check_shape, mean_square
from multiscale.networks.packets import BENT_WAVES, bent, draw_packets
from multiscale.networks.plan import BAND_LIMIT, Plan, feature_radii, make_plan
from multiscale.view import AffineViews, turned
from torch_utils.devices import is_capturing

CALIBRATED_AT_A_TIME = 4
"""Images; few, so that calibration takes less memory than a training step."""

Maps: TypeAlias = tuple[torch.Tensor, torch.Tensor | None]
"""What a layer sees: the output of the one before it, and features that are appended to it."""

ENVELOPE_LAG = 3
"""Octaves by which an envelope is slower, at least, than the features that it is of."""

Size: TypeAlias = tuple[int, int]
"""Width and height of an image in pixels."""


class FeatureInjection(nn.Module):
    """The Fourier features of one injection point, evaluated on that layer's grid.

    With ``feature_style`` each has an amplitude A of its sine and B of its cosine for each world, linear in w, but for those
    below ``feature_anchor``. With ``even_features`` the direction of (A, B) alone is a world's own: its length is the same in
    all (of equal |w|), and the features of an octave of frequencies are mixed with weights of the same length.

    With an ``envelope`` what the features of an octave are mixed to is multiplied by e^(beta u - beta^2), u the sum of the
    point's features ``ENVELOPE_LAG`` octaves below with variance 1: as strong as before in the mean square, but in some places
    more so than in others, as a multiplicative cascade is. beta is learned for each octave and begins at ``envelope``. With
    ``envelope_octaves`` there is such a factor for each of so many octaves, from there downwards.
    """

    omega: torch.Tensor
    phase: torch.Tensor
    bins: torch.Tensor
    octave: torch.Tensor
    members: torch.Tensor
    packet_place: torch.Tensor
    packet_phase: torch.Tensor

    def __init__(
        self,
        config: GeneratorConfig,
        radii: NDArray[np.float64],
        size: int,
        rate: int,
        rng: np.random.Generator,
        *,
        envelope: float = 0.0,
    ) -> None:
        super().__init__()
        self.size, self.rate, self.config = size, rate, config
        omega, phase, bins = draw_features(torch.as_tensor(radii), size, rate, config.n_bins, rng)
        if config.published_frequencies:
            omega = omega / published_unit(size, rate)
        self.register_buffer("omega", omega)
        self.register_buffer("phase", phase)
        self.register_buffer("bins", bins, persistent=False)
        if config.feature_bandwidth:
            for name, numbers in zip(("packet_place", "packet_phase"), draw_packets(len(radii), rate), strict=True):
                self.register_buffer(name, torch.as_tensor(numbers, dtype=torch.float32), persistent=False)
        octaves, octave, counts = np.unique(
            octaves_of(config, radii, size, rate), return_inverse=True, return_counts=True
        )
        self.octaves = dict(zip(octaves.tolist(), counts.tolist(), strict=True))
        members = np.full((len(octaves), counts.max()), len(radii))  # places of features, and behind the last ones K
        for row, count in enumerate(counts):
            members[row, :count] = np.flatnonzero(octave == row)
        self.register_buffer("octave", torch.as_tensor(octave), persistent=False)  # by its place in self.octaves, [K]
        self.register_buffer("members", torch.as_tensor(members), persistent=False)
        self.style = nn.Parameter(torch.randn(2 * len(radii), config.w_dim)) if config.feature_style else None
        self._enveloped = [octave for octave in self.octaves if octave - ENVELOPE_LAG in self.octaves]
        betas = torch.full([len(self._enveloped)], envelope)
        self.envelope = nn.Parameter(betas) if envelope and self._enveloped else None

    def forward(
        self,
        views: AffineViews,
        size: Size | None = None,
        w: torch.Tensor | None = None,
        mixing: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Features of views.

        Args:
            views: B views, on a device that has float64.
            size: Width and height of the image (not of this grid) in pixels; None: N x N.
            w: [B, D], needed if features have a style.
            mixing: Weights [C, K]; None: features as they are.

        Returns:
            [B, C or K, rows, columns].
        """
        return self.maps(self.waves(views, size), w, mixing)

    def maps(self, waves: Waves, w: torch.Tensor | None = None, mixing: torch.Tensor | None = None) -> torch.Tensor:
        """Features of the views that ``waves`` are of, as :meth:`forward` says."""
        styled = self.styled(waves, w)
        if mixing is None:
            return styled.maps()
        weights = self.weights(mixing)
        if self.envelope is None:
            return styled.mixed(weights)
        members = {octave: row[:count] for (octave, count), row in zip(self.octaves.items(), self.members, strict=True)}
        betas = dict(zip(self._enveloped, self.envelope, strict=True))
        unit = self.styled(waves, w, unit=True)

        @functools.cache
        def sum_of(octave: int) -> torch.Tensor:
            mine = members[octave]
            return unit.of(mine).mixed(weights.new_full((1, len(mine)), math.sqrt(2 / len(mine))))

        def maps_of(octave: int) -> torch.Tensor:
            maps = styled.of(members[octave]).mixed(weights[:, members[octave]])
            if (beta := betas.get(octave)) is None:
                return maps
            highest = octave - ENVELOPE_LAG
            below = [each for each in range(highest, highest - self.config.envelope_octaves, -1) if each in members]
            return maps * (beta * functools.reduce(torch.add, map(sum_of, below)) - len(below) * beta.square()).exp()

        # Not all maps at once: those of an octave fit into a CPU's cache.
        return functools.reduce(torch.add, map(maps_of, members))

    def weights(self, mixing: torch.Tensor) -> torch.Tensor:
        """What features are mixed with, [C, K], of the parameter ``mixing``."""
        if self.config.even_features:
            energy = mixing.square().mean(dim=0) * self.length.square()  # [K]
            count = (self.members < len(energy)).sum(dim=1)
            mean = (F.pad(energy, (0, 1))[self.members].sum(dim=1) / count)[self.octave]
            mixing = mixing * torch.where(self.anchored, 1.0, _root(mean / energy.clamp(min=1e-20)))
        return mixing / math.sqrt(mixing.shape[1])

    @property
    def anchored(self) -> torch.Tensor:
        """Which features are the same in all worlds, [K]."""
        return self.frequency < self.config.feature_anchor

    @property
    def length(self) -> torch.Tensor:
        """Of (A, B) by the root mean square of w's elements, averaged over all directions of w, [K]."""
        assert self.style is not None
        return _root(self.style.square().mean(dim=1).unflatten(0, (-1, 2)).sum(dim=1))

    def styled(self, waves: Waves, w: torch.Tensor | None, *, unit: bool = False) -> Waves:
        """Waves of all worlds as those of the worlds of ``w`` [B, D]; ``unit``: with amplitudes of 1."""
        if self.style is not None:
            assert w is not None
            amplitude = (w @ (self.style / math.sqrt(w.shape[1])).t()).unflatten(1, (-1, 2))
            if unit or self.config.even_features:
                amplitude = F.normalize(amplitude, dim=2)
            if self.config.even_features and not unit:
                size = _root(w.square().mean(dim=1))[:, None] * self.length  # [B, K]
                amplitude = amplitude * size[..., None]
            anchored = self.anchored.to(amplitude)[:, None]  # [K, 1]
            waves = waves.styled(amplitude * (1 - anchored) + F.pad(anchored, (0, 1)))
        return waves

    def waves(self, views: AffineViews, size: Size | None = None) -> Waves:
        """The features in factors, without style: those of all worlds."""
        return waves_of_points([self], views, size)[0]

    def grid(self, size: Size | None = None) -> Grid:
        """The point's grid of an image."""
        side = self.config.img_resolution
        columns, rows = (self.size + (pixels - side) * self.rate // side for pixels in size or (side, side))
        return Grid(len(self.omega), columns, rows, self.rate, self.shift_gain, self.unit)

    @property
    def world(self) -> torch.Tensor:
        """Frequencies over the world in the unit of ``omega``, [K, 2 (x, y)]."""
        return self.omega * torch.exp2(self.config.bin_offset * self.bins)[:, None]

    @property
    def frequency(self) -> torch.Tensor:
        """Their lengths, [K]."""
        return self.world.norm(dim=1)

    @property
    def terms(self) -> int:
        """Waves that a feature is a sum of."""
        return BENT_WAVES if self.config.feature_bandwidth else 1

    @property
    def shift_gain(self) -> float:
        """g, by which centres are multiplied: 1 but for imported weights."""
        return (self.size - 1) / self.size if self.config.published_geometry else 1.0

    @property
    def unit(self) -> float:
        """Cycles per unit of the world that ``omega`` counts in."""
        return published_unit(self.size, self.rate) if self.config.published_frequencies else 1.0


def waves_of_points(points: Sequence[FeatureInjection], views: AffineViews, size: Size | None = None) -> list[Waves]:
    """:meth:`FeatureInjection.waves` of several points of a network at once."""
    config, grids = points[0].config, [point.grid(size) for point in points]

    def of_all(name: str) -> torch.Tensor:
        return torch.cat([getattr(point, name) for point in points])

    single = of_all("anchored") if config.feature_bandwidth else None
    waves = waves_of_views(
        of_all("omega"),
        of_all("phase"),
        of_all("bins"),
        views,
        grids,
        bin_offset=config.bin_offset,
        blend_offset=config.blend_offset,
        blend_width=config.blend_width,
        band_limit=None if config.published_geometry else BAND_LIMIT,
        limited=single,
    )
    if single is not None:
        waves = bent(
            waves,
            grids,
            of_all("world"),
            views,
            of_all("packet_place"),
            of_all("packet_phase"),
            bandwidth=config.feature_bandwidth,
            single=single,
        )
    return waves


def octaves_of(config: GeneratorConfig, radii: NDArray[np.float64], size: int, rate: int) -> NDArray[np.int64]:
    """Octave n of each feature that ``draw_features`` draws for ``radii`` [K], 2^n <= |omega| 2^(o b) < 2^(n + 1).

    Not of the features themselves, as their rounding may move one across a limit.
    """
    bins = np.arange(len(radii)) % config.n_bins
    return np.frexp(radii * rate / size * 2.0 ** (config.bin_offset * bins))[1].astype(np.int64) - 1


def published_unit(size: int, rate: int) -> float:
    """Cycles per unit of the world of one published cycle: a layer's n padded samples are n - 1 intervals of 1/r."""
    return rate / (size - 1)


class SynthesisNetwork(nn.Module):
    """Features of the view, through the layers, to an image."""

    def __init__(self, config: GeneratorConfig, plan: Plan) -> None:
        super().__init__()
        self.config, self.plan = config, plan
        seed = torch.randint(2**31, [], device="cpu")  # follows torch.manual_seed, as the weights do
        rng = np.random.default_rng(int(seed))
        radii = np.array(feature_radii(config))
        self.input = FeatureInjection(config, radii[: plan.input_waves], plan.input_size, plan.input_rate, rng)
        self.input_weight = nn.Parameter(torch.randn(plan.input_features, plan.input_waves))
        taken = plan.input_waves
        self.layers = nn.ModuleList()
        self.injections = nn.ModuleDict()
        self.mixing = nn.ParameterDict()  # of the injections behind layers, where they are mixed
        self.gates = nn.ParameterDict()  # of the same; 0 at first, where all are open by half
        for layer in plan.layers:
            self.layers.append(SynthesisLayer(config, layer))
            if layer.features:
                index, mine = str(layer.index), radii[taken : taken + layer.waves]
                self.injections[index] = FeatureInjection(
                    config, mine, layer.out_size, layer.out_rate, rng, envelope=config.feature_envelope
                )
                if config.fourier_features is not None:
                    self.mixing[index] = nn.Parameter(config.mixing_init * torch.randn(layer.features, layer.waves))
                if config.feature_gates:
                    self.gates[index] = nn.Parameter(torch.zeros(layer.features, layer.conv_channels))
                taken += layer.waves
        self.frame = Linear(config.w_dim, 4) if config.world_frame else None
        if self.frame is not None:  # all worlds begin in the frame of the views
            nn.init.zeros_(self.frame.weight)
            with torch.no_grad():
                self.frame.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))

    def forward(
        self,
        ws: torch.Tensor,
        transform: torch.Tensor,
        *,
        size: Size | None = None,
        observe: bool = False,
        before_layer: Callable[[], None] | None = None,
    ) -> torch.Tensor:
        """Render styles through views.

        Args:
            ws: One w a layer, [B, num_ws, D], or [1, num_ws, D] for B views of one world.
            transform: World-from-view matrices of N x N pixels about the image's centre, [B, 3, 3], or [1, 3, 3] for one
                view of B worlds.
            size: Width and height of the image in pixels, each N plus a multiple of ``plan.step``; None: N x N.
            observe: Add what the layers see to their running sums.
            before_layer: Called before each layer; it may raise to give up.

        Returns:
            Float32 [B, C, height, width], nominally in [-1, 1].

        Raises:
            ValueError: ``ws`` or ``transform`` has another shape, their B do not go together, or the size is not on the grid.
        """
        check_shape("ws", ws, "B, num_ws, w_dim", None, self.plan.num_ws, self.config.w_dim)
        check_shape("transform", transform, "B, 3, 3", None, 3, 3)
        ws, transform = _together(ws, transform)
        side, step = self.config.img_resolution, self.plan.step
        if size is not None and any(pixels < step or (pixels - side) % step for pixels in size):
            raise ValueError(
                f"An image of {size[0]} x {size[1]} does not fall on the grid: sides are multiples of {step}."
            )
        views = self.views(transform, ws)
        waves = self.waves(views, size)
        maps = self.first_maps(waves, ws)
        for i in range(len(self.layers)):
            if before_layer is not None:
                before_layer()
            maps = self.next_maps(i, maps, ws, waves, observe=observe)
        return maps[0][:, : self.config.img_channels].float() * self.config.output_scale

    if TYPE_CHECKING:  # that of nn.Module takes and returns anything
        __call__ = forward

    def views(self, transform: torch.Tensor, ws: torch.Tensor) -> AffineViews:
        """Views [B, 3, 3] of worlds, each framed."""
        at_angle = False
        if self.config.feature_bandwidth:  # packets ask for it
            # What is recorded as a graph or only estimated cannot be asked, and training has no such views.
            device = transform.device
            unasked = transform.is_meta or is_capturing(device) or (transform.is_cuda and self.training)
            at_angle = self.frame is not None or (not unasked and turned(transform))
        return AffineViews.of(self.framed(transform, ws), turned=at_angle)

    def framed(self, transform: torch.Tensor, ws: torch.Tensor) -> torch.Tensor:
        """Transforms [B, 3, 3] to the points at which features are evaluated: in each world's own frame, if it has one.

        A frame turns the world by the angle of (r_c, r_s) and shifts it by (t_x, t_y) (StyleGAN3 section 3, appendix F).
        """
        transform = _in_float64(transform, ws.device)
        if self.frame is None:
            return transform
        # In float64: a shift rounded to float32 would depend on how many views are rendered at a time, which deep zooms show.
        frame = self.frame(ws[:, 0].to(transform))
        frame = frame / frame[:, :2].norm(dim=1, keepdim=True)
        cos, sin, x, y = frame.unbind(1)
        zero, one = torch.zeros_like(x), torch.ones_like(x)
        rows = [torch.stack(row, dim=1) for row in ((cos, -sin, x), (sin, cos, y), (zero, zero, one))]
        return torch.stack(rows, dim=1) @ transform

    def waves(self, views: AffineViews, size: Size | None = None) -> dict[str, Waves]:
        """The features of framed views in factors, for each of :meth:`points`."""
        points = self.points()
        return dict(zip(points, waves_of_points(list(points.values()), views, size), strict=True))

    def points(self) -> dict[str, FeatureInjection]:
        """The injection points: "input", and the layers before the others."""
        return {"input": self.input, **self.injections}  # type: ignore[dict-item]

    def first_maps(self, waves: dict[str, Waves], ws: torch.Tensor) -> Maps:
        """What the first layer sees: features of the input grid, mixed."""
        return self.input.maps(waves["input"], ws[:, 0], self.input_weight), None

    def next_maps(
        self, i: int, maps: Maps, ws: torch.Tensor, waves: dict[str, Waves], *, observe: bool = False
    ) -> Maps:
        """What the layer behind layer ``i`` sees: its output, and the features injected there."""
        x = self.layers[i](maps[0], ws[:, i + 1], maps[1], observe=observe)
        key = str(i)
        if key not in self.injections:
            return x, None
        features = self.injections[key].maps(waves[key], ws[:, 0], self.mixing.get(key))  # type: ignore[operator]
        return x, self.gated(i, x, features)

    def gated(self, i: int, x: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Features [B, F, H, W] behind layer ``i``, weighed from 0 to 2 at each point by its output ``x`` [B, C', H, W]."""
        gate = self.gates.get(str(i))
        if gate is None:
            return features
        gain = self.layers[i + 1].magnitude_ema.rsqrt()  # type: ignore[operator]
        weight = (gate * gain)[:, :, None, None].to(x.dtype)
        return features * (2 * F.conv2d(x[:, : gate.shape[1]], weight).sigmoid())


class Generator(nn.Module):
    """``G(z, transform)``: the image of latent z seen through a view of its world.

    Running means (of w, and of each layer's input magnitude) are updated in training mode only, unless ``update_means``
    says otherwise for a call. Rendering does not depend on the batch but for the rounding of its sums.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.plan = make_plan(config)
        self.mapping = MappingNetwork(config, self.plan.num_ws)
        self.synthesis = SynthesisNetwork(config, self.plan)

    def forward(
        self,
        z: torch.Tensor,
        transform: torch.Tensor,
        truncation_psi: float = 1.0,
        *,
        update_means: bool | None = None,
    ) -> torch.Tensor:
        """Render latents through views.

        Args:
            z: Latents, [B, z_dim], or [1, z_dim] for B views of one world.
            transform: World-from-view matrices, [B, 3, 3], or [1, 3, 3] for one view of B worlds; float64 for deep zooms.
                Any affine view is rendered, inside the world or not (:func:`multiscale.view.view_transform` checks the range).
            truncation_psi: 1 as trained, towards 0 closer to the mean style; the layout that features have from z
                (``feature_style``) stays.
            update_means: Update the running means; None: in training mode.

        Returns:
            Float32 [B, C, N, N], nominally in [-1, 1].

        Raises:
            ValueError: ``z`` or ``transform`` has another shape, or their B do not go together.
        """
        update = self.training if update_means is None else update_means
        image = self.synthesis(self.mapping(z, truncation_psi, observe=update), transform, observe=update)
        if update:
            self.update_running_means(len(image))
        return image

    if TYPE_CHECKING:  # that of nn.Module takes and returns anything
        __call__ = forward

    def running_means(self) -> list[torch.Tensor]:
        """The buffers that training moves: w_avg, and each layer's running input magnitude."""
        return [self.mapping.w_avg, *(layer.magnitude_ema for layer in self.synthesis.layers)]  # type: ignore[list-item]

    def observations(self) -> list[torch.Tensor]:
        """For each of ``running_means()`` the sum of what calls with ``observe`` have seen since the last update."""
        return [self.mapping.w_seen, *(layer.magnitude_seen for layer in self.synthesis.layers)]  # type: ignore[list-item]

    @torch.no_grad()
    def update_running_means(self, images: int, parts: int = 1) -> None:
        """End a training step: move the running means by the mean of the observations, and forget these.

        Args:
            images: Images of the step; the half-life of the magnitudes is counted in images.
            parts: Calls with ``observe`` since the last update.
        """
        config = self.config
        decay = 0.5 ** (images / (1000 * config.magnitude_half_life_kimg))
        decays = [config.w_avg_decay] + [decay] * len(self.synthesis.layers)
        for mean, seen, d in zip(self.running_means(), self.observations(), decays, strict=True):
            mean.lerp_(seen / parts, 1 - d)
            seen.zero_()

    @torch.no_grad()
    def calibrate(self, z: torch.Tensor, transform: torch.Tensor) -> None:
        """Set w_avg and every layer's running input magnitude to what this batch shows (a fresh network's are 0 and 1)."""
        ws = self.mapping(z)
        self.mapping.w_avg.copy_(ws[:, -1].mean(dim=0))
        views = self.synthesis.views(transform, ws).split(CALIBRATED_AT_A_TIME)
        parts = [(self.synthesis.waves(v), w) for v, w in zip(views, ws.split(CALIBRATED_AT_A_TIME), strict=True)]
        maps = [self.synthesis.first_maps(waves, w) for waves, w in parts]
        for i, layer in enumerate(self.synthesis.layers):  # all images pass a layer before any goes on
            count = self.plan.layers[i].in_channels * sum(x[:, 0].numel() for x, _ in maps)
            layer.magnitude_ema.copy_(mean_square([m for pair in maps for m in pair if m is not None], count))  # type: ignore[operator]
            maps = [self.synthesis.next_maps(i, m, w, waves) for m, (waves, w) in zip(maps, parts, strict=True)]


def _root(square: torch.Tensor) -> torch.Tensor:
    """Square roots, with a gradient of 0 at 0, where that of the root is infinite and its product with 0 no number."""
    return square.clamp(min=torch.finfo(square.dtype).tiny).sqrt()


def _together(ws: torch.Tensor, transform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both for B images, where either may be for one."""
    worlds, views = ws.shape[0], transform.shape[0]
    if worlds == views:
        return ws, transform
    if worlds == 1:
        return ws.expand(views, -1, -1), transform
    if views == 1:
        return ws, transform.expand(worlds, -1, -1)
    raise ValueError(f"{worlds} worlds and {views} views were given; give as many of both, or one of either.")


def _in_float64(transform: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Transforms in float64, which deep zooms need, where the device has it; on the CPU beside MPS."""
    return transform.double().to("cpu" if device.type == "mps" else device)
