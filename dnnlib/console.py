"""Standard output and errors that never end a program: what nobody reads is dropped, what cannot be shown is escaped."""

from __future__ import annotations

import errno
import os
import re
import sys
from typing import Any

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""Control characters but for tabulators, ends of lines and returns: from a file's name they would steer the terminal."""


class Patient:
    """A stream of text that takes what it is given, whatever became of the file behind it.

    Args:
        stream: Where to; all else but writing is its own.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.lost: str | None = None
        """Why something was not written; None if all was, or nobody was there to read it."""
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
        """Write each."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush what can be written."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _give_up(self, error: OSError | ValueError) -> None:
        """Note the loss; a file that nobody will read again is replaced by nothing, a full disk may have room again."""
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
    """Have this process write to its standard output and errors as :class:`Patient` does; more calls do nothing more."""
    _occupy()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as the process
        elif stream is getattr(sys, f"__{name}__"):  # nobody else's, such as a test's
            setattr(sys, name, Patient(stream))


def what_was_lost() -> str | None:
    """Why standard output is not whole; None if it is, or was closed by who read it."""
    sys.stdout.flush()
    return sys.stdout.lost if isinstance(sys.stdout, Patient) else None


def _occupy() -> None:
    """Open nothing in place of standard files that are closed: the next file would have their number, and be written into."""
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            return


def _escaped(match: re.Match[str]) -> str:
    return f"\\x{ord(match[0]):02x}"
