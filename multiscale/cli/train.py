"""Train a multiscale generator on a bag of patches: ``python train.py --data patches.zip``."""

from __future__ import annotations

import click
from click_option_group import optgroup

from dnnlib.cli import Command, reports_user_errors
from multiscale.training.status import report_status


@click.command(cls=Command, context_settings={"show_default": True, "max_content_width": 110})
@optgroup.group("Data and output")
@optgroup.option(
    "--data", metavar="ZIP|FOLDER|PATTERN", help="Patches with scale labels; several sets: 'part-*.zip'.  [required]"
)
@optgroup.option(
    "--outdir", metavar="FOLDER", help="The run's own folder; resumes a run there.  [default: a numbered one in runs/]"
)
@optgroup.option("--resume", metavar="FILE", help="Start a new run from the training state (state-*.pt) of another.")
@optgroup.option(
    "--transfer",
    metavar="RUN|FILE|NAME",
    help="Start a new run from networks only: a run or runs (the newest state), a state-*.pt, a generator-*.safetensors, a "
    "published .pkl, https://... or hf://owner/repo.",
)
@optgroup.option("--fresh", is_flag=True, help="Start another run; without it the same command resumes its run.")
@optgroup.group("Machine")
@optgroup.option("--gpus", type=click.IntRange(0), help="CUDA devices; 0: the CPU.  [default: one GPU if there is one]")
@optgroup.option("--procs", type=click.IntRange(1, 256), default=1, help="On the CPU: processes that share it.")
@optgroup.group("Settings")
@optgroup.option("--config", metavar="FILE|PRESET", help="A YAML file, or a preset.  [default: chosen from the data]")
@optgroup.option("--set", "assignments", multiple=True, metavar="PATH=VALUE", help="Such as training.r1_gamma=5.")
@optgroup.option(
    "--kimg", type=click.FloatRange(0, min_open=True), help="Length in thousands of images.  [default: the preset's]"
)
@optgroup.option("--batch", type=click.IntRange(1), help="Images per step over all devices.  [default: the preset's]")
@optgroup.option(
    "--batch-gpu",
    type=click.IntRange(1),
    help="Images per device at a time; gradients accumulate to --batch.  [default: what fits its memory]",
)
@optgroup.option("--seed", type=click.IntRange(0), help="Seed of every random stream.  [default: the preset's]")
@optgroup.group("Other")
@optgroup.option("--dry-run", is_flag=True, help="Print the resolved run, layer plan, parameters, memory; then exit.")
@optgroup.option(
    "--status",
    metavar="RUN",
    help="Print and plot the progress of a run, or of the one written to last in a folder of runs; then exit.",
)
@reports_user_errors
def main(*, status: str | None, dry_run: bool, assignments: tuple[str, ...], **options: object) -> None:
    """Train a multiscale generator.

    --data alone is enough: device, preset, batch and output folder are chosen and printed. The same command typed again
    resumes the same run, bit for bit; Ctrl-C, SIGTERM, SIGHUP or SIGUSR1 finishes the step and saves the state.
    """
    if status is not None:
        report_status(status)
        return
    if options["data"] is None:
        raise click.MissingParameter(param_hint="'--data'", param_type="option")
    from multiscale.training.launch import Request, train  # here: PyTorch takes seconds, and --status does without

    train(Request(assignments=assignments, **options), dry_run=dry_run)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
