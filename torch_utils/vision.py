"""Networks of torchvision, imported on first use: that takes seconds, and does not work in every installation."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from types import ModuleType

from dnnlib.errors import UserError
from dnnlib.reading import short_reason

PACKAGE = "torchvision"


def networks(name: str, what: str, without: str) -> ModuleType:
    """The module ``torchvision.models.<name>``.

    A torchvision built for another PyTorch (for CUDA beside one for CPUs) fails at import, because its compiled operators
    cannot be loaded. Networks need none of them, so their module is then imported without the package's own ``__init__``,
    and removed from ``sys.modules`` again, so that nobody else finds half a package.

    Args:
        name: Such as ``"alexnet"``.
        what: What needs it, for messages, such as ``"LPIPS"``.
        without: What does without, for messages.

    Raises:
        UserError: torchvision is not installed, or not even this part of it can be imported; the message has the reason.
    """
    module = f"{PACKAGE}.models.{name}"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == PACKAGE:
            raise UserError(f"{what} needs torchvision: pip install torchvision; {without}.") from error
        raise
    except (ImportError, OSError, RuntimeError, AttributeError):
        pass
    try:
        return _without_operators(module)
    except Exception as error:
        raise UserError(
            f"{what} needs torchvision, which cannot be imported here ({short_reason(error)}): install the one that belongs to "
            f"this PyTorch; {without}."
        ) from error


@functools.cache
def _without_operators(module: str) -> ModuleType:
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    bare = ModuleType(PACKAGE)
    bare.__path__ = list(spec.submodule_search_locations or ())
    _forget()
    sys.modules[PACKAGE] = bare
    try:
        return importlib.import_module(module)
    finally:
        _forget()


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]
