"""Files are fetched once, resumed where they broke off, bounded, and checked; without a connection what was kept is used."""

from __future__ import annotations

import hashlib
import http.server
import re
import socket
import threading
from dataclasses import dataclass, field

import pytest

from dnnlib.download import fetch
from dnnlib.errors import UserError

BODY = bytes(range(256)) * 4000


@dataclass
class Web:
    """What a loopback server has and was asked."""

    body: bytes = BODY
    mark: str = '"one"'
    breaks_after: int | None = None
    status: int | None = None
    location: str | None = None
    says_length: bool = True
    address: str = ""
    asked: list[dict[str, str]] = field(default_factory=list)
    given: list[int] = field(default_factory=list)
    """Status of each answer."""


@pytest.fixture
def web():
    facts = Web()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            facts.asked.append(dict(self.headers))
            status, start, body = self._choose()
            facts.given.append(status)
            self.send_response(status)
            self.send_header("ETag", facts.mark)
            if facts.location:
                self.send_header("Location", facts.location)
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{len(facts.body) - 1}/{len(facts.body)}")
            if facts.says_length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if facts.breaks_after is None else body[: facts.breaks_after])

        def _choose(self):
            if facts.status is not None:
                return facts.status, 0, b""
            if self.headers.get("If-None-Match") == facts.mark:
                return 304, 0, b""
            asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if asked and self.headers.get("If-Range") == facts.mark:
                start = int(asked[1])
                return (206, start, facts.body[start:]) if start < len(facts.body) else (416, 0, b"")
            return 200, 0, facts.body

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    facts.address = f"http://127.0.0.1:{server.server_port}/models/world%201.safetensors?v=2"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield facts
    server.shutdown()
    thread.join()
    server.server_close()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_file_is_kept_by_its_content(web, tmp_path):
    path = fetch(web.address, tmp_path)
    assert path == tmp_path / digest(BODY) / "world_1.safetensors"
    assert path.read_bytes() == BODY
    assert fetch(web.address, tmp_path) == path
    assert web.given == [200, 304]
    web.body, web.mark = BODY[::-1], '"two"'
    assert fetch(web.address, tmp_path).read_bytes() == BODY[::-1]
    assert path.read_bytes() == BODY
    assert not list(tmp_path.rglob("*.part"))


def test_a_known_digest_is_checked_and_then_needs_no_server(web, tmp_path):
    named = f"{web.address}#sha256={digest(BODY).upper()}"
    path = fetch(named, tmp_path)
    assert fetch(named, tmp_path) == path
    assert web.given == [200]
    path.write_bytes(b"somebody else's")
    assert fetch(named, tmp_path).read_bytes() == BODY
    with pytest.raises(UserError, match=f"has the SHA-256 {digest(BODY)}, not {'0' * 64}"):
        fetch(f"{web.address}#sha256={'0' * 64}", tmp_path)
    web.mark = '"two"'
    with pytest.raises(UserError, match="not the file that was meant"):
        fetch(f"{web.address}#sha256={'0' * 64}", tmp_path)
    assert not list(tmp_path.rglob("*.part"))


def test_a_broken_transfer_goes_on(web, tmp_path):
    web.breaks_after = 300_000
    with pytest.raises(UserError, match=r"ended after 300,000 of 1,024,000 bytes.*the same command resumes"):
        fetch(web.address, tmp_path)
    web.breaks_after = None
    assert fetch(web.address, tmp_path).read_bytes() == BODY
    assert web.asked[1]["Range"] == "bytes=300000-"
    assert web.given == [200, 206]


def test_a_file_that_changed_meanwhile_begins_anew(web, tmp_path):
    web.breaks_after = 300_000
    with pytest.raises(UserError):
        fetch(web.address, tmp_path)
    web.breaks_after, web.body, web.mark = None, BODY[::-1][:200_000], '"two"'
    assert fetch(web.address, tmp_path).read_bytes() == web.body


def test_sizes_are_bounded_whether_said_or_not(web, tmp_path):
    with pytest.raises(UserError, match="has 1,024,000 bytes, and 1,000 are allowed"):
        fetch(web.address, tmp_path, largest=1000)
    web.says_length = False
    with pytest.raises(UserError, match="more than the 1,000 bytes"):
        fetch(web.address, tmp_path, largest=1000)
    assert fetch(web.address, tmp_path).read_bytes() == BODY


def test_without_a_connection_what_was_kept_is_used(web, tmp_path, caplog):
    path = fetch(web.address, tmp_path)
    web.status = 503
    assert fetch(web.address, tmp_path) == path
    assert "using what it held last" in caplog.text
    with pytest.raises(UserError, match="answers 503"):
        fetch(web.address, tmp_path / "other")


def test_nobody_there_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"Cannot get http://127\.0\.0\.1:9/x\.pkl: .*refused"):
        fetch("http://127.0.0.1:9/x.pkl", tmp_path)


def test_a_host_that_is_not_known_is_said_in_words(tmp_path, monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(
        UserError, match=r"Cannot get https://none\.invalid/x\.pkl: no host of that name is known here; check"
    ):
        fetch("https://none.invalid/x.pkl", tmp_path)


def test_what_is_not_there_is_a_sentence(web, tmp_path):
    web.status = 404
    with pytest.raises(UserError, match="answers 404 Not Found; check the address"):
        fetch(web.address, tmp_path)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://127.0.0.1:9/x"])
def test_redirections_lead_nowhere_else(web, tmp_path, target):
    web.status, web.location = 302, target
    with pytest.raises(UserError, match="Cannot get"):
        fetch(web.address, tmp_path)


@pytest.mark.parametrize(
    "address, reason",
    [
        ("http://example.org/x.pkl", "does not begin with https://HOST"),
        ("https:///x.pkl", "does not begin with https://HOST"),
        ("https://[::1/x.pkl", "cannot be read"),
        ("https://example.org/a b.pkl", "characters that a URL cannot hold"),
        ("https://example.org/x.pkl#sha256=12", "64 hexadecimal digits"),
        ("https://example.org/x.pkl#top", "64 hexadecimal digits"),
    ],
)
def test_addresses_that_are_none(address, reason, tmp_path):
    with pytest.raises(UserError, match=reason):
        fetch(address, tmp_path)
