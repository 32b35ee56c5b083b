"""Published weight files that users provide: checked against the publisher's checksum, read without running code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dnnlib.errors import UserError
from dnnlib.files import sha256


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """A file of weights that the user provides: its name, its origin and its SHA-256 or the start of it."""

    name: str
    url: str
    sha256: str

    def read(self, path: Path, what: str) -> Mapping[str, torch.Tensor]:
        """The tensors in ``path`` by name, on the CPU.

        Args:
            path: The file, whatever its name.
            what: The network, for messages, such as ``"LPIPS"``.

        Raises:
            UserError: the file is not the published one, cannot be read, or holds no table.
        """
        try:
            digest = sha256(path)
            if not digest.startswith(self.sha256):
                raise UserError(
                    f"{path} is not the published file: its SHA-256 starts with {digest[:8]} instead of "
                    f"{self.sha256[:8]}; fetch it again from {self.url}."
                )
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(f"Cannot read {what} weights from {path}; fetch it again from {self.url}.") from error
        if not isinstance(state, Mapping):
            raise UserError(f"{path} holds no table of weights; fetch it again from {self.url}.")
        return state
