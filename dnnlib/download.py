"""Files downloaded once and kept by content: resumed if interrupted, bounded in size, checked if a digest is known.

    FOLDER/SHA256/NAME        a complete file, by the digest of its bytes
    FOLDER/urls/KEY.json      what an address held last: digest, name, and the server's mark (ETag) of it
    FOLDER/urls/KEY.part      what has arrived of a file so far; KEY.mark has the server's mark of it

A known digest needs no network at all. Otherwise the server is asked whether the file is still the same; without a
connection, what the address held last is used, with a warning.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import logging
import os
import re
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from dnnlib.errors import UserError, shown
from dnnlib.files import atomic_write, sha256
from dnnlib.progress import progress_bar
from dnnlib.reading import from_json, parsed, read_text

LARGEST = 4 << 30
"""Default limit of a file's bytes."""
TIMEOUT_SEC = 30.0
_BLOCK = 1 << 20
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_DIGEST = re.compile(r"sha256=([0-9a-fA-F]{64})", re.ASCII)


class _Gone(Exception):
    """There is no connection, or it was lost; the text says why."""


def fetch(address: str, folder: Path, *, largest: int = LARGEST) -> Path:
    """The file at an address, from the folder if it is there.

    Args:
        address: ``https://HOST/PATH``, with ``#sha256=DIGEST`` if the file must have that digest. ``http://`` is allowed on
            this machine only.
        folder: Where files are kept.
        largest: Limit in bytes.

    Returns:
        The file, with the last part of the address's path as its name.

    Raises:
        UserError: the address is invalid, nothing is there, the file is too large or has another digest, or there is no
            connection and nothing was kept.
    """
    url, digest = _parsed(address)
    if digest is not None and (kept := _kept(folder, digest)) is not None:
        return kept
    entry = folder / "urls" / hashlib.sha256(url.encode()).hexdigest()
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{entry}.lock"):  # of two processes, one fetches and the other waits
            return _fetch(url, digest, folder, entry, largest)
    except OSError as error:
        raise UserError(f"Cannot keep {url} in {folder}: {error.strerror or error}.") from error


def _parsed(address: str) -> tuple[str, str | None]:
    """URL and digest of an address."""
    url, _, fragment = address.partition("#")
    parts = parsed(lambda: urlsplit(url), f"The address {shown(address)} cannot be read: {{reason}}.")
    if not (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)) or not parts.hostname:
        raise UserError(f"The address {shown(address)} does not begin with https://HOST; give one that does.")
    if any(not "!" <= character <= "~" for character in url):
        raise UserError(
            f"The address {shown(address)} has characters that a URL cannot hold; write them as %20 and so on."
        )
    match = _DIGEST.fullmatch(fragment)
    if fragment and match is None:
        raise UserError(
            f"The address {shown(address)} ends in #{shown(fragment)}; only #sha256= and 64 hexadecimal digits are allowed."
        )
    return url, match[1].lower() if match else None


def _kept(folder: Path, digest: str) -> Path | None:
    """A complete file by its digest, checked again: anything may have changed the folder."""
    place = folder / digest
    with contextlib.suppress(OSError):
        for path in place.iterdir():
            if path.is_file() and not path.name.startswith(".") and sha256(path) == digest:
                return path
    return None


