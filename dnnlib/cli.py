"""What all commands share: a user's mistake becomes one sentence and exit code 2, never a traceback."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from dnnlib.console import what_was_lost
from dnnlib.errors import DEBUG, REFUSED, UserError, sentence_for, sentence_of, shortened
from dnnlib.signals import ends_in_order

LONGEST = 4000
"""Limit of a sentence in characters: the input it quotes may be of any length."""


class Command(click.Command):
    """A command that refuses empty arguments, and repeated options unless they are declared repeatable.

    An empty argument is mostly a script's unset variable, and would mean the current folder; of two values of one option,
    one would be dropped silently.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, after these checks."""
        values, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for param in order:
            given = values.get(param.name or "")
            name = max(param.opts, key=len) if isinstance(param, click.Option) else param.make_metavar(ctx)
            if any(
                isinstance(word, str) and not word.strip() for word in (given if isinstance(given, list) else [given])
            ):
                ctx.fail(f"{name} is empty; give a value, or leave it out.")
            repeatable = not isinstance(param, click.Option) or param.multiple or param.is_flag or param.count
            if not repeatable and order.count(param) > 1:
                ctx.fail(f"{name} was given {order.count(param)} times; give it once.")
        return super().parse_args(ctx, args)


def reports_user_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a click command's function, so that whatever stops it becomes a sentence on stderr and an exit code.

    2: ``UserError``, or the system refused a file, memory or depth; 130: Ctrl-C; 128 + number: another signal; 1: done,
    but standard output could not be written.
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
            print(f"Error: All files were written, but standard output could not be: {lost}.", file=sys.stderr)
            sys.exit(1)
        return result

    return wrapped


def _sentence(error: BaseException) -> str:
    return shortened(sentence_of(str(error)), LONGEST) if isinstance(error, UserError) else sentence_for(error)
