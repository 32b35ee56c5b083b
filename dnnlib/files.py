"""Files that are whole or absent: written under a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from dnnlib.errors import UserError


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """The name of a temporary file beside ``path``, which is renamed to ``path`` when the block ends well.

    The data are fsynced before the rename, and the folder's entry after it; if the block raises (Ctrl-C included) the
    temporary file is removed and an older ``path`` stays as it was. Missing parent folders are made.

    Raises:
        UserError: the folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = _new_file_beside(path)
            yield temporary
            with open(temporary, "rb+") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            raise
        _fsync_folder(path.parent)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """As :func:`atomic_path`, but with the temporary file open.

    Args:
        path: Where the file shall stand.
        mode: ``"wb"`` (readable too: ``"w+b"``) or ``"w"`` for UTF-8 text.

    Raises:
        UserError: the folder cannot be made or written, or the disk is full.
    """
    with (
        atomic_path(path) as temporary,
        open(temporary, mode, encoding=None if "b" in mode else "utf-8") as stream,
    ):
        yield stream


def cache_folder() -> Path:
    """Folder for files fetched once and kept.

    ``$MULTISCALE_CACHE``, else ``$XDG_CACHE_HOME/multiscale``, else ``~/.cache/multiscale``.
    """
    chosen = os.environ.get("MULTISCALE_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "multiscale"


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _new_file_beside(path: Path) -> Path:
    """An empty hidden file ``.NAME.*.tmp`` of nobody else's, with the permissions of any new file."""
    while True:
        temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
        with contextlib.suppress(FileExistsError):
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # less the umask, by the system
            return temporary


def _fsync_folder(folder: Path) -> None:
    """Make a rename durable; a no-op where folders cannot be opened (Windows)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
