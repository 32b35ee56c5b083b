"""What all commands share: a user's mistake becomes one sentence and exit code 2, never a traceback."""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Callable, Collection
from typing import Any

import click
from click.core import ParameterSource

from dnnlib.console import what_was_lost
from dnnlib.errors import DEBUG, REFUSED, UserError, sentence_for, sentence_of, shortened, shown
from dnnlib.signals import ends_in_order

LONGEST = 4000
"""Limit of a sentence in characters: the input it quotes may be of any length."""


class Command(click.Command):
    """A command that refuses empty arguments, repeated options unless they are declared repeatable, and what is no number.

    An empty argument is mostly a script's unset variable, and would mean the current folder; of two values of one option,
    one would be dropped silently. A number that is not allowed is answered with those that are. ``~`` at the beginning of a
    text is the user's home, as of a word that a shell reads: it leaves ``"~/x"`` and ``--out=~/x`` as they are.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, after these checks."""
        values, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for param in order:
            given = values.get(param.name or "")
            name = max(param.opts, key=len) if isinstance(param, click.Option) else param.make_metavar(ctx)
            words = [word for word in (given if isinstance(given, list) else [given]) if isinstance(word, str)]
            if not all(word.strip() for word in words):
                ctx.fail(f"{name} is empty; give a value, or leave it out.")
            repeatable = not isinstance(param, click.Option) or param.multiple or param.is_flag or param.count
            if not repeatable and order.count(param) > 1:
                ctx.fail(f"{name} was given {order.count(param)} times; give it once.")
            for word in words:
                if isinstance(param.type, _NUMBERS) and not _is_allowed(word, param.type):
                    ctx.fail(f"{name} {shown(word)} is not allowed; give {_allowed(param.type)}.")
        rest = super().parse_args(ctx, args)
        for param in self.get_params(ctx):
            if param.type is click.STRING and param.name in ctx.params:
                ctx.params[param.name] = _at_home(ctx.params[param.name])
        return rest


def _at_home(given: Any) -> Any:
    """A text, or several, with the user's home in place of ``~``; None as it is."""
    if isinstance(given, tuple):
        return tuple(map(_at_home, given))
    return os.path.expanduser(given) if isinstance(given, str) else given


_NUMBERS = (type(click.INT), type(click.FLOAT))


def _is_allowed(word: str, kind: Any) -> bool:
    """Whether a word is a finite number of click's type ``kind``, with or without a range."""
    try:
        return math.isfinite(kind.convert(word, None, None))
    except click.BadParameter:
        return False


def _allowed(kind: Any) -> str:
    """What a number of click's type ``kind`` may be, such as ``"a whole number from 1 to 256"``."""
    noun = "a whole number" if isinstance(kind, type(click.INT)) else "a number"
    low, high, low_open, high_open = _range(kind)
    if None not in (low, high) and not (low_open or high_open):
        return f"{noun} from {low:,.10g} to {high:,.10g}"
    ends = [] if low is None else [f"above {low:,.10g}" if low_open else f"of {low:,.10g} or more"]
    ends += [] if high is None else [f"below {high:,.10g}" if high_open else f"of {high:,.10g} or less"]
    return " ".join([noun, " and ".join(ends)]).strip()


def _range(kind: Any) -> tuple[Any, Any, bool, bool]:
    """Least and largest number of click's type ``kind``, None for none, and whether they are not allowed themselves."""
    if not isinstance(kind, click.IntRange | click.FloatRange):
        return None, None, False, False
    return kind.min, kind.max, kind.min_open, kind.max_open


def typed(parameters: Collection[str]) -> list[str]:
    """Which of these parameters of the running command were typed, as options: ``["--port"]`` of ``("host", "port")``."""
    context = click.get_current_context()
    return [
        max(param.opts, key=len)
        for param in context.command.params
        if param.name in parameters and context.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
    ]


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
