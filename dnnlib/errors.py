"""The one exception for mistakes that a user can fix."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """A mistake in what the user gave: the message says what was given, what is allowed and what to do.

    Commands print the message on one line and exit with code 2; library callers may catch it as ``ValueError``.
    """


def nearest_name(name: str, allowed: Iterable[str]) -> str:
    """The end of a sentence: ``", did you mean 'batch'?"`` for a misspelt name, or the list of allowed names."""
    allowed = sorted(allowed)
    close = difflib.get_close_matches(name[:200], allowed, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else f"; allowed: {', '.join(allowed)}."


def shown(value: object, longest: int = 80) -> str:
    """A value as a message quotes it, cut off if long."""
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]} ..."


DEBUG = "MULTISCALE_DEBUG"
"""Environment variable: 1 shows the tracebacks of errors that are one sentence otherwise."""

REFUSED = (OSError, MemoryError, RecursionError)
"""What is raised when the system refuses a file, memory or depth: at the edge of a process it becomes a sentence."""


def sentence_for(error: BaseException) -> str:
    """The sentence for an exception of ``REFUSED``."""
    if isinstance(error, MemoryError):
        return "There is not enough memory; ask for less, or close other programs."
    if isinstance(error, RecursionError):
        return "The input is nested too deeply; give a file that this program has written, or a flatter one."
    reason = _reason(error)
    name = getattr(error, "filename", None)
    what = "the system" if name is None else shortened(os.fsdecode(name) if not isinstance(name, int) else str(name))
    return f"Cannot use {what}: {reason}. {DEBUG}=1 shows where."


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")


NOUNS = {
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "tuple": "a list",
    "string": "text",
}
"""What users call pydantic's types."""


def in_words(message: str) -> str:
    """What pydantic found, as the end of a sentence: ``"should be a whole number"``."""
    message = message.removeprefix("Value error, ").removeprefix("Input ")
    wrong_type = re.match(r"should be a valid (\w+)", message)
    return f"should be {NOUNS[wrong_type[1]]}" if wrong_type and wrong_type[1] in NOUNS else message


NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
REFUSED_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS)


def cannot_write(path: Path, error: BaseException) -> UserError:
    """What to raise where a file or folder could not be written: it says why, and what to do if that is known."""
    code = getattr(error, "errno", None)
    reason = _reason(error)
    if code == errno.ENOTDIR:
        file = next((parent for parent in path.parents if parent.is_file()), path.parent)
        reason = f"{file} is a file, not a folder; give another place"
    elif code in REFUSED_PLACE:
        reason += "; give another place"
    elif code in NO_ROOM:
        reason += "; free some space and repeat the command"
    return UserError(f"Cannot write {path}: {reason}.")


def shortened(text: str, longest: int = 120) -> str:
    """A text, without its middle if long."""
    return text if len(text) <= longest else f"{text[: longest // 2]}...{text[-longest // 2 :]}"


def sentence_of(text: str) -> str:
    """The sentence of a ``UserError`` from another process, which wraps it in the text of a traceback."""
    return text.rpartition("UserError: ")[2].strip()
