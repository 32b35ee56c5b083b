"""What all commands share: a user's mistake becomes one sentence and exit code 2, never a traceback."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from dnnlib.errors import UserError, sentence_of


def reports_user_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a click command's function: ``UserError`` -> ``Error: <sentence>`` on stderr and exit code 2; Ctrl-C -> 130."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            print(f"Error: {sentence_of(str(error))}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("Interrupted.", file=sys.stderr)
            sys.exit(130)

    return wrapped