def _fetch(url: str, digest: str | None, folder: Path, entry: Path, largest: int) -> Path:
    last = _last(entry)
    kept = None if last is None else _kept(folder, last["sha256"])
    known = last["mark"] if last is not None and kept is not None else None
    try:
        mark = _transfer(url, entry, known, largest)
    except _Gone as error:
        if kept is None or digest is not None:
            hint = " What has arrived is kept: the same command resumes." if _size(entry) else ""
            raise UserError(f"Cannot get {url}: {error}.{hint}") from error
        logging.getLogger(__name__).warning("Cannot get %s (%s); using what it held last.", url, error)
        return kept
    if mark is None:
        assert kept is not None
        if digest is None:
            return kept
        raise _other_digest(url, sha256(kept), digest)
    part = Path(f"{entry}.part")
    actual = sha256(part)
    if digest is not None and actual != digest:
        _forget(entry)
        raise _other_digest(url, actual, digest)
    path = folder / actual / _name(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(part, "rb+") as stream:
        os.fsync(stream.fileno())
    os.replace(part, path)
    with atomic_write(f"{entry}.json", "w") as stream:
        json.dump({"url": url, "sha256": actual, "mark": mark}, stream)
    _forget(entry)
    return path


def _other_digest(url: str, actual: str, digest: str) -> UserError:
    return UserError(f"{url} has the SHA-256 {actual}, not {digest}; it is not the file that was meant.")


def _last(entry: Path) -> dict[str, Any] | None:
    """What an address held last, if that can be read."""
    with contextlib.suppress(UserError, OSError):
        text = read_text(f"{entry}.json", "the entry")
        facts = parsed(lambda: dict(from_json(text)), "The entry is damaged.")
        if re.fullmatch(r"[0-9a-f]{64}", str(facts.get("sha256"))) and isinstance(facts.get("mark"), str):
            return facts
    return None


def _transfer(url: str, entry: Path, known: str | None, largest: int) -> str | None:
    """Complete ``entry.part``; returns its mark, or None if the file is still the known one."""
    part, mark_of_part = Path(f"{entry}.part"), Path(f"{entry}.mark")
    headers = {"User-Agent": "multiscale-gan", "Accept-Encoding": "identity"}
    begun = _size(entry)
    began_as = parsed(lambda: mark_of_part.read_text(), "") if begun and mark_of_part.is_file() else ""
    if begun and began_as:
        headers |= {"Range": f"bytes={begun}-", "If-Range": began_as}
    elif known:
        headers["If-None-Match"] = known
    try:
        with _opener().open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SEC) as answer:
            mark = _mark(answer.headers)
            goes_on = answer.status == 206 and mark == began_as and _starts_at(answer.headers, begun)
            if not goes_on:
                if answer.status == 206:
                    raise _Gone("the server sent a different part than requested")
                begun = 0
            length = _length(answer.headers)
            total = None if length is None else begun + length
            if total is not None and total > largest:
                raise UserError(f"{url} has {total:,} bytes, and {largest:,} are allowed; it is not a network.")
            mark_of_part.write_text(mark)
            with open(part, "ab" if goes_on else "wb") as stream:
                come = _copy(answer, stream, begun, total, largest, url)
            if total is not None and come != total:
                raise _Gone(f"the connection ended after {come:,} of {total:,} bytes")
            return mark
    except urllib.error.HTTPError as error:
        if error.code == 304 and known:
            return None
        if error.code == 416 and begun:  # what has arrived is not part of the file there now
            _forget(entry)
            return _transfer(url, entry, known, largest)
        if error.code >= 500 or error.code == 429:
            raise _Gone(f"the server answers {error.code} {error.reason}") from error
        raise UserError(
            f"Cannot get {url}: the server answers {error.code} {error.reason}; check the address."
        ) from error
    except urllib.error.URLError as error:
        raise _Gone(_reason(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # the disk, not the network
        raise _Gone(_reason(error)) from error


def _copy(answer: IO[bytes], stream: IO[bytes], begun: int, total: int | None, largest: int, url: str) -> int:
    """Append what arrives; returns the bytes so far."""
    come = begun
    with progress_bar(total=total, initial=begun, unit="B", unit_scale=True, desc=_name(url)) as bar:
        while block := answer.read(_BLOCK):
            come += len(block)
            if come > largest:
                raise UserError(f"{url} has more than the {largest:,} bytes that are allowed; it is not a network.")
            stream.write(block)
            bar.update(len(block))
    return come


class _StaysSecure(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to anything else."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https":
            raise urllib.error.URLError("it redirects to an address that is not https://")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    handlers: list[Callable[[], urllib.request.BaseHandler]] = [
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _StaysSecure,
    ]
    for handler in handlers:  # none for files and ftp
        opener.add_handler(handler())
    return opener


def _mark(headers: Message) -> str:
    """What identifies a version of a file: its strong ETag, or its modification time; empty if neither is sent."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")


def _starts_at(headers: Message, begun: int) -> bool:
    return re.match(rf"bytes {begun}-", headers.get("Content-Range", "")) is not None


def _length(headers: Message) -> int | None:
    text = headers.get("Content-Length", "")
    return int(text) if re.fullmatch(r"\d{1,18}", text, re.ASCII) else None


def _reason(error: object) -> str:
    if isinstance(error, ssl.SSLError):
        return f"its certificate or connection is not secure ({error.reason or error})"
    if isinstance(error, socket.gaierror):
        return "no host of that name is known here; check the address, and the connection"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return " ".join(text.split()).rstrip(".")


def _name(url: str) -> str:
    """The last part of an address's path, as a file's name."""
    name = re.sub(r"[^\w.@+-]", "_", PurePosixPath(unquote(urlsplit(url).path)).name).lstrip(".")
    return name[-100:] or "file"


def _size(entry: Path) -> int:
    with contextlib.suppress(OSError):
        return Path(f"{entry}.part").stat().st_size
    return 0


def _forget(entry: Path) -> None:
    for suffix in ("part", "mark"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{entry}.{suffix}")
