"""A model goes to a hub with its card and comes back by name; the hub is a stand-in on loopback."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from dnnlib.errors import UserError
from multiscale.runs.headers import find_network, find_networks
from multiscale.runs.remote import HubName, is_remote, local_path
from multiscale.runs.snapshots import load_snapshot, save_snapshot
from multiscale.share.__main__ import main

pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: pip install huggingface_hub")

ROOT = Path(__file__).parents[2]
RUN = ROOT / "tests/golden/run_9d2a32f"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub():
    """A hub with one repository; ``files`` are what it holds."""
    files: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self, value, status=200, **headers):
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for name, text in headers.items():
                self.send_header(name.replace("_", "-"), text)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _body(self) -> bytes:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def do_GET(self):
            if match := re.fullmatch(r"/me/world/resolve/[\w.-]+/(.+)", self.path):
                if match[1] not in files:
                    return self._answer({}, 404, X_Error_Code="EntryNotFound")
                data = files[match[1]]
                mark = hashlib.sha1(data).hexdigest()
                return self._answer(data, ETag=f'"{mark}"', X_Repo_Commit=COMMIT)
            if re.fullmatch(r"/api/models/me/world(/revision/main)?", self.path.partition("?")[0]):
                return self._answer({"id": "me/world", "siblings": [{"rfilename": name} for name in files]})
            return self._answer({}, 404, X_Error_Code="RepoNotFound")

        do_HEAD = do_GET

        def do_POST(self):
            body = self._body()
            if self.path == "/api/repos/create":
                return self._answer({"url": f"http://{self.headers['Host']}/me/world", "name": "me/world"})
            if "/preupload/" in self.path:
                asked = json.loads(body)["files"]
                return self._answer(
                    {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
                )
            if "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                return self._answer(
                    {
                        "commitUrl": f"http://{self.headers['Host']}/me/world/commit/{COMMIT}",
                        "commitOid": COMMIT,
                        "success": True,
                    }
                )
            return self._answer({})

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", files
    server.shutdown()
    thread.join()
    server.server_close()


def with_hub(address: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own: huggingface_hub reads its environment when it is imported."""
    environment = os.environ | {
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_none",
        "HF_HUB_DISABLE_XET": "1",
    }
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_run_goes_to_the_hub_and_comes_back(hub, tmp_path):
    address, files = hub
    code = f"""
from multiscale.share.__main__ import main
main(["push", {str(RUN)!r}, "hf://me/world"], standalone_mode=False)
from multiscale.runs.remote import local_path
for name in ("hf://me/world", "hf://me/world/generator-000000020.safetensors@main"):
    print(local_path(name))
for name in ("hf://me/world/other.pkl", "hf://me/nothing"):
    try: local_path(name)
    except ValueError as error: print(error)
"""
    done = with_hub(address, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    snapshot = "generator-000000020.safetensors"
    assert set(files) == {"README.md", "config.yaml", "strip.png", snapshot}
    assert files[snapshot] == (RUN / snapshot).read_bytes()
    said, first, second, no_file, no_repo = done.stdout.splitlines()
    assert said == f"hf://me/world has {snapshot}, strip.png, config.yaml, README.md."
    assert first == second
    assert Path(first).read_bytes() == files[snapshot]
    assert (no_file, no_repo) == (
        "There is no hf://me/world/other.pkl, or it is private: check the name, or hf auth login.",
        "There is no hf://me/nothing, or it is private: check the name, or hf auth login.",
    )


def test_a_card_says_what_it_is(tmp_path):
    folder = tmp_path / "card"
    options = ["push", str(RUN), "hf://me/a-world", "--folder", str(folder), "--licence", "cc0-1.0"]
    done = CliRunner().invoke(main, options)
    assert done.exit_code == 0, done.output
    text = (folder / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert (head["license"], head["library_name"]) == ("cc0-1.0", "multiscale-gan")
    assert 'multiscale.load("hf://me/a-world")' in text
    assert f"`{load_snapshot(find_network(RUN)).digest}`" in text
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (folder / link).is_file()
    assert Image.open(folder / "strip.png").width > 64
    again = CliRunner().invoke(main, options)
    assert again.exit_code == 2
    assert "is not an empty folder" in again.output


def test_a_card_is_called_after_the_title_and_its_links_take_any_file_s_name(tmp_path):
    file, folder = tmp_path / "Öl auf (Leinwand).safetensors", tmp_path / "card"
    generator = load_snapshot(find_network(RUN)).generator
    save_snapshot(file, generator, {"title": "Öl auf\n Leinwand", "licence": "CC BY 4.0", "credit": "City | Museum"})
    done = CliRunner().invoke(main, ["push", str(file), "hf://me/a-world", "--folder", str(folder)])
    assert done.exit_code == 0, done.output
    text = (folder / "README.md").read_text()
    assert "\n# Öl auf Leinwand\n" in text
    assert "\n| credit | City \\| Museum |\n" in text
    head = yaml.safe_load(text.split("---")[1])
    assert (head["license"], head["license_name"]) == ("other", "CC BY 4.0")
    links = [unquote(link) for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    assert links == ["strip.png", file.name]


@pytest.mark.parametrize(("licence", "code"), [("cc-by-4.0", 0), ("cc0-1.0", 2)])
def test_a_licence_does_not_contradict_the_file_s(tmp_path, licence, code):
    file, folder = tmp_path / "moon.safetensors", tmp_path / "card"
    save_snapshot(file, load_snapshot(find_network(RUN)).generator, {"licence": "CC BY 4.0"})
    done = CliRunner().invoke(
        main, ["push", str(file), "hf://me/a-world", "--folder", str(folder), "--licence", licence]
    )
    assert done.exit_code == code, done.output
    assert folder.exists() == (code == 0)
    if code:
        assert (
            f"{file} states the licence 'CC BY 4.0', and --licence cc0-1.0 is another; leave --licence out"
            in done.stderr
        )


@pytest.mark.parametrize("licence", ["Creative Commons", "CC-BY-4.0"])
def test_a_licence_that_is_no_id_is_refused_before_anything_is_read(tmp_path, licence):
    refused = CliRunner().invoke(main, ["push", "none", "hf://me/a-world", "--licence", licence])
    assert refused.exit_code == 2
    assert refused.stderr == (
        f"Error: --licence {licence} is no ID of the hub; write it as the hub does: cc-by-4.0, cc0-1.0 or other.\n"
    )


def test_a_hub_that_cannot_be_reached_is_one_sentence_in_a_fresh_process(tmp_path):
    """In this one other tests have loaded more of huggingface_hub than it does by itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    code = (
        "from multiscale.runs.remote import local_path\ntry: local_path('{}')\nexcept ValueError as error: print(error)"
    )
    done = with_hub(address, tmp_path, "-c", code.format("hf://me/my-world"))
    assert re.fullmatch(r"Cannot reach hf://me/my-world: .+\.\n", done.stdout), done
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_not_there_is_said_before_the_package_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as where it is not installed
    for run, message in (
        ("nowhere", "There is no network nowhere; give"),
        ("", "is empty; give a value"),
        (str(RUN), "pip install huggingface_hub"),
    ):
        done = CliRunner().invoke(main, ["push", run, "hf://me/world"])
        assert (done.exit_code, message in done.output) == (2, True), done.output


def test_names():
    assert HubName.parse("hf://a/b") == HubName("a/b", None, None)
    assert HubName.parse("hf://a/b/c/d.pkl@v1/x") == HubName("a/b", "c/d.pkl", "v1/x")
    assert str(HubName.parse("hf://a/b/c.pkl@v1")) == "hf://a/b/c.pkl@v1"
    for text in ("hf://a", "hf:///a/b", "hf://a/b/../c", "hf:a/b", "hf://a/b@", "hf://ä/b"):
        with pytest.raises(UserError, match="write hf://owner/repo"):
            HubName.parse(text)
    assert [is_remote(name) for name in ("https://x/y?z=*", "hf://a/b", "runs/a", Path("https://x"))] == [
        True,
        True,
        False,
        False,
    ]
    with pytest.raises(UserError, match="does not begin with https://HOST"):
        local_path("http://example.org/x.pkl")
    with pytest.raises(UserError, match="64 hexadecimal digits"):
        find_networks(["https://example.org/x.pkl?a=*#y"])
