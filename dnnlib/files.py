"""Files that are complete or absent: written under a temporary name, flushed to disk, then renamed.

A temporary name says whose it is, ``.NAME.HOST-PROCESS-RANDOM.tmp``: what a killed process leaves behind is removed by the
next one that writes to the same folder.
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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

from dnnlib.errors import UserError, cannot_write
from dnnlib.names import typed_path

_TEMPORARY = re.compile(r"\..*\.([0-9a-f]{8})-([0-9]{1,10})-[0-9a-z_]{8}\.tmp", re.ASCII | re.DOTALL)
_NAME_BYTES = 150
"""Limit of a file's own name within its temporary name: systems allow 255 in all."""
UNTOUCHED_SECONDS = 2 * 86400.0
"""After which a temporary file counts as abandoned if its process cannot be looked up, such as one on another machine."""
_RELATIVE = {os.open, os.stat, os.unlink, os.rename} <= os.supports_dir_fd
"""Whether this system can address files relative to an open folder, whatever becomes of its path meanwhile."""
_swept: set[Path] = set()


class AlreadyThere(UserError):
    """Something has come meanwhile to the place of a result that replaces nothing; it is untouched."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} has come into being meanwhile, and is left as it is; give another name, or remove it."
        )


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "wb", *, replace: bool = True) -> Iterator[IO[Any]]:
    """An open temporary file beside ``path``, which is renamed to ``path`` when the block succeeds.

    The data are fsynced before the rename, and the folder's entry after it; if the block raises (Ctrl-C included) the
    temporary file is removed and an older ``path`` stays as it was. Missing parent folders are created. The folder and the
    file stay open throughout: in a folder that others can write, nothing that they put in place of either is written to.

    Args:
        path: The final path.
        mode: ``"wb"`` (readable too: ``"w+b"``) or ``"w"`` for UTF-8 text.
        replace: Whether what has the name when the block ends is replaced.

    Raises:
        AlreadyThere: something has the name and is not to be replaced.
        UserError: the folder cannot be made or written, somebody has replaced the temporary file, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent)
        with _Place(path.parent) as place:
            name, descriptor = place.create(path.name)
            try:
                encoding = None if "b" in mode else "utf-8"
                with open(path.parent / name, mode, encoding=encoding, opener=lambda *_: descriptor) as stream:
                    yield stream
                    stream.flush()
                    os.fsync(descriptor)
                    place.check(name, descriptor)
                if replace:
                    place.rename(name, path.name)
                elif not place.link(name, path.name):
                    raise AlreadyThere(path)
            except BaseException:
                with contextlib.suppress(OSError):
                    place.remove(name)
                raise
            place.sync()
    except OSError as error:
        raise cannot_write(path, error) from error


