"""Names of files and folders as users type them: what ``~`` means, and which endings are those of files."""

from __future__ import annotations

import functools
import mimetypes
import os
from pathlib import Path

from dnnlib.errors import UserError

_OTHERS = (
    ".7z .ai .arw .avif .cr2 .cr3 .csv .dng .dzi .exr .fits .heic .heif .hdr .jpf .jxl .jxr .md .mkv .mov .nef .npy .npz .ora "
    ".orf .parquet .pkl .psb .psd .pt .pth .raf .raw .rw2 .safetensors .svg .svgz .svs .toml .webm .webp .xcf .yaml .yml"
)
"""Endings of files that neither ``mimetypes`` nor Pillow knows in every version."""


def typed_path(name: str | Path) -> Path:
    """The path of a name, of which ``~`` at the beginning is the user's home: quoted, no shell has replaced it."""
    return Path(os.path.expanduser(name))


def ends_in_separator(name: str) -> bool:
    """Whether a name says that it is a folder's, such as ``views/``."""
    return name.endswith(("/", os.sep))


def is_file_name(name: str) -> bool:
    """Whether a name ends as those of files do (``.heic``, ``.pdf``; not ``.5`` or ``.final``), and no folder has it."""
    if ends_in_separator(name) or os.path.isdir(name):
        return False
    return Path(name).suffix.lower() in _endings()


def folder_named(option: str, name: str) -> Path:
    """The folder of a name; a file's name is refused.

    Args:
        option: What takes the folder, such as ``--out``.
        name: As it was typed.

    Raises:
        UserError: :func:`is_file_name`, or it is a file.
    """
    if os.path.isfile(name):
        raise UserError(f"{option} {name} is a file; give a folder.")
    if is_file_name(name):
        raise UserError(
            f"{option} {name} ends in {Path(name).suffix} as a file does; give a folder (if it is to have that name: {name}/)."
        )
    return Path(name)


@functools.cache
def _endings() -> frozenset[str]:
    """Of formats that are known, the same on every machine: files of the system are not asked."""
    from PIL import Image  # here: it takes a while, and most names have no ending

    Image.init()
    table = mimetypes.MimeTypes(filenames=())
    known = [*table.types_map, table.encodings_map, table.suffix_map, Image.registered_extensions(), _OTHERS.split()]
    return frozenset(ending.lower() for endings in known for ending in endings)
