"""Give a model away: ``python -m multiscale.share push RUN hf://owner/repo``."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import click

from dnnlib.cli import Command, reports_user_errors
from dnnlib.console import say
from dnnlib.errors import UserError
from dnnlib.names import folder_named
from multiscale.runs.headers import find_network
from multiscale.runs.remote import HubName, hub, hub_errors


@click.group()
def main() -> None:
    """Give models away."""


@main.command(cls=Command, context_settings={"show_default": True})
@click.argument("run", metavar="RUN|FILE")
@click.argument("name", metavar="hf://OWNER/REPO")
@click.option("--seed", type=click.IntRange(0), default=3, help="The world that the card shows.")
@click.option("--licence", metavar="ID", help="Of the weights, as the hub writes it: cc-by-4.0, cc0-1.0, ...")
@click.option("--private", is_flag=True, help="A repository that is made is for you alone.")
@click.option("--folder", metavar="FOLDER", help="Write the files here to look at them, and upload nothing.")
@reports_user_errors
def push(run: str, name: str, seed: int, licence: str | None, private: bool, folder: str | None) -> None:
    """Upload the newest snapshot of RUN with a model card: a strip of a world, measures, settings.

    The repository is made if need be; log in first with hf auth login. Others then fly with zoom.py --network hf://OWNER/REPO.
    """
    place = None if folder is None else folder_named("--folder", folder)
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise UserError(
            f"--licence {licence} is no ID of the hub; write it as the hub does: cc-by-4.0, cc0-1.0 or other."
        )
    target = HubName.parse(name)
    if target.file is not None:
        raise UserError(f"{name} names a file; give hf://owner/repo, and @revision if you like.")
    network = find_network(run, say)
    from multiscale.share.card import write_share  # here: PyTorch takes seconds

    if place is not None:
        for path in write_share(network, place, name, seed=seed, licence=licence):
            print(path)
        return
    api = hub().HfApi()
    with tempfile.TemporaryDirectory() as temporary:
        files = write_share(network, Path(temporary, "share"), name, seed=seed, licence=licence)
        with hub_errors(target):
            api.create_repo(target.repo, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=target.repo,
                folder_path=str(files[0].parent),
                revision=target.revision,
                commit_message=f"{files[0].stem} with its card",
            )
    print(f"{target} has {', '.join(path.name for path in files)}.")


if __name__ == "__main__":
    main()
