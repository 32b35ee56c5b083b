"""A bounded cache on disk: bytes by key, the least recently used evicted first; damaged entries count as absent.

Several processes may share a folder. A cache never fails: if its folder cannot be written it keeps nothing, and says so
once.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import threading
import time
from pathlib import Path

from dnnlib.errors import UserError
from dnnlib.files import atomic_write

SWEPT_TO = 0.75
"""Fraction of the limit that a sweep leaves."""
LARGEST = 1 / 16
"""Fraction of the limit that one entry may take."""
LEFT_BEHIND_SECONDS = 3600.0
"""Age at which a temporary file's writer must have died."""
_ENTRY = re.compile(r"[0-9a-f]{64}", re.ASCII)
_TEMPORARY = re.compile(r"\.[0-9a-f]{64}\..*\.tmp", re.ASCII)
_DIGEST_BYTES = 32


class DiskCache:
    """Bytes by key in files below a folder; safe to use from several threads and processes.

    Args:
        folder: Created with the first entry. Files in it that are not the cache's own are left alone.
        limit_bytes: Of all entries together (several processes may exceed it somewhat for a while); 0 keeps nothing.
    """

    def __init__(self, folder: str | Path, limit_bytes: int) -> None:
        self.folder = Path(folder)
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._allowance = 0.0
        self._complained = False

    def get(self, key: str) -> bytes | None:
        """What was kept for ``key``; None if nothing was, or it is gone or damaged."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._complain(str(error))
            return None
        if hashlib.sha256(data[_DIGEST_BYTES:]).digest() != data[:_DIGEST_BYTES]:
            _remove(path)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return data[_DIGEST_BYTES:]

    def put(self, key: str, data: bytes) -> None:
        """Keep ``data``, unless it is too large or cannot be written."""
        size = len(data) + _DIGEST_BYTES
        if size > self.limit_bytes * LARGEST:
            return
        with self._lock:
            self._allowance -= size
            if self._allowance < 0:
                self._sweep(size)
        try:
            with atomic_write(self._path(key)) as stream:
                stream.write(hashlib.sha256(data).digest())
                stream.write(data)
        except (UserError, OSError) as error:
            self._complain(str(error))

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / name

    def _sweep(self, coming: int) -> None:
        """Measure the folder, remove the oldest entries if need be, and claim half of the free space, leaving others half."""
        found: list[tuple[float, int, Path]] = []
        now = time.time()
        for path, stat in _files(self.folder):
            if _ENTRY.fullmatch(path.name):
                found.append((stat.st_mtime, stat.st_size, path))
            elif _TEMPORARY.fullmatch(path.name) and now - stat.st_mtime > LEFT_BEHIND_SECONDS:
                _remove(path)
        total = coming + sum(size for _, size, _ in found)
        if total > (SWEPT_TO + LARGEST) * self.limit_bytes:
            for _, size, path in sorted(found):
                if total <= SWEPT_TO * self.limit_bytes:
                    break
                _remove(path)
                total -= size
        self._allowance = (self.limit_bytes - total) / 2

    def _complain(self, reason: str) -> None:
        if not self._complained:
            self._complained = True
            logging.getLogger(__name__).warning("The cache %s cannot be used: %s", self.folder, reason)


def _files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """All files two levels down, with their status; those that disappear meanwhile are left out."""
    found = []
    with contextlib.suppress(OSError):
        for part in os.scandir(folder):
            with contextlib.suppress(OSError):
                for entry in os.scandir(part.path):
                    with contextlib.suppress(OSError):
                        found.append((Path(entry.path), entry.stat(follow_symlinks=False)))
    return found


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
