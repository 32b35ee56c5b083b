"""Convert a pickle of the published code: ``python -m multiscale.interop moon_rec6.pkl moon.safetensors``."""

from __future__ import annotations

from pathlib import Path

import click

from dnnlib.cli import Command, reports_user_errors
from dnnlib.errors import UserError
from dnnlib.files import check_writable
from multiscale.runs.headers import read_header
from multiscale.runs.remote import existing_path


@click.command(cls=Command)
@click.argument("pickle", metavar="FILE.pkl")
@click.argument("snapshot", metavar="FILE.safetensors")
@reports_user_errors
def main(pickle: str, snapshot: str) -> None:
    """Write the generator of a published pickle as a snapshot of this program, exactly; nothing in the pickle is run.

    The snapshot says where it comes from, and under which licence. FILE.pkl may also be an address, https://... or hf://...
    """
    path = Path(snapshot)
    if path.suffix != ".safetensors":
        raise UserError(f"{path} does not end in .safetensors; give a name that does.")
    check_writable(path)
    source = existing_path(pickle, "a .pkl of the published code", bundled=False)
    if source.suffix == ".safetensors":
        read_header(source)
        raise UserError(f"{source} is a network of this program already; give it to --network as it is.")
    from multiscale.interop.pickles import load_published  # here: PyTorch takes seconds
    from multiscale.runs.snapshots import save_snapshot

    published = load_published(source)
    save_snapshot(path, published.generator, published.info)
    config = published.generator.config
    print(
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, {config.img_resolution} x {config.img_resolution} pixels, "
        f"{config.octaves} octaves ({2**config.octaves}x). Licence of its origin: {published.info['licence']}."
    )


if __name__ == "__main__":
    main()
