"""Published weight files that users provide: checked against the publisher's checksum, read without running code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dnnlib.errors import UserError
from dnnlib.files import sha256
from dnnlib.reading import parsed, regular_size


class MissingWeights(UserError):
    """A weight file that the user provides is not there: what it is for cannot start, but can be planned."""


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
        damaged = f"Cannot read {what} weights from {path}; fetch it again from {self.url}."
        regular_size(path, f"{what} weights")
        try:
            with open(path, "rb") as stream:  # one file from the check on, whatever takes its name meanwhile
                digest = sha256(stream)
                if not digest.startswith(self.sha256):
                    raise UserError(
                        f"{path} is not the published file: its SHA-256 starts with {digest[:8]} instead of "
                        f"{self.sha256[:8]}; fetch it again from {self.url}."
                    )
                stream.seek(0)
                state = parsed(lambda: torch.load(stream, map_location="cpu", weights_only=True), damaged)
        except OSError as error:
            raise UserError(damaged) from error
        if not isinstance(state, Mapping):
            raise UserError(f"{path} holds no table of weights; fetch it again from {self.url}.")
        return state
