"""Modules from elsewhere that add to this program, such as a measure: those of installed packages, and those that users name.

A register calls :func:`import_extensions` where a name is looked up, so that every process that looks for it finds it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os

from dnnlib.errors import UserError

GROUP = "multiscale"
"""Of entry points, in a package's ``pyproject.toml``."""
VARIABLE = "MULTISCALE_IMPORT"
"""Names modules, separated by commas; processes that a command starts inherit it."""


@functools.cache
def import_extensions() -> None:
    """Import them all, once.

    Raises:
        UserError: one cannot be imported.
    """
    named = {
        point.value: f"an installed package ({point.name})" for point in importlib.metadata.entry_points(group=GROUP)
    }
    named |= {name.strip(): VARIABLE for name in os.environ.get(VARIABLE, "").split(",") if name.strip()}
    for name, whose in named.items():
        try:
            importlib.import_module(name)
        except Exception as error:
            raise UserError(
                f"The module {name}, which {whose} names, cannot be imported ({type(error).__name__}: {error}); put "
                "its folder on PYTHONPATH, or mend it (MULTISCALE_DEBUG=1 shows where)."
            ) from error
