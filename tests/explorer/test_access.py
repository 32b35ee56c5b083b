"""Who gets in: loopback names, tokens, cookies, origins; and what every answer says to browsers."""

import pytest
from aiohttp import WSServerHandshakeError
from serving import run, serving, small_run

from dnnlib.errors import UserError
from multiscale.explorer.options import is_loopback, token_for

TOKEN = "correct-horse+battery/9"
FILM = {"world": "3", "width": 32, "height": 32, "fps": 5, "seconds": 1, "keyframes": [{"zoom": 1, "x": 0, "y": 0}] * 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("access") / "run", (1,))


def with_client(folder, tmp_path, work, token=None):
    async def main():
        async with serving(folder, tmp_path, token=token) as served:
            return await work(served.client)

    return run(main())


@pytest.mark.parametrize(
    "host, status",
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:9", 200),
        ("127.9.8.7", 200),
        ("[::1]:8000", 200),
        ("example.com", 403),
        ("localhost.example.com", 403),
        ("127.0.0.1.example.com", 403),
        ("0.0.0.0:8000", 403),
        ("192.168.0.1", 403),
        ("[::1", 403),
        ("localhost@example.com", 403),
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/info", "/tiles/3/0/0/0.png", "/nothing", "/ws"])
def test_without_a_token_only_loopback_names_are_answered(folder, tmp_path, host, status, path):
    async def work(client):
        return (await client.get(path, headers={"Host": host}, allow_redirects=False)).status

    expected = status if status == 403 else {"/nothing": 404, "/ws": 400}.get(path, 200)
    assert with_client(folder, tmp_path, work) == expected


@pytest.mark.parametrize(
    "path", ["/", "/static/style.css", "/api/info", "/api/image.png", "/tiles/3.dzi", "/nothing", "/ws"]
)
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"params": {"token": ""}},
        {"params": {"token": TOKEN[:-1]}},
        {"params": {"token": TOKEN + "x"}},
        {"params": {"token": "ä€\0" * 9}},
        {"headers": {"Authorization": f"Basic {TOKEN}"}},
        {"headers": {"Authorization": "Bearer"}},
        {"headers": {"Authorization": f"Bearer {TOKEN}x"}},
        {"headers": {"Cookie": f"multiscale={TOKEN}; token={TOKEN}"}},
    ],
)
def test_with_a_token_every_request_needs_it(folder, tmp_path, path, given):
    async def work(client):
        answer = await client.get(path, allow_redirects=False, **given)
        assert "token" in (await answer.json())["message"]
        return answer.status

    assert with_client(folder, tmp_path, work, TOKEN) == 403


def test_the_token_of_the_address_becomes_a_cookie(folder, tmp_path):
    async def work(client):
        answer = await client.get("/", params={"token": TOKEN, "z": "2"}, allow_redirects=False)
        assert answer.status == 303
        assert answer.headers["Location"] == "./?z=2"
        cookie = answer.headers["Set-Cookie"]
        for word in ("HttpOnly", "SameSite=Strict", "Path=/"):
            assert word in cookie
        assert TOKEN not in cookie
        value = cookie.split(";")[0]
        for path in ("/", "/api/info", "/tiles/3/0/0/0.png"):
            answer = await client.get(path, headers={"Cookie": value})
            assert answer.status == 200
            assert answer.headers.get("Access-Control-Allow-Origin") is None
            assert "public" not in answer.headers["Cache-Control"]
        async with client.ws_connect("/ws", headers={"Cookie": value}):
            pass

    with_client(folder, tmp_path, work, TOKEN)


def test_the_token_may_be_a_bearer_or_in_the_address_of_a_tile(folder, tmp_path):
    async def work(client):
        headers = {"Authorization": f"bearer {TOKEN}", "Host": "gpu.example.com:8000"}
        assert (await client.get("/api/info", headers=headers)).status == 200
        assert (await client.post("/api/films", json=FILM, headers=headers)).status == 202
        answer = await client.get("/tiles/3/0/0/0.png", params={"token": TOKEN}, allow_redirects=False)
        assert answer.status == 200

    with_client(folder, tmp_path, work, TOKEN)


@pytest.mark.parametrize("token", [None, TOKEN])
def test_pages_of_other_sites_may_not_connect_or_change_anything(folder, tmp_path, token):
    async def work(client):
        own = f"{client.host}:{client.port}"
        bearer = {"Authorization": f"Bearer {token}"} if token else {}
        for origin, admitted in {
            f"http://{own}": True,
            f"https://{own}": True,
            "http://example.com": False,
            f"http://{client.host}:1": False,
            f"http://{own}.example.com": False,
            f"ftp://{own}": False,
            "null": False,
            "": False,
            "http://[": False,
        }.items():
            headers = {"Origin": origin, **bearer}
            if admitted:
                async with client.ws_connect("/ws", headers=headers):
                    pass
            else:
                with pytest.raises(WSServerHandshakeError, match="403"):
                    await client.ws_connect("/ws", headers=headers)
            film = await client.post("/api/films", json=FILM, headers=headers)
            assert film.status == (202 if admitted else 403), origin
            if admitted:
                address = f"/api/films/{(await film.json())['id']}"
                assert (await client.delete(address, headers={"Origin": "http://example.com", **bearer})).status == 403
                assert (await client.delete(address, headers=headers)).status == 200

    with_client(folder, tmp_path, work, token)


@pytest.mark.parametrize(
    "path", ["/", "/static/style.css", "/api/info", "/nothing", "/tiles/3/9/0/0.png", "/api/films/1"]
)
def test_every_answer_tells_browsers_to_trust_nothing_else(folder, tmp_path, path):
    async def work(client):
        return (await client.get(path)).headers

    headers = with_client(folder, tmp_path, work)
    policy = headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "img-src 'self' blob: data:" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Server" not in headers


def test_hosts_and_tokens():
    assert token_for("127.0.0.1", None) is None
    assert token_for("localhost", None) is None
    assert token_for("::1", "given-token") == "given-token"
    made = {token_for(host, None) for host in ("0.0.0.0", "::", "", "192.168.1.2", "gpu", "localhost.example.com")}
    assert len(made) == 6
    assert all(len(token) >= 20 for token in made)
    for token in ("", "short", "with space inside", "x" * 201, "ümlaut-ümlaut", "new\nline-new\nline"):
        with pytest.raises(UserError, match="--token must have"):
            token_for("127.0.0.1", token)
    assert not any(map(is_loopback, ("", "127.0.0.1.example.com", "0.0.0.0", "::", "localhost.example")))
