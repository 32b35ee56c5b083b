"""Measure how good models are, at every scale: ``python calc_metrics.py --network RUN --data patches.zip``."""

from __future__ import annotations

from typing import Any

import click
from click_option_group import optgroup

from dnnlib.cli import Command, reports_user_errors
from dnnlib.files import check_writable
from dnnlib.names import folder_named
from multiscale.data.patches import PatchDataset
from multiscale.metrics.measure import KINDS
from multiscale.metrics.parse import DEFAULT, FEATURES, parse_metrics
from multiscale.runs.headers import find_networks


class _WithMeasures(Command):
    """Lists all measures at the end of its help, and loads them for nothing else."""

    @reports_user_errors  # of modules from elsewhere
    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click writes a text that ends the help."""
        lines = (f"  {name:<17} {kind.description}; {kind.count:,} {kind.unit}" for name, kind in KINDS.items())
        self.epilog = "\n".join(["\b", "Measures, with an optional number of samples (msfid10k, swd500):", *lines])
        super().format_epilog(ctx, formatter)


@click.command(cls=_WithMeasures, context_settings={"show_default": True, "max_content_width": 110})
@optgroup.group("What is measured")
@optgroup.option(
    "--network",
    "networks",
    multiple=True,
    metavar="RUN|FILE|NAME|PATTERN",
    help="May be repeated; also 'run/generator-*.safetensors', or earth, the bundled model.  "
    "[default: the snapshot written last in runs/, else the bundled model]",
)
@optgroup.option("--data", required=True, metavar="ZIP|FOLDER|PATTERN", help="The patches that it was trained on.")
@optgroup.option("--metrics", default=DEFAULT, metavar="NAME,NAME,...", help="See below.")
@optgroup.option("--seed", type=click.IntRange(0), default=0, help="Of the samples: same seed, same numbers.")
@optgroup.group("Features")
@optgroup.option(
    "--features",
    type=click.Choice(FEATURES),
    default="random",
    help="For msfid, mskid, precision_recall and the report; random needs no file, but its values are not FID.",
)
@optgroup.option(
    "--weights", metavar="FILE|FOLDER", help="Weight file of inception or dinov2.  [default: the cache folder]"
)
@optgroup.group("Machine")
@optgroup.option("--gpus", type=click.IntRange(0), help="CUDA devices; 0: the CPU.  [default: one GPU if there is one]")
@optgroup.option("--procs", type=click.IntRange(1, 256), default=1, help="On the CPU: processes that share it.")
@optgroup.option("--batch", type=click.IntRange(1), help="Views at a time.  [default: 16 on a CPU, 64 on a GPU]")
@optgroup.group("Other")
@optgroup.option("--out", default="out/metrics", metavar="FOLDER", help="For report.html, plots and metrics.jsonl.")
@optgroup.option("--dry-run", is_flag=True, help="Estimate the cost of each measure from a few views; then exit.")
@reports_user_errors
def main(*, networks: tuple[str, ...], data: str, metrics: str, out: str, dry_run: bool, **options: Any) -> None:
    """Measure models against the patches that they were trained on, octave by octave, and write a report."""
    folder_named("--out", out)
    if not dry_run:
        check_writable(out, folder="filled")
    measures = parse_metrics(metrics)
    files, dataset = find_networks(networks), PatchDataset(data)
    from multiscale.metrics.commands import Request, calc_metrics  # here: PyTorch takes seconds

    calc_metrics(Request(networks=files, data=data, metrics=measures, out=out, **options), dataset, dry_run=dry_run)


if __name__ == "__main__":
    main()
