"""Answers that a compiler takes for constants of the graph; imported only where one traces, as marking them loads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


@torch.compiler.assume_constant_result
def constant(function: Callable[..., T], *arguments: object) -> T:
    """What a function returns, asked for once while a graph is traced; nothing in it is traced."""
    return function(*arguments)