@contextlib.contextmanager
def atomic_folder(path: Path, *, may_replace: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """A new, empty folder beside ``path``, which is renamed to ``path`` when the block succeeds, and else removed.

    Missing parent folders are created. A folder at ``path`` that is empty is replaced.

    Args:
        path: The final path.
        may_replace: Asked about what else is found there in the end, moved aside so that it cannot change any more; it
            raises UserError to have it put back, otherwise it is removed. None: nothing is replaced.

    Raises:
        AlreadyThere: something is there in the end and nothing is to be replaced.
        UserError: the folder cannot be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = new_temporary_folder(path.name, path.parent)  # for this user alone
        try:
            new, old = temporary / "new", temporary / "old"
            new.mkdir()  # with the mode that the system gives a new folder
            yield new
            is_link = path.is_symlink()
            if path.is_dir() and not any(path.iterdir()):
                path.unlink() if is_link else path.rmdir()
            if may_replace is not None and os.path.lexists(path):
                _move_aside(path, old, may_replace)
            try:
                os.rename(new, path)
            except OSError as error:
                if os.path.lexists(path):
                    raise AlreadyThere(path) from error
                if os.path.lexists(old):
                    os.rename(old, path)
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def _move_aside(path: Path, old: Path, may_replace: Callable[[Path], object]) -> None:
    """Rename ``path`` to ``old``, unless ``may_replace`` raises."""
    if path.is_symlink():  # what a link leads to is found from its own place
        may_replace(path)
        os.rename(path, old)
        return
    os.rename(path, old)
    try:
        may_replace(old)
    except BaseException:
        os.rename(old, path)
        raise


def atomic_copy(source: str | Path, path: str | Path) -> None:
    """Copy a file to ``path``, which is replaced once the copy is complete.

    Raises:
        OSError: the source cannot be read.
        UserError: as :func:`atomic_write`.
    """
    with open(source, "rb") as read, atomic_write(path) as written:
        shutil.copyfileobj(read, written)


def check_writable(path: str | Path, *, folder: Literal["filled", "replaced"] | None = None) -> None:
    """Refuse, before any work is done, a place to which its result could not be written; nothing is left there.

    Args:
        path: Where the result will be; missing parent folders will be created.
        folder: None: it is a file, as :func:`atomic_write` writes it. It is a folder: ``"filled"``: into which files are
            written; ``"replaced"``: which is made beside its place and renamed.

    Raises:
        UserError: as :func:`atomic_write` would, or the file's name is that of a folder.
    """
    path = Path(path)
    try:
        if folder is None and path.is_dir():
            raise UserError(f"Cannot write {path}: it is a folder; give the name of a file.")
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            os.lstat(path)  # the system may not allow such a name
        place = path if folder == "filled" else path.parent
        while not os.path.lexists(place) and place != place.parent:
            place = place.parent
        remove_abandoned(place)
        with _Place(place) as opened:
            name, descriptor = opened.create(path.name)
            os.close(descriptor)
            opened.remove(name)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise cannot_write(path, error) from error


class _Place:
    """A folder held open, so that names in it keep their meaning throughout; where that is impossible, its path."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor: int | None = None

    def __enter__(self) -> _Place:
        if _RELATIVE:
            self._descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def create(self, name: str) -> tuple[str, int]:
        """Name and descriptor of a new, empty, hidden file, with the usual permissions of new files."""
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        while True:
            temporary = f".{_shortened(name)}.{_owner()}-{secrets.token_hex(4)}.tmp"
            with contextlib.suppress(FileExistsError):
                # 0o666 less the umask, by the system
                return temporary, os.open(self._at(temporary), flags, 0o666, dir_fd=self._descriptor)

    def check(self, name: str, descriptor: int) -> None:
        """OSError if a name no longer refers to the open file."""
        found = os.stat(self._at(name), dir_fd=self._descriptor, follow_symlinks=False)
        if not os.path.samestat(found, os.fstat(descriptor)):
            raise OSError(f"somebody else has replaced its temporary file {name}")

    def rename(self, name: str, final: str) -> None:
        os.replace(self._at(name), self._at(final), src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def link(self, name: str, final: str) -> bool:
        """Give a file its final name if nothing has that; whether it has it now.

        By a hard link, which the system makes or refuses as one; where it has none, after a look.
        """
        try:
            os.link(self._at(name), self._at(final), src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except FileExistsError:
            return False
        except (OSError, NotImplementedError, AttributeError):
            if os.path.lexists(self._folder / final):
                return False
            self.rename(name, final)
            return True
        self.remove(name)
        return True

    def remove(self, name: str) -> None:
        os.unlink(self._at(name), dir_fd=self._descriptor)

    def sync(self) -> None:
        """Make a rename durable; a no-op where folders cannot be opened (Windows)."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._descriptor)

    def _at(self, name: str) -> str:
        return name if self._descriptor is not None else str(self._folder / name)


def new_temporary_folder(name: str, parent: Path | None = None) -> Path:
    """A new folder that others cannot read, in ``parent`` or the system's folder for temporary files.

    The caller removes it; if the process is killed, the next call in the same place does. OSError if it cannot be created.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    remove_abandoned(parent)
    return Path(tempfile.mkdtemp(prefix=f".{_shortened(name)}.{_owner()}-", suffix=".tmp", dir=parent))


def remove_abandoned(folder: Path, *, again: bool = False) -> None:
    """Remove temporary files and folders whose processes have ended; looks once in each folder, unless ``again``.

    Processes of other machines (on a shared disk, or in a container renamed since) and on Windows cannot be looked up: their
    files are removed once untouched for ``UNTOUCHED_SECONDS``.
    """
    if folder in _swept and not again:
        return
    _swept.add(folder)
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            match = _TEMPORARY.fullmatch(entry.name)
            if match is None:
                continue
            with contextlib.suppress(OSError):
                if _is_abandoned(entry, match[1], int(match[2])):
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path)
                    else:
                        os.unlink(entry.path)


def _is_abandoned(entry: os.DirEntry[str], host: str, process: int) -> bool:
    facts = entry.stat(follow_symlinks=False)
    if os.name != "nt" and facts.st_uid != os.geteuid():
        return False
    if os.name != "nt" and host == _host():
        return not _lives(process)
    touched = [facts.st_mtime]
    if entry.is_dir(follow_symlinks=False):
        touched += [inner.stat(follow_symlinks=False).st_mtime for inner in os.scandir(entry.path)]
    return time.time() - max(touched) > UNTOUCHED_SECONDS


def cache_folder() -> Path:
    """Folder for files fetched once and kept.

    ``$MULTISCALE_CACHE``, else ``$XDG_CACHE_HOME/multiscale``, else ``~/.cache/multiscale``; for a user without a home a
    private temporary folder, with one warning.
    """
    chosen = os.environ.get("MULTISCALE_CACHE")
    if chosen:
        return typed_path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (typed_path(base) if base else Path.home() / ".cache") / "multiscale"
    except RuntimeError:
        return _homeless_cache()


@functools.cache
def _homeless_cache() -> Path:
    folder = private_cache()
    logging.getLogger(__name__).warning(
        "No home folder is known; what is fetched or compiled once is kept in %s. Set MULTISCALE_CACHE to keep it elsewhere.",
        folder,
    )
    return folder


def private_cache() -> Path:
    """A temporary cache folder that nobody else can write; OSError if it cannot be created."""
    folder = Path(tempfile.gettempdir()) / f"multiscale-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if folder.is_symlink() or not is_trusted(folder):  # somebody else's, who could put anything there
        folder = new_temporary_folder("multiscale-cache")
    return folder


def is_trusted(path: str | Path) -> bool:
    """Whether nobody but this user and root can have put in place, or can replace, what is at a path.

    Everything on the way to it, and whatever links on the way lead to, must belong to one of the two and not be writable by
    others; but a folder with the sticky bit, such as ``/tmp``, where nobody can replace what others own, is allowed on the
    way. A group without other members counts as its user. A path that does not exist is judged by its folder. Always true
    on Windows.
    """
    if os.name == "nt":
        return True
    named, real = Path(os.path.abspath(path)), Path(os.path.realpath(path))
    for final in {named, real}:
        for place in (final, *final.parents):
            try:
                facts = place.lstat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError:
                return False
            if facts.st_uid not in (0, os.geteuid()):
                return False
            if stat.S_ISLNK(facts.st_mode):
                continue
            sticky = place != final and stat.S_ISDIR(facts.st_mode) and facts.st_mode & stat.S_ISVTX
            writers = facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            if writers == stat.S_IWGRP and _is_own_group(facts.st_gid):
                writers = 0
            if writers and not sticky:
                return False
    return True


def _is_own_group(group: int) -> bool:
    """Whether a group is a user's private one: named like the user, without other members."""
    import grp
    import pwd

    try:
        user, found = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    return found.gr_name == user.pw_name and set(found.gr_mem) <= {user.pw_name}


def sha256(file: str | Path | IO[bytes]) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits; of an open one, from its current position."""
    digest = hashlib.sha256()
    with open(file, "rb") if isinstance(file, str | Path) else contextlib.nullcontext(file) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _shortened(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[:_NAME_BYTES])


def _owner() -> str:
    return f"{_host()}-{os.getpid()}"


def _host() -> str:
    """Eight digits for what assigned this process its number: the machine, or the container on it."""
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
