"""Train a multiscale generator on a bag of patches: ``python train.py --data patches.zip``."""

from __future__ import annotations

import click

from dnnlib.cli import reports_user_errors
from multiscale.training.launch import Request, train


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@click.option("--data", required=True, metavar="ZIP|FOLDER", help="Patches with scale labels (see dataset_tool.py).")
@click.option("--gpus", type=click.IntRange(0), help="CUDA devices; 0: the CPU.  [default: one GPU if there is one]")
@click.option(
    "--config", metavar="FILE|PRESET", help="Settings as YAML, or a preset's name.  [default: chosen from the data]"
)
@click.option(
    "--set", "assignments", multiple=True, metavar="PATH=VALUE", help="One setting, e.g. training.r1_gamma=5."
)
@click.option("--outdir", metavar="FOLDER", help="The run's own folder.  [default: a new numbered one under runs/]")
@click.option(
    "--kimg", type=click.FloatRange(0, min_open=True), help="Length in thousands of images.  [default: the preset's]"
)
@click.option("--batch", type=click.IntRange(1), help="Images per step over all devices.  [default: the preset's]")
@click.option("--seed", type=click.IntRange(0), help="Seed of every random stream.  [default: the preset's]")
@click.option("--dry-run", is_flag=True, help="Print the resolved run, layer plan, parameters and memory; then exit.")
@reports_user_errors
def main(*, dry_run: bool, assignments: tuple[str, ...], **options: object) -> None:
    """Train a multiscale generator.

    --data alone is enough: device, preset, batch and output folder are chosen and printed.
    """
    train(Request(assignments=assignments, **options), dry_run=dry_run)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
