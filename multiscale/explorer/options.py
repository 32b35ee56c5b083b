"""What the user asks of the server, read and refused without PyTorch, which takes seconds to load."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from dnnlib.errors import UserError
from dnnlib.reading import read_text

_TOKEN = re.compile(r"[\x21-\x7e]{8,200}")
TOKEN_FILE_BYTES = 4096
SERVER_OPTIONS = ("host", "port", "token", "token_file", "public_url", "origins", "no_browser", "cache_mb")
"""Parameters of ``zoom.py`` that only its server has a use for."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user asked for."""

    network: str | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    """None: the first free one."""
    token: str | None = None
    """What every request must carry; None only where the host is loopback and there is no ``public_url``."""
    origins: Sequence[str] = ()
    """Other sites whose pages may fetch tiles."""
    public_url: str | None = None
    """Where a proxy serves this server."""
    cache_mb: int = 512


def token_for(host: str, token: str | None, file: str | None = None, *, is_public: bool = False) -> str | None:
    """The token of a server at ``host``: the one given, or the first line of ``file``; else a random one if other machines
    can connect; else none.

    ``is_public``: a proxy lets others in.

    Raises:
        UserError: the one given is too short, or has characters that a URL cannot hold, or both were given.
    """
    if file is not None:
        if token is not None:
            raise UserError("Both a token and --token-file were given; give one of them.")
        token = (read_text(file, "the token", TOKEN_FILE_BYTES).splitlines() or [""])[0].strip()
    if token is None:
        return None if is_loopback(host) and not is_public else secrets.token_urlsafe(18)
    if not _TOKEN.fullmatch(token):
        raise UserError(
            "A --token must have 8 to 200 ASCII letters, digits or symbols, without spaces; leave it out to have one generated."
        )
    return token


def is_loopback(host: str) -> bool:
    """Whether a name or an address, as given to ``--host`` or in a request, means this machine only."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_origin(text: str) -> str:
    """An origin, such as ``https://example.org``, as browsers write it; ``null`` is that of local files, ``*`` means any.

    Raises:
        UserError: it is something else.
    """
    if text in ("*", "null"):
        return text
    with contextlib.suppress(ValueError):
        parts = urlsplit(text.rstrip("/"))
        if parts.scheme in ("http", "https") and parts.hostname and not (parts.path or parts.query or parts.fragment):
            return f"{parts.scheme}://{parts.netloc.lower()}"
    raise UserError(f"--allow-origin {text[:80]} is not an origin; give one such as https://example.org, or * for any.")


def parse_public_url(text: str) -> str:
    """The address at which others reach the server through a proxy, without a trailing slash.

    Raises:
        UserError: it is not an http or https URL, or has a query.
    """
    with contextlib.suppress(ValueError):
        parts = urlsplit(text)
        if (
            parts.scheme in ("http", "https")
            and parts.hostname
            and not (parts.query or parts.fragment or parts.username)
        ):
            return text.rstrip("/")
    raise UserError(f"--public-url {text[:80]} is not a URL; give one such as https://example.org/worlds.")
