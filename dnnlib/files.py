"""Files that are whole or absent: written under a temporary name, flushed to disk, then renamed.

A temporary name says whose it is, ``.NAME.HOST-PROCESS-RANDOM.tmp``: what a killed process has left is removed by the next one
that writes in the same folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from dnnlib.errors import UserError

_TEMPORARY = re.compile(r"\..*\.([0-9a-f]{8})-([0-9]{1,10})-[0-9a-z_]{8}\.tmp", re.ASCII | re.DOTALL)
_NAME_BYTES = 150
"""Of a file's own name in that of its temporary file: systems allow 255 in all."""
_swept: set[Path] = set()


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


def new_temporary_folder(name: str, parent: Path | None = None) -> Path:
    """A new folder that others cannot read, in ``parent`` or the system's folder for temporary files.

    Whoever asks removes it; if the process is killed, the next one that asks in the same place does. OSError if there is none.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    remove_abandoned(parent)
    return Path(tempfile.mkdtemp(prefix=f".{_shortened(name)}.{_owner()}-", suffix=".tmp", dir=parent))


def remove_abandoned(folder: Path, *, again: bool = False) -> None:
    """Remove temporary files and folders whose processes have ended; looks once in each folder, unless ``again``."""
    if (folder in _swept and not again) or os.name == "nt":  # where to ask whether a process lives would end it
        return
    _swept.add(folder)
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            match = _TEMPORARY.fullmatch(entry.name)
            if match is None or match[1] != _host() or _lives(int(match[2])):
                continue
            with contextlib.suppress(OSError):
                if entry.stat(follow_symlinks=False).st_uid != os.geteuid():
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)


def cache_folder() -> Path:
    """Folder for files fetched once and kept.

    ``$MULTISCALE_CACHE``, else ``$XDG_CACHE_HOME/multiscale``, else ``~/.cache/multiscale``; for a user without a home a
    folder of their own among the system's temporary ones, which is said once.
    """
    chosen = os.environ.get("MULTISCALE_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "multiscale"
    except RuntimeError:
        return _homeless_cache()


@functools.cache
def _homeless_cache() -> Path:
    folder = Path(tempfile.gettempdir()) / f"multiscale-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    facts = folder.lstat()
    is_private = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() and not facts.st_mode & 0o077
    if not is_private:  # somebody else's, who could put anything there
        folder = new_temporary_folder("multiscale-cache")
    logging.getLogger(__name__).warning(
        "No home folder is known; what is fetched or compiled once is kept in %s. Set MULTISCALE_CACHE to keep it elsewhere.",
        folder,
    )
    return folder


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _new_file_beside(path: Path) -> Path:
    """An empty hidden file of nobody else's, with the permissions of any new file."""
    remove_abandoned(path.parent)
    while True:
        temporary = path.parent / f".{_shortened(path.name)}.{_owner()}-{secrets.token_hex(4)}.tmp"
        with contextlib.suppress(FileExistsError):
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # less the umask, by the system
            return temporary


def _shortened(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[:_NAME_BYTES])


def _owner() -> str:
    return f"{_host()}-{os.getpid()}"


def _host() -> str:
    """Eight digits for what numbers this process: the machine, or the container on it."""
    try:
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:
        processes = ""
    return hashlib.sha256(f"{socket.gethostname()} {processes}".encode()).hexdigest()[:8]


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _fsync_folder(folder: Path) -> None:
    """Make a rename durable; a no-op where folders cannot be opened (Windows)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
