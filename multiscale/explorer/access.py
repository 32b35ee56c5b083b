"""Who may use the server: its own page on this machine, or whoever has the token.

Without a token the server listens on loopback only, and requests must be addressed to a loopback name, so that no website
reaches it under its own domain name (DNS rebinding). With a token, every request must carry it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

from multiscale.explorer.messages import split_options
from multiscale.explorer.options import is_loopback

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
_COOKIE_SECONDS = 30 * 24 * 3600


class Access:
    """The check of every request.

    Args:
        token: What every request must carry; None: requests must be addressed to a loopback name.
        origins: Other sites whose pages may fetch tiles, from :func:`multiscale.explorer.options.parse_origin`.
        public_url: Where a proxy serves this server, from :func:`multiscale.explorer.options.parse_public_url`.
    """

    def __init__(self, token: str | None, *, origins: Collection[str] = (), public_url: str | None = None) -> None:
        self.token = token
        self.origins = frozenset(origins)
        self.public_url = public_url
        digest = hashlib.sha256(f"multiscale explorer {token}".encode()).hexdigest()
        self._cookie = f"multiscale-{digest[:8]}", digest[8:]

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Middleware: 403 for what is not allowed; a redirect turns a token in the address into a cookie."""
        if self.token is None:
            if not is_loopback(_name_of(request.host)):
                raise web.HTTPForbidden(text="This server answers to loopback names only; give zoom.py a --token.")
        elif not self._admitted(request):
            raise web.HTTPForbidden(text="The token is missing or wrong; open the address that zoom.py printed.")
        changes = request.method not in ("GET", "HEAD") or _is_upgrade(request)
        is_open = not changes and (request.path == "/" or self.allows(request))
        if not is_open and not self._of_own_page(request):
            raise web.HTTPForbidden(text="Another site's page may not do this; for tiles, see zoom.py --allow-origin.")
        if self.token is not None and request.path == "/" and "token" in request.query:
            return self._kept_in_cookie(request)
        return await handler(request)

    def _admitted(self, request: web.Request) -> bool:
        assert self.token is not None
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        given = [request.query.get("token", ""), bearer if scheme.lower() == "bearer" else "", _token_in_path(request)]
        name, value = self._cookie
        same = [hmac.compare_digest(text.encode(errors="replace"), self.token.encode()) for text in given]
        same.append(hmac.compare_digest(request.cookies.get(name, "").encode(errors="replace"), value.encode()))
        return any(same)

    def _kept_in_cookie(self, request: web.Request) -> web.Response:
        rest = request.rel_url.without_query_params("token").query_string
        response = web.Response(status=303, headers={"Location": f"./?{rest}" if rest else "./"})
        name, value = self._cookie
        public = urlsplit(self.public_url or "")
        response.set_cookie(
            name,
            value,
            max_age=_COOKIE_SECONDS,
            httponly=True,
            samesite="Strict",
            secure=request.secure or public.scheme == "https",
            path=f"{public.path}/",
        )
        return response

    def allows(self, request: web.Request) -> bool:
        """Whether this is a request for tiles from another site's page that may have them."""
        is_tile = request.path.startswith(("/tiles/", "/iiif/"))
        return is_tile and ("*" in self.origins or _origin_of(request) in self.origins)

    def shared_headers(self, request: web.Request) -> dict[str, str]:
        """CORS headers of tiles, for the sites that may have them."""
        if "*" in self.origins:
            return {"Access-Control-Allow-Origin": "*"}
        if not self.origins:
            return {}
        origin = request.headers.get("Origin")
        shared = {"Access-Control-Allow-Origin": origin} if origin is not None and self.allows(request) else {}
        return {**shared, "Vary": "Origin"}

    def _of_own_page(self, request: web.Request) -> bool:
        """Whether a request comes from the server's page, or from no page at all; browsers always tell."""
        origin = request.headers.get("Origin")
        if origin is None:
            return request.headers.get("Sec-Fetch-Site", "none") in ("same-origin", "none")
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        if self.public_url is not None and origin.lower() == origin_of_address(self.public_url):
            return True
        return parts.scheme in ("http", "https") and parts.netloc.lower() == request.host.lower()


def _name_of(host: str) -> str:
    """The name in a Host header, without port and brackets; empty if it cannot be read."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_upgrade(request: web.Request) -> bool:
    return "upgrade" in request.headers.get("Connection", "").lower() or "Upgrade" in request.headers


def origin_of_address(address: str) -> str:
    """Scheme, name and port of an address; empty if it cannot be read."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.netloc}".lower()


def _origin_of(request: web.Request) -> str:
    """The site whose page sent a request, by its Origin header, else by Referer."""
    return request.headers.get("Origin") or origin_of_address(request.headers.get("Referer", ""))


def _token_in_path(request: web.Request) -> str:
    """The token among the options after a world (see :func:`multiscale.explorer.messages.split_options`)."""
    return split_options(request.match_info.get("world", ""))[1].get("token", "")
