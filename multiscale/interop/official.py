"""Weights of the published multiscale code, brought into our networks by their tensors' names.

The published grid spans the padded layer, so a translation t of its transforms is the world centre c = t n_0/r_0 here
(:func:`centre_from_official`); the imported generator keeps its feature positions through ``published_geometry``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from dnnlib.errors import UserError
from dnnlib.reading import parsed
from multiscale.config import DiscriminatorConfig, GeneratorConfig, build
from multiscale.networks.discriminator import ResidualDiscriminator
from multiscale.networks.generator import Generator
from multiscale.networks.plan import LayerPlan, Plan, make_plan, split_features


def generator_from_official(
    state: Mapping[str, torch.Tensor],
    *,
    img_resolution: int,
    channel_base: int,
    channel_max: int,
    n_bins: int,
    octaves: int,
    z_dim: int = 512,
    w_dim: int = 512,
    settings: Mapping[str, Any] | None = None,
    features: Sequence[torch.Tensor] | None = None,
) -> Generator:
    """Build our generator with the weights of a published one.

    Args:
        state: Tensors by the published names: ``synthesis.input.{freqs,phases,weight}``,
            ``synthesis.L{i}_{size}_{channels}.{weight,bias,affine.weight,affine.bias,magnitude_ema}``,
            ``mapping.fc{i}.{weight,bias}``, ``mapping.w_avg``. Others are not used.
        img_resolution: Side N of the image.
        channel_base: As the published network was configured.
        channel_max: As the published network was configured; the number of features.
        n_bins: Bins of features.
        octaves: Octaves that the data spanned.
        z_dim: Size of z.
        w_dim: Size of w.
        settings: Others of :class:`~multiscale.config.GeneratorConfig`, where they are not the published defaults.
        features: For the input and each layer the indices of its features, int64; None: by radius, as published.

    Returns:
        The generator, float32, in evaluation mode.

    Raises:
        UserError: a tensor is missing or has another shape than the configuration asks for; the message names it.
    """
    return parsed(
        lambda: _generator(
            _Source(state),
            features,
            img_resolution=img_resolution,
            octaves=octaves,
            n_bins=n_bins,
            channel_base=channel_base,
            channel_max=channel_max,
            z_dim=z_dim,
            w_dim=w_dim,
            **(settings or {}),
        ),
        MISFIT,
    )


def _generator(source: _Source, features: Sequence[torch.Tensor] | None, **settings: Any) -> Generator:
    layers = source.layer_prefixes()
    radii = source["synthesis.input.freqs"].double().norm(dim=1)
    order = radii.argsort(stable=True) if features is None else torch.cat(list(features))
    if not torch.equal(order.sort().values, torch.arange(len(radii))):
        raise UserError("The published weights do not give each feature to one layer; get them again.")
    base = {
        **settings,
        "img_channels": source[f"{layers[-1]}.weight"].shape[0],
        "mapping_layers": source.count(r"mapping\.fc\d+\.weight"),
        "num_layers": len(layers) - 1,
        "rho_max": float(radii.max()),
        "widths": tuple(source[f"{name}.weight"].shape[0] for name in layers),
        "published_geometry": True,
        "published_frequencies": True,
    }
    if features is None:
        split = _split_radii(make_plan(build(GeneratorConfig, base)), radii[order].tolist())
    else:
        split = [len(indices) for indices in features]
        if not split or not split[0]:
            raise UserError("The published weights leave the input no feature; get them again.")
    config = build(GeneratorConfig, {**base, "feature_split": tuple(split)})
    ours = {"mapping.w_avg": source["mapping.w_avg"], "synthesis.input_weight": source["synthesis.input.weight"]}
    for i in range(config.mapping_layers):
        for part in ("weight", "bias"):
            ours[f"mapping.layers.{i}.{part}"] = source[f"mapping.fc{i}.{part}"]
    for i, name in enumerate(layers):
        for part in ("weight", "bias", "magnitude_ema", "affine.weight", "affine.bias"):
            ours[f"synthesis.layers.{i}.{part}"] = source[f"{name}.{part}"]
    ours.update(_features(source, order, split))
    with torch.device("meta"):
        _check_shapes(Generator(config), ours)  # before it is built: a damaged configuration may claim any size
    generator = Generator(config)
    _load(generator, ours)
    _check_layout(source, layers, generator)
    return generator.eval()


def discriminator_from_official(
    state: Mapping[str, torch.Tensor], *, img_resolution: int, channel_base: int, channel_max: int
) -> ResidualDiscriminator:
    """Build our discriminator from tensors named ``b{res}.{fromrgb,conv0,conv1,skip}`` and ``b4.{conv,fc,out}``.

    Raises:
        UserError: a tensor is missing or has another shape than the configuration asks for; the message names it.
    """
    config = DiscriminatorConfig(channel_base=channel_base, channel_max=channel_max)
    return parsed(lambda: _discriminator(_Source(state), config, img_resolution), MISFIT)


def _discriminator(source: _Source, config: DiscriminatorConfig, img_resolution: int) -> ResidualDiscriminator:
    img_channels = source[f"b{img_resolution}.fromrgb.weight"].shape[1]
    discriminator = ResidualDiscriminator(config, img_resolution=img_resolution, img_channels=img_channels)
    ours = {
        name: source[name.removeprefix("blocks.") if name.startswith("blocks.") else f"b4.{name.removeprefix('head.')}"]
        for name in discriminator.state_dict()
    }
    _load(discriminator, ours)
    return discriminator.eval()


def centre_from_official(translation: torch.Tensor, plan: Plan) -> torch.Tensor:
    """World centres c = t n_0/r_0 of the published code's translations t, [B, 2] -> [B, 2]."""
    return translation * (plan.input_size / plan.input_rate)


