"""The schema of a run: nested frozen dataclasses, loaded strictly.

YAML files hold differences from these defaults; an unknown key fails with the nearest name, a value out of range with the
range. Deep options are reached from the command line with ``--set path=value``, such as ``--set training.r1_gamma=5``.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from dnnlib.errors import UserError, in_words, nearest_name, shown
from dnnlib.reading import from_yaml, parsed, read_text

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

Resolution = Literal[16, 32, 64, 128, 256, 512, 1024]
Channels = Literal[1, 3]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class GeneratorConfig:
    """The alias-free generator (StyleGAN3 section 3) with binned Fourier features (Wolski et al. 2024, section 4)."""

    img_resolution: Resolution = 256
    """Side N of the image in pixels."""
    img_channels: Channels = 3
    """3 for RGB, 1 for grey."""
    octaves: Annotated[int, Field(ge=1, le=10)] = 6
    """Octaves S that the model spans: it zooms up to 2^S."""
    n_bins: Annotated[int, Field(ge=1, le=16)] = 2
    """Bins of Fourier features, each ``bin_offset`` octaves above the one before."""
    channel_base: Annotated[int, Field(ge=16, le=2**24)] = 131072
    """Width of a layer of cutoff f_c is (channel_base/2)/f_c, at most channel_max."""
    channel_max: Annotated[int, Field(ge=16, le=8192)] = 1024
    """Largest width, and the number K of Fourier features (unless ``fourier_features`` has another)."""
    fourier_features: Annotated[int, Field(ge=16, le=65536)] | None = None
    """Number K of Fourier features, mixed by learned 1x1 convolutions to the width of their layer; none: channel_max of them,
    which are appended as they are (as published)."""
    feature_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Part of a layer's width that mixed features take where they are injected (the input is all features)."""
    feature_style: bool = False
    """Amplitude and phase of each feature follow from z, so that worlds differ in layout and not only in style."""
    feature_anchor: NotNegative = 1.5
    """With ``feature_style``, features of fewer cycles over the world are the same in all worlds: what belongs to a place, such
    as a pole, can be told by them."""
    feature_bandwidth: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Features are packets of bent waves, whose frequency strays by this part of the feature's own along x and along y, so that
    their sum does not repeat itself as that of few waves does; 0: single waves (as published). Features below
    ``feature_anchor`` are single waves in any case."""
    even_features: bool = False
    """All features of an octave of frequencies count alike, in every world and in all: worlds turn their phases, not their
    amplitudes, and their mixing weights are scaled to their octave's root mean square. Otherwise some few come to dominate,
    which shows as strokes."""
    feature_gates: bool = False
    """Features injected behind a layer are multiplied by 0 to 2, as the layer's output says at each point: stronger here
    and weaker there, which a sum of waves alone is not. 1 at first."""
    feature_envelope: Annotated[float, Field(ge=0, le=2)] = 0.0
    """What features injected behind a layer are mixed to is multiplied, octave by octave, by e^(beta u - beta^2), u the sum of
    those three octaves below: strong in some places and weak in others, as relief is in mountains and plains. beta begins here
    and is learned for each octave; 0: no envelope."""
    envelope_octaves: Annotated[int, Field(ge=1, le=4)] = 1
    """Octaves that have such a factor each, from three octaves below downwards: with several, neighbouring octaves are strong
    in the same places."""
    mixing_init: Positive = 1.0
    """Standard deviation of weights that mix features injected behind layers, at first: below 1 worlds begin smooth."""
    world_frame: bool = False
    """An angle and a shift of the world follow from w (StyleGAN3's input has the same)."""
    z_dim: Annotated[int, Field(ge=1, le=65536)] = 512
    """Size of the latent z."""
    w_dim: Annotated[int, Field(ge=1, le=65536)] = 512
    """Size of the intermediate latent w."""
    mapping_layers: Annotated[int, Field(ge=1, le=16)] = 2
    """Fully connected layers from z to w."""
    num_layers: Annotated[int, Field(ge=4, le=32)] = 14
    """Synthesis layers before toRGB."""
    num_critical: Annotated[int, Field(ge=1, le=3)] = 2
    """Layers at the end that are critically sampled (their filters cut at N/2)."""
    margin: Annotated[int, Field(ge=0, le=64)] = 10
    """Samples computed beyond each side of the view in the layers."""
    filter_size: Annotated[int, Field(ge=1, le=8)] = 6
    """Filter taps for each factor of resampling."""
    critical_filter_size: Annotated[int, Field(ge=2, le=16)] | None = None
    """Those of filters that cut at N/2, whose edge is the steeper the more they have, so that the finest detail passes.
    None: filter_size."""
    radial_filters: bool = True
    """Circularly symmetric down filters; off: separable ones (StyleGAN3-T), several times faster on a CPU."""
    conv_kernel: Literal[1, 3] = 1
    """Kernel of the modulated convolutions in pixels."""
    rho_max: Positive | None = None
    """Largest feature frequency, in cycles across a layer's padded grid; none: N/4, and (N + 2 margin)/(2 sqrt 2) if mixed."""
    bin_offset: Positive = 3.0
    """Octaves between bins."""
    blend_offset: float = -1.0
    """A bin begins to fade in this many octaves after its own offset (negative: before; from -16 on the band limit of the
    layers alone decides which features there are)."""
    blend_width: Positive = 1.0
    """Octaves over which a bin fades in."""
    conv_clamp: Positive = 256.0
    """Activations are clamped to this magnitude (fp16 safety)."""
    output_scale: Positive = 0.25
    """The image is toRGB times this."""
    num_half_res: Annotated[int, Field(ge=0, le=8)] = 4
    """Highest resolutions that run in half precision on a GPU."""
    half_dtype: Literal["float16", "bfloat16"] = "float16"
    """Half precision format on a GPU."""
    magnitude_half_life_kimg: Positive = 20.0
    """Half-life of the running input magnitude of each layer, in thousands of images."""
    w_avg_decay: Annotated[float, Field(ge=0, lt=1)] = 0.998
    """Decay per batch of the running mean of w."""
    widths: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Target width of each layer in place of the rule of channel_base (imported weights)."""
    feature_split: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Features at the input and after each layer in place of the rule (imported weights)."""
    published_geometry: bool = False
    """Feature positions of the published code (imported weights): no band limit, input grid over the padded layer."""
    published_frequencies: bool = False
    """Frequencies are kept as the published code has them (imported weights), in cycles over its grid: as float32 in ours they
    would be rounded once more, which 256x shows."""

    def __post_init__(self) -> None:
        if self.num_layers <= self.num_critical + 1:
            raise ValueError(f"num_layers={self.num_layers} must exceed num_critical={self.num_critical} by 2 or more")
        if self.widths is not None and len(self.widths) != self.num_layers + 1:
            raise ValueError(f"widths={list(self.widths)} must have num_layers + 1 = {self.num_layers + 1} numbers")
        if self.feature_split is not None and (
            len(self.feature_split) != self.num_layers + 2 or sum(self.feature_split) != self.channel_max
        ):
            raise ValueError(
                f"feature_split={list(self.feature_split)} must have num_layers + 2 = {self.num_layers + 2} numbers "
                f"whose sum is channel_max={self.channel_max}"
            )
        if self.feature_bandwidth and self.published_geometry:
            raise ValueError(
                "feature_bandwidth is not for imported weights (published_geometry), which know single waves only"
            )
        if self.even_features and not (self.feature_style and self.fourier_features):
            raise ValueError(
                "even_features is for features with a style that are mixed: feature_style and fourier_features"
            )
        if self.feature_envelope and self.fourier_features is None:
            raise ValueError(
                f"feature_envelope={self.feature_envelope:g} is for features that are mixed: fourier_features"
            )
        if self.envelope_octaves > 1 and not self.feature_envelope:
            raise ValueError(
                f"envelope_octaves={self.envelope_octaves} is for features with envelopes: feature_envelope"
            )
        if self.mixing_init != 1 and self.fourier_features is None:
            raise ValueError(f"mixing_init={self.mixing_init:g} is for features that are mixed: fourier_features")
        if self.feature_split is not None and self.fourier_features is not None:
            raise ValueError(
                "feature_split is for imported weights, whose features are not mixed: leave out fourier_features"
            )


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DiscriminatorConfig:
    """The residual discriminator of StyleGAN2 (Karras et al. 2020, appendix B), or another of ``ARCHITECTURES``."""

    architecture: str = "residual"
    """Which network."""
    channel_base: Annotated[int, Field(ge=16, le=2**24)] = 131072
    """Width at resolution r is channel_base/r, at most channel_max."""
    channel_max: Annotated[int, Field(ge=1, le=8192)] = 1024
    """Largest width."""
    conv_clamp: Positive = 256.0
    """Activations are clamped to this magnitude times the layer's gain."""
    mbstd_group: Annotated[int, Field(ge=1)] = 4
    """Samples over which the minibatch standard deviation is taken."""
    scale_embedding: Annotated[int, Field(ge=0, le=8192)] = 0
    """Size of the embedding of the zoom on which the head's output is projected; 0: D does not know the zoom (as published)."""
    local_heads: bool = False
    """Judge each place of the maps behind every block too, not only the image as a whole: far more to learn from an image."""
    num_half_res: Annotated[int, Field(ge=0, le=8)] = 4
    """Highest resolutions that run in half precision on a GPU."""
    half_dtype: Literal["float16", "bfloat16"] = "float16"
    """Half precision format on a GPU."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ScheduleConfig:
    """Progressive scale sampling (Wolski et al. 2024, section 4.3): coarse octaves first, fine octaves last."""

    warmup_kimg: NotNegative = 2000.0
    """Thousands of images over which the mixture goes from coarse to even."""
    skew_kimg: NotNegative = 4000.0
    """Thousands of images at which the mixture has become finest (none before warmup_kimg)."""
    boost_first: Positive = 4.0
    """Strength of the preference for coarse octaves at the start."""
    boost_last: Positive = 4.0
    """Strength of the preference for fine octaves at the end."""

    def __post_init__(self) -> None:
        if self.skew_kimg < self.warmup_kimg:
            raise ValueError(f"skew_kimg={self.skew_kimg:g} must not be below warmup_kimg={self.warmup_kimg:g}")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainingConfig:
    """Objective, optimisation, and what is written when."""

    batch: Annotated[int, Field(ge=1, le=65536)] = 32
    """Images per step, over all devices."""
    batch_gpu: Annotated[int, Field(ge=1)] | None = None
    """Images that a device computes at a time; the gradients of several are added up; none: as many as fit its memory."""
    kimg: Positive = 25000.0
    """Length of the run in thousands of real images shown."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of every random stream."""
    g_lr: Positive = 0.0025
    """Learning rate of the generator."""
    d_lr: Positive = 0.002
    """Learning rate of the discriminator (before the correction for lazy R1)."""
    lr_end: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Both learning rates at the end of the run, as a fraction of these: they fall in its second half; 1: they stay."""
    adversarial: Literal["logistic", "pairs"] = "logistic"
    """`logistic`: non-saturating, each image on its own (as published); `pairs`: relativistic, a real and a generated patch of
    the same zoom against each other (R3GAN)."""
    r1_gamma: NotNegative = 2.0
    """Weight of the gradient penalty on real patches."""
    r2_gamma: NotNegative = 0.0
    """Weight of the gradient penalty on generated patches; 0 for none."""
    r1_interval: Annotated[int, Field(ge=1)] = 16
    """Steps between two gradient penalties."""
    blur_sigma_px: NotNegative = 10.0
    """Blur of the images shown to the discriminator at the start, in pixels; 0 for none."""
    blur_fade_kimg: Positive | None = None
    """Thousands of images over which the blur fades; none: 200 at batch 32, in proportion to the batch."""
    consistency_weight: NotNegative = 4.0
    """Weight of the scale consistency loss; 0 for none."""
    consistency_by_octave: Annotated[tuple[NotNegative, ...], Field(min_length=1)] | None = None
    """Factors of the weight by the octave of the finer view, coarse to fine; the last holds for all further ones; none: 1."""
    consistency_metric: Literal["l1+lpips", "l1"] = "l1+lpips"
    """Distance between scales; LPIPS needs two weight files, l1 does without."""
    lpips_folder: str | None = None
    """Folder with the LPIPS weight files; none: the cache folder."""
    mirror: bool = False
    """Show each patch also mirrored left to right: twice the patches."""
    augment: Literal["none", "fixed", "ada"] = "none"
    """Augmentation of what the discriminator sees: none, with fixed probability, or adaptive (ADA)."""
    augment_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability of each augmentation: of `fixed`, and the start of `ada`."""
    ada_target: Annotated[float, Field(ge=-1, le=1)] = 0.6
    """The mean sign of D on real patches (of `pairs`: of their difference to generated ones) that `ada` steers to."""
    ada_by_octave: bool = False
    """A probability for each octave, from D's signs in it: the mean hides that few coarse patches are known by heart."""
    ada_kimg: Positive = 500.0
    """Thousands of real images over which the probability of `ada` can go from 0 to 1."""
    ema_kimg: Positive | None = None
    """Half-life of the running mean of the generator's weights; none: 10 at batch 32, in proportion to the batch."""
    ema_rampup: Annotated[float, Field(gt=0, le=1)] | None = 0.05
    """The half-life is at most this fraction of the images shown so far; none: no such bound."""
    tf32: bool = False
    """Let a GPU round the factors of float32 products to TF32 (10 bits of mantissa) in training steps: faster, less exact.
    Images and measures never do."""
    compile_discriminator: bool = False
    """Compile D by torch.compile (a minute at the start; R1 stays as it is); it needs a compiler, Triton on a GPU."""
    cuda_graphs: bool | None = None
    """Replay the networks of a step from CUDA graphs: several times faster where they are small, and more memory; none: on a
    GPU where that fits easily. Steps in several parts are not replayed."""
    workers: Annotated[int, Field(ge=0, le=256)] | None = None
    """Processes that read patches; none: 3 beside a GPU, and none beside a CPU that is busy anyway."""
    snapshot_kimg: Positive | None = None
    """Thousands of images between snapshots; none: a fiftieth of the run, at most 200."""
    sample_seeds: Annotated[int, Field(ge=1, le=64)] = 6
    """Rows of the sample sheet."""
    metrics: str | None = None
    """Measures of snapshots, as calc_metrics.py names them, such as msfid1k,swd; the first one tells the best; none: none."""
    metrics_every: Annotated[int, Field(ge=1)] = 1
    """Snapshots from one that is measured to the next."""
    metrics_features: Literal["random", "inception", "dinov2"] = "random"
    """Features that msfid, mskid and precision_recall compare; random ones need no file."""
    metrics_weights: str | None = None
    """Weight file of these features, or its folder; none: the cache folder."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class RunConfig:
    """Everything that determines a run, apart from its data and where it is written."""

    generator: GeneratorConfig = dataclasses.field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = dataclasses.field(default_factory=DiscriminatorConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)


T = TypeVar("T")


def build(schema: type[T], values: Mapping[str, Any], *, source: str = "the configuration") -> T:
    """Build ``schema`` (a dataclass of this module) from nested plain values.

    Raises:
        UserError: an unknown key (with the nearest name), a wrong type or a value out of range (with what is allowed).
    """
    check_keys(schema, values, source)
    try:
        built = TypeAdapter(schema).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("constrained", "function")))
        reason = in_words(first["msg"])
        given = "" if isinstance(first["input"], Mapping) else f"={shown(first['input'])}"
        raise UserError(f"{path or 'a value'}{given} in {source} is not allowed: {reason}.") from error
    _check_kinds(built, values, source)
    return built


def _check_kinds(built: Any, values: Mapping[str, Any], source: str, where: str = "") -> None:
    """UserError where pydantic took a truth value for a number or the reverse; texts such as YAML's 1e-3 it may read."""
    for key, given in values.items():
        value = getattr(built, key)
        if dataclasses.is_dataclass(value):
            _check_kinds(value, given, source, f"{where}{key}.")
        elif isinstance(given, bool) != isinstance(value, bool):
            wanted = "true or false" if isinstance(value, bool) else "a number"
            raise UserError(f"{where}{key}={shown(given)} in {source} is not allowed: give {wanted}.")


def to_dict(config: Any) -> dict[str, Any]:
    """The plain nested values of a config (tuples as lists), ready for YAML or JSON."""

    def plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in pairs}

    return dataclasses.asdict(config, dict_factory=plain)


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read the differences that a YAML file holds.

    Raises:
        UserError: the file is missing, is not YAML, or does not hold a mapping.
    """
    text = read_text(path, "the config")
    values = parsed(lambda: from_yaml(text), f"The config {path} is not valid YAML: {{reason}}.")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(
            f"The config {path} holds a {type(values).__name__}; it must hold sections such as 'training:'."
        )
    return values


def parse_assignment(text: str) -> dict[str, Any]:
    """Turn ``"training.batch=8"`` into ``{"training": {"batch": 8}}``; the value is read as YAML.

    Raises:
        UserError: there is no ``=`` or no path before it, or the value is not YAML.
    """
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise UserError(f"--set {shown(text)} is not an assignment; write it as path=value, such as training.batch=8.")
    nested: Any = parsed(
        lambda: from_yaml(value), f"--set {shown(text)}: the value {shown(value)} cannot be read: {{reason}}."
    )
    for key in reversed(path.strip().split(".")):
        nested = {key: nested}
    return nested


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings; where two have a value for the same key, the later one holds."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = merged.get(key)
            both = isinstance(value, Mapping) and isinstance(below, Mapping)
            merged[key] = merge(below, value) if both else value  # type: ignore[arg-type]
    return merged


def preset_names() -> list[str]:
    """Names of the presets in ``configs/``."""
    return sorted(path.stem for path in _preset_folder().glob("*.yaml"))


def load_preset(name: str) -> dict[str, Any]:
    """The differences of a preset by its name, such as ``"moon"``.

    Raises:
        UserError: there is no such preset; the message has the nearest name.
    """
    names = preset_names()
    if name not in names:
        raise UserError(f"There is no preset {name!r}{nearest_name(name, names)}")
    return load_yaml(_preset_folder() / f"{name}.yaml")


def _preset_folder() -> Path:
    """Where an installed package has ``configs/``, or a checkout."""
    here = Path(__file__).resolve().parent
    installed = here / "presets"  # the same files, by [tool.setuptools.package-dir]
    return installed if installed.is_dir() else here.parent / "configs"


def check_keys(schema: Any, values: Any, source: str, prefix: str = "") -> None:
    """Walk the sections so that a misspelt key is named with its path and its nearest neighbour."""
    if not isinstance(values, Mapping):
        raise UserError(
            f"{prefix.rstrip('.') or 'The configuration'} in {source} must be a section of keys, not {shown(values)}."
        )
    fields = _field_types(schema)
    for key, value in values.items():
        if key not in fields:
            paths = [f"{prefix}{name}.{key}" for name, kind in fields.items() if key in _keys_of(kind)]
            advice = f"; write {' or '.join(paths)}." if paths else nearest_name(str(key), fields)
            raise UserError(f"Unknown key {prefix}{key} in {source}{advice}")
        if dataclasses.is_dataclass(fields[key]):
            check_keys(fields[key], value, source, f"{prefix}{key}.")


def _keys_of(kind: Any) -> Iterable[str]:
    """Names within a section; none of what is no section."""
    is_section = dataclasses.is_dataclass(kind)
    return _field_types(kind) if is_section else ()


@functools.cache
def _field_types(schema: Any) -> dict[str, Any]:
    return typing.get_type_hints(schema)
