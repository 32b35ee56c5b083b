"""What all commands share: a user's mistake becomes one sentence and exit code 2, never a traceback."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

from dnnlib.console import what_was_lost
from dnnlib.errors import UserError, sentence_of
from dnnlib.signals import ends_in_order

DEBUG = "MULTISCALE_DEBUG"
"""Environment variable: 1 shows the tracebacks of errors that are one sentence otherwise."""

LONGEST = 4000
"""Characters of a sentence: what was given may be longer than anybody reads."""


def reports_user_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a click command's function, so that it ends with a sentence on stderr and a code, whatever happens to it.

    2: ``UserError``, or the system refused a file, memory or depth; 130: Ctrl-C; 128 + number: another signal; 1: all was
    done, but standard output could not be written.
    """

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            with ends_in_order():
                result = command(*args, **kwargs)
        except (UserError, OSError, MemoryError, RecursionError) as error:
            if os.environ.get(DEBUG) == "1":
                raise
            print(f"Error: {_sentence(error)}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("Interrupted.", file=sys.stderr)
            sys.exit(130)
        if lost := what_was_lost():
            print(f"Error: All files are written, but standard output could not be: {lost}.", file=sys.stderr)
            sys.exit(1)
        return result

    return wrapped


def _sentence(error: BaseException) -> str:
    if isinstance(error, UserError):
        return _shortened(sentence_of(str(error)), LONGEST)
    if isinstance(error, MemoryError):
        return "The memory does not hold what is asked for; ask for less, or close other programs."
    if isinstance(error, RecursionError):
        return "Something that was given is nested too deeply; give a file that this program has written, or a flatter one."
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    name = getattr(error, "filename", None)
    what = "the system" if name is None else _shortened(os.fsdecode(name) if not isinstance(name, int) else str(name))
    return f"Cannot use {what}: {reason.rstrip('.')}. {DEBUG}=1 shows where."


def _shortened(name: str, longest: int = 120) -> str:
    return name if len(name) <= longest else f"{name[: longest // 2]}...{name[-longest // 2 :]}"
