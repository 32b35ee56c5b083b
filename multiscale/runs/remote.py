"""Networks by name in place of a path: ``https://...`` and ``hf://owner/repo``, fetched once and kept in the cache folder, and
those that come with the package, such as ``earth``."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dnnlib.download import fetch
from dnnlib.errors import UserError, shown
from dnnlib.files import cache_folder
from dnnlib.names import typed_path
from dnnlib.reading import short_reason

HUB = "hf://"
HUB_SYNTAX = "hf://owner/repo, with /file and @revision if you like"
BUNDLED_FOLDER = Path(__file__).parent / "bundled"
SUFFIXES = (".safetensors", ".pkl")
_NEEDS_HUB = "hf:// needs the package huggingface_hub: pip install huggingface_hub."
_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_HUB_NAME = re.compile(rf"hf://({_PART}/{_PART})(?:/([^@]{{1,500}}))?(?:@([\w./-]{{1,200}}))?", re.ASCII)


@dataclass(frozen=True)
class HubName:
    """What ``hf://owner/repo[/file][@revision]`` says."""

    repo: str
    file: str | None
    revision: str | None

    @classmethod
    def parse(cls, text: str) -> HubName:
        """Read a name.

        Raises:
            UserError: it cannot be read.
        """
        match = _HUB_NAME.fullmatch(text.rstrip("/"))
        if match is None or ".." in (match[2] or "").split("/"):
            raise UserError(f"The name {shown(text)} cannot be read; write {HUB_SYNTAX}.")
        return cls(*match.groups())

    def __str__(self) -> str:
        file = "" if self.file is None else f"/{self.file}"
        return f"{HUB}{self.repo}{file}" + ("" if self.revision is None else f"@{self.revision}")


def is_remote(name: str | Path) -> bool:
    """Whether this is a name in place of a path."""
    return isinstance(name, str) and re.match(r"(https?|hf):", name) is not None


def local_path(name: str | Path) -> Path:
    """The path of a file on this machine; of a name in its place, that of the file that is fetched, or was.

    Raises:
        UserError: a name that cannot be read, or whose file cannot be had.
    """
    if not is_remote(name):
        return typed_path(name)
    name = str(name)
    if name.startswith(HUB):
        return _from_hub(HubName.parse(name))
    return fetch(name, cache_folder() / "networks")


def bundled_networks() -> dict[str, Path]:
    """The networks that come with the package by name: of ``earth64.safetensors`` it is ``earth64``, and ``earth``."""
    files = sorted(BUNDLED_FOLDER.glob("*.safetensors"))
    short = {file.stem.rstrip("0123456789"): file for file in files}
    return short | {file.stem: file for file in files}


def existing_path(name: str | Path, wanted: str, *, bundled: bool = True) -> Path:
    """:func:`local_path` of a network that is there.

    Args:
        name: As a user typed it.
        wanted: What could be given, for the message.
        bundled: Whether a name of :func:`bundled_networks` will do, where there is no such path; in any case, a slash behind.

    Raises:
        UserError: there is none; as :func:`local_path`.
    """
    path = local_path(name)
    if path.exists():
        return path
    names = bundled_networks() if bundled else {}
    if (plain := str(name).rstrip("/").lower()) in names:
        return names[plain]
    known = f", or a bundled one by name ({', '.join(names)})" if names else ""
    raise UserError(f"There is no network {path}; give {wanted}{known}.")


def hub() -> Any:
    """The package huggingface_hub.

    Raises:
        UserError: it is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.errors  # of which the package itself loads only what is asked of it
    except ImportError as error:
        raise UserError(_NEEDS_HUB) from error
    return huggingface_hub


@contextlib.contextmanager
def hub_errors(name: HubName) -> Iterator[None]:
    """What the hub, or the way to it, says, as a UserError."""
    errors = hub().errors
    try:
        yield
    except UserError:
        raise
    except errors.GatedRepoError as error:
        raise UserError(f"{name} must be asked for: accept its terms on its page, then hf auth login.") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError) as error:
        raise UserError(f"There is no {name}, or it is private: check the name, or hf auth login.") from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(f"Cannot get {name}: there is no connection, and nothing of it was kept.") from error
    except Exception as error:  # of the several HTTP libraries that it has used
        reason = re.sub(r"^\[Errno -?\d+\] ", "", short_reason(error))
        raise UserError(f"Cannot reach {name}: {reason}.") from error


def _from_hub(name: HubName) -> Path:
    with hub_errors(name):
        file = name.file or _only_network(name)
        return Path(hub().hf_hub_download(name.repo, file, revision=name.revision))


def _only_network(name: HubName) -> str:
    """The newest snapshot of a repository, or the only network there."""
    # Asked once: list_repo_files would try for half a minute where there is no connection.
    listing = hub().model_info(name.repo, revision=name.revision).siblings or []
    files = [str(file.rfilename) for file in listing]
    networks = sorted(file for file in files if file.endswith(SUFFIXES))
    numbered = [(int(m[1]), file) for file in networks if (m := re.search(r"generator-(\d+)\.safetensors$", file))]
    if numbered:
        return max(numbered)[1]
    if len(networks) == 1:
        return networks[0]
    if not networks:
        raise UserError(f"{name} holds no network ({' or '.join('*' + suffix for suffix in SUFFIXES)}).")
    shown_names = ", ".join(PurePosixPath(file).as_posix() for file in networks[:12])
    raise UserError(f"{name} holds several networks; name one: {HUB}{name.repo}/FILE with FILE one of {shown_names}.")
