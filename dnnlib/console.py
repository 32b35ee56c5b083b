"""Standard output and error that never end a program: what nobody reads is dropped, what cannot be shown is escaped."""

from __future__ import annotations

import errno
import os
import re
import sys
from typing import Any

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""Control characters except tab, newline and return: in a file's name they would control the terminal."""


class Patient:
    """A text stream whose writes never fail, whatever has become of the file behind it.

    Args:
        stream: What to write to; everything but writing is passed on to it.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.lost: str | None = None
        """Why something was not written; None if everything was, or the reader has gone."""
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write what can be written."""
        try:
            self._stream.write(_CONTROL.sub(_escaped, text))
        except (OSError, ValueError) as error:
            self._give_up(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each line."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush what can be written."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _give_up(self, error: OSError | ValueError) -> None:
        """Note the loss; a file without a reader is replaced by the null device, while a full disk may get space again."""
        number = error.errno if isinstance(error, OSError) else errno.EBADF
        if number in (errno.EPIPE, errno.EIO, errno.EBADF):
            try:
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, self._stream.fileno())
                os.close(nothing)
            except (OSError, ValueError):
                pass
        if number != errno.EPIPE:  # whoever closes a pipe has read enough
            self.lost = os.strerror(number or errno.EIO)


def make_patient() -> None:
    """Make this process's standard output and error :class:`Patient`; further calls do nothing."""
    _occupy()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as the process
        elif stream is getattr(sys, f"__{name}__"):  # nobody else's, such as a test's
            setattr(sys, name, Patient(stream))


def say(text: str) -> None:
    """Print a remark on standard error: what a command gives, on standard output, may go to another program."""
    print(text, file=sys.stderr, flush=True)


def what_was_lost() -> str | None:
    """Why standard output is incomplete; None if it is complete, or its reader closed it."""
    sys.stdout.flush()
    return sys.stdout.lost if isinstance(sys.stdout, Patient) else None


def _occupy() -> None:
    """Open the null device in place of closed standard streams: the next file would get their number and their output."""
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            return


def _escaped(match: re.Match[str]) -> str:
    return f"\\x{ord(match[0]):02x}"
