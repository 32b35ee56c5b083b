"""What all commands share: a user's mistake becomes one sentence and exit code 2, never a traceback."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

from dnnlib.console import what_was_lost
from dnnlib.errors import DEBUG, REFUSED, UserError, sentence_for, sentence_of, shortened
from dnnlib.signals import ends_in_order

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
        except (UserError, *REFUSED) as error:
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
    return shortened(sentence_of(str(error)), LONGEST) if isinstance(error, UserError) else sentence_for(error)
