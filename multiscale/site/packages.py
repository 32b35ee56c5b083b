"""Files of packages of npm, fetched once by npm itself, checked, and kept in the cache folder."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dnnlib.errors import UserError
from dnnlib.files import atomic_copy, cache_folder, sha256
from dnnlib.reading import parsed

FETCH_SEC = 600


@dataclass(frozen=True)
class Package:
    """A package in the one version that is used."""

    name: str
    version: str
    digest: str
    """SHA-256 of its archive."""
    licence: str

    @property
    def archive(self) -> str:
        """Name of the file that ``npm pack`` writes."""
        return f"{self.name}-{self.version}.tgz"


RUNTIME = Package(
    "onnxruntime-web", "1.30.0", "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71", "MIT"
)
VIEWER = Package(
    "openseadragon", "6.1.1", "b4ab2942f33b90e0448e4d20fc5ed14cee049f1f3ae49d70afd4b05e9a2f92d0", "BSD-3-Clause"
)


def copy_from(package: Package, members: Sequence[str], folder: Path) -> None:
    """Copy files of a package, named as in its archive, into a folder; a member that ends in / is all that is below it.

    Raises:
        UserError: it is not kept yet and npm is not there, or cannot get it, or gives another archive.
    """
    archive = _archive(package)

    def copy() -> None:
        with tarfile.open(archive) as whole:
            for member in whole:
                name = member.name.removeprefix("package/")
                if member.isfile() and any(name == m or (m.endswith("/") and name.startswith(m)) for m in members):
                    below = next(m for m in members if name == m or name.startswith(m))
                    target = folder / (name[len(below) :] if below.endswith("/") else Path(name).name)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    stream = whole.extractfile(member)
                    assert stream is not None
                    with open(target, "wb") as out:
                        shutil.copyfileobj(stream, out)

    parsed(copy, f"Cannot read {archive}: {{reason}}; remove it, and it is fetched again.")


def _archive(package: Package) -> Path:
    kept = cache_folder() / "npm" / package.archive
    if kept.is_file() and sha256(kept) == package.digest:
        return kept
    if shutil.which("npm") is None:
        raise UserError(
            f"{package.name} {package.version} is needed and npm is not there to get it; install Node.js, or put the archive "
            f"{package.archive} of that package into {kept.parent}."
        )
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", f"{package.name}@{package.version}", "--silent", "--pack-destination", folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SEC, cwd=folder, check=False)
        except subprocess.TimeoutExpired:
            done = None
        fetched = Path(folder) / package.archive
        if done is None or done.returncode or not fetched.is_file():
            reason = "it took too long" if done is None else " ".join(done.stderr.split())[-200:] or "it wrote nothing"
            raise UserError(f"npm cannot get {package.name} {package.version}: {reason}.")
        if sha256(fetched) != package.digest:
            raise UserError(f"npm gives another {package.archive} than the one that was tested; it is not used.")
        atomic_copy(fetched, kept)
    return kept
