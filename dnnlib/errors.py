"""The one exception for mistakes that a user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave: the message says what was given, what is allowed and what to do.

    Commands print the message in one line and leave with exit code 2; library callers may catch it as ``ValueError``.
    """


def nearest_name(name: str, allowed: Iterable[str]) -> str:
    """The end of a sentence: ``", did you mean 'batch'?"`` for a misspelt name, or the list of allowed names."""
    allowed = sorted(allowed)
    close = difflib.get_close_matches(name[:200], allowed, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else f"; allowed: {', '.join(allowed)}."


def shown(value: object, longest: int = 80) -> str:
    """What somebody gave, as a message repeats it: cut off where it is long."""
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]} ..."


def sentence_of(text: str) -> str:
    """The sentence of a ``UserError`` that has come out of another process, wrapped in the text of a traceback."""
    return text.rpartition("UserError: ")[2].strip()
