"""Who may use the server: its own page on this machine, or whoever has the token.

Without a token the server listens on loopback only, and a request must be addressed to a loopback name, so that no page of
the web reaches it under a name of its own (DNS rebinding). With one, every request must have it.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

from dnnlib.errors import UserError

POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; object-src 'none'; "
    "base-uri 'none'; frame-ancestors 'none'; form-action 'self'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_TOKEN = re.compile(r"[\x21-\x7e]{8,200}")
_COOKIE_SECONDS = 30 * 24 * 3600


def token_for(host: str, token: str | None) -> str | None:
    """The token of a server at ``host``: the one given; made up where the address is not loopback; else none.

    Raises:
        UserError: the one given is too short, or has characters that are not in addresses.
    """
    if token is None:
        return None if is_loopback(host) else secrets.token_urlsafe(18)
    if not _TOKEN.fullmatch(token):
        raise UserError(
            "--token must have 8 to 200 letters, digits or signs of ASCII, without spaces; leave it out to have one made up."
        )
    return token


def is_loopback(host: str) -> bool:
    """Whether a name or an address, as given to ``--host`` or in a request, means this machine alone."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Access:
    """The check of every request.

    Args:
        token: What a request must have; None: it must be addressed to a loopback name.
    """

    def __init__(self, token: str | None) -> None:
        self.token = token
        digest = hashlib.sha256(f"multiscale explorer {token}".encode()).hexdigest()
        self._cookie = f"multiscale-{digest[:8]}", digest[8:]

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """A middleware: 403 for what may not be, a redirect that turns the token of an address into a cookie."""
        if self.token is None:
            if not is_loopback(_name_of(request.host)):
                raise web.HTTPForbidden(text="This server answers to loopback names only; give zoom.py a --token.")
        elif not self._admitted(request):
            raise web.HTTPForbidden(text="The token is missing or wrong; open the address that zoom.py has printed.")
        if (request.method not in ("GET", "HEAD") or _is_upgrade(request)) and not _of_own_page(request):
            raise web.HTTPForbidden(text="Another site's page may not do this.")
        if self.token is not None and request.path == "/" and "token" in request.query:
            return self._kept_in_cookie(request)
        return await handler(request)

    def _admitted(self, request: web.Request) -> bool:
        assert self.token is not None
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        given = [request.query.get("token", ""), bearer if scheme.lower() == "bearer" else ""]
        name, value = self._cookie
        same = [hmac.compare_digest(text.encode(errors="replace"), self.token.encode()) for text in given]
        same.append(hmac.compare_digest(request.cookies.get(name, "").encode(errors="replace"), value.encode()))
        return any(same)

    def _kept_in_cookie(self, request: web.Request) -> web.Response:
        rest = request.rel_url.without_query_params("token").query_string
        response = web.Response(status=303, headers={"Location": f"/?{rest}" if rest else "/"})
        name, value = self._cookie
        response.set_cookie(
            name, value, max_age=_COOKIE_SECONDS, httponly=True, samesite="Strict", secure=request.secure, path="/"
        )
        return response


def _name_of(host: str) -> str:
    """The name in a Host header, without port and brackets; empty if it cannot be read."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_upgrade(request: web.Request) -> bool:
    return "upgrade" in request.headers.get("Connection", "").lower() or "Upgrade" in request.headers


def _of_own_page(request: web.Request) -> bool:
    """Whether a request comes from the server's page, or from no page at all; browsers always say."""
    origin = request.headers.get("Origin")
    if origin is None:
        return True
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == request.host.lower()
