"""Networks of torchvision, imported when they are first asked for: that takes seconds, and not every installation can."""

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

    A torchvision that was built for another PyTorch (for CUDA beside one for CPUs) fails at import, for want of its compiled
    operators. Networks need none of these: then their module is imported without the package about it, of which nothing
    stays behind for others to find.

    Args:
        name: Such as ``"alexnet"``.
        what: Needs it, for messages, such as ``"LPIPS"``.
        without: What does without, for messages.

    Raises:
        UserError: there is no torchvision, or not even this part of it can be imported; the message says why.
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