MISFIT = "The published weights do not fit together ({reason}); give the state of a whole generator or discriminator."
"""Whatever tensors of other shapes, or other things than tensors, make of the rules."""


class _Source(dict[str, torch.Tensor]):
    """The published tensors; a missing one is a user's error."""

    def __missing__(self, name: str) -> torch.Tensor:
        raise UserError(
            f"The published weights have no tensor {name!r}; give the state of a whole generator or discriminator."
        )

    def layer_prefixes(self) -> list[str]:
        """``synthesis.L{i}_{size}_{channels}`` in the order of i."""
        found = {m[0]: int(m[1]) for name in self if (m := re.match(r"synthesis\.L(\d+)_\d+_\d+(?=\.)", name))}
        if not found:
            raise UserError(
                "The published weights have no layers 'synthesis.L0_...'; give the state of a whole generator."
            )
        return sorted(found, key=lambda name: found[name])

    def count(self, pattern: str) -> int:
        return sum(re.fullmatch(pattern, name) is not None for name in self)


def _split_radii(plan: Plan, radii: Iterable[float]) -> list[int]:
    """Deal the published radii to the input and to every layer whose rate grows."""
    growing = [layer for layer in plan.layers if layer.out_rate > layer.in_rate]
    counts = split_features(list(radii), [plan.input_size, *(layer.out_size for layer in growing)])
    split = [counts[0]] + [0] * len(plan.layers)
    for layer, count in zip(growing, counts[1:], strict=True):
        split[layer.index + 1] = count
    return split


def _features(source: _Source, order: torch.Tensor, split: Sequence[int]) -> dict[str, torch.Tensor]:
    """Frequencies, as they are, and phases of every injection point."""
    tensors: dict[str, torch.Tensor] = {}
    points = ["synthesis.input", *(f"synthesis.injections.{i}" for i in range(len(split) - 1))]
    for prefix, indices in zip(points, order.split(list(split)), strict=True):
        if len(indices):
            tensors[f"{prefix}.omega"] = source["synthesis.input.freqs"][indices]
            tensors[f"{prefix}.phase"] = source["synthesis.input.phases"][indices]
    return tensors


def _check_shapes(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, target in module.state_dict().items():
        if name not in tensors or tensors[name].shape != target.shape:
            given = list(tensors[name].shape) if name in tensors else "none"
            raise UserError(
                f"The published weights give {name} the shape {given}, but this configuration "
                f"needs {list(target.shape)}; check img_resolution, channel_base, channel_max and n_bins."
            )


def _load(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy ``tensors`` into ``module``, whole, in shape and finite."""
    _check_shapes(module, tensors)
    if broken := [name for name in module.state_dict() if not tensors[name].isfinite().all()]:
        raise UserError(f"The published weights are not finite ({broken[0]}); get them again.")
    module.load_state_dict({name: tensors[name].float() for name in module.state_dict()})


def _check_layout(source: _Source, layers: Sequence[str], generator: Generator) -> None:
    """Refuse layers that are laid out, or filter, as no configuration of ours does; where the state says how they do."""
    for prefix, layer in zip(layers, generator.synthesis.layers, strict=True):
        size = int(prefix.rpartition(".")[2].split("_")[1])
        plan: LayerPlan = layer.plan  # type: ignore[assignment]
        kept = [(name, source.get(f"{prefix}.{name}"), getattr(layer, name)) for name in ("up_filter", "down_filter")]
        if size != plan.out_size or any(theirs is not None and not _alike(theirs, own) for _, theirs, own in kept):
            raise UserError(
                f"The published weights have a layer {prefix.rpartition('.')[2]} whose grid or filters are not those of this "
                "configuration; only networks with the published cutoffs can be opened."
            )


def _alike(theirs: torch.Tensor, own: torch.Tensor | None) -> bool:
    return own is not None and theirs.shape == own.shape and bool((theirs.float() - own).abs().max() < 1e-5)
