"""Explore a trained model in the browser: ``python zoom.py``."""

from __future__ import annotations

import os
import shlex
import sys
import threading
import webbrowser
from urllib.parse import urlsplit

import click
from click_option_group import optgroup

from dnnlib.cli import Command, reports_user_errors, typed
from dnnlib.console import say
from dnnlib.errors import UserError
from dnnlib.names import folder_named
from multiscale.explorer.options import SERVER_OPTIONS, Options, is_loopback, parse_origin, parse_public_url, token_for
from multiscale.rendering.worlds import World
from multiscale.runs.headers import find_network
from multiscale.runs.remote import is_remote
from multiscale.site.place import check_place


@click.command(cls=Command, context_settings={"show_default": True, "max_content_width": 110})
@optgroup.group("Model")
@optgroup.option(
    "--network",
    metavar="RUN|FILE|NAME",
    help="A run's folder, new snapshots included, or a folder of runs (the one written to last); a snapshot, a published .pkl, "
    "https://..., hf://owner/repo, or earth, the bundled model.  "
    "[default: the snapshot written last in runs/, else the bundled model]",
)
@optgroup.group("Export")
@optgroup.option(
    "--export", metavar="FOLDER", help="Write a page that renders the model in any browser, without a server; exit."
)
@optgroup.option(
    "--tiles", is_flag=True, help="With --export: one world as Deep Zoom tiles, for browsers too slow to render."
)
@optgroup.option("--world", metavar="WORLD", help="With --tiles: which, such as 3 or 3~7:0.25.  [default: 3]")
@optgroup.option(
    "--title", metavar="TEXT", help="With --export: what the page is called.  [default: as the data or the run]"
)
@optgroup.group("Server")
@optgroup.option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 for other machines, with a token.")
@optgroup.option("--port", type=click.IntRange(1, 65535), help="Port.  [default: the first free one from 8000]")
@optgroup.option(
    "--token",
    type=click.UNPROCESSED,
    envvar="MULTISCALE_TOKEN",
    help="What every request must carry; other users of this machine see it, unless it comes from the variable "
    "MULTISCALE_TOKEN or a file.  [default: a random one if others can connect]",
)
@optgroup.option("--token-file", metavar="FILE", help="A file whose first line is the token.")
@optgroup.option(
    "--public-url", metavar="URL", help="Where a proxy serves this server, such as https://example.org/worlds."
)
@optgroup.option(
    "--allow-origin",
    "origins",
    metavar="ORIGIN",
    multiple=True,
    help="Another site whose pages may fetch tiles, such as https://example.org; null: files; *: any.",
)
@optgroup.option("--no-browser", is_flag=True, help="Do not open the page in a browser.")
@optgroup.option(
    "--cache-mb", type=click.IntRange(0), default=512, help="MB of tiles for other viewers to keep on disk."
)
@reports_user_errors
def main(
    network: str | None,
    host: str,
    port: int | None,
    token: str | None,
    token_file: str | None,
    public_url: str | None,
    origins: tuple[str, ...],
    no_browser: bool,
    cache_mb: int,
    export: str | None,
    tiles: bool,
    world: str | None,
    title: str | None,
) -> None:
    """Fly through the worlds of a model in the browser, and save images and films; Ctrl-C stops it."""
    if (tiles and export is None) or (world is not None and not tiles):
        raise UserError("--tiles goes with --export FOLDER, and --world with --tiles; give them together.")
    if title is not None and export is None:
        raise UserError("--title goes with --export FOLDER, whose page it names; give them together.")
    if export is not None:
        if served := typed(SERVER_OPTIONS):
            raise UserError(f"--export writes a page and serves nothing; leave out {served[0]}, or --export.")
        folder, chosen = folder_named("--export", export), World.parse(world or "3")
        check_place(folder)
        file = find_network(network, say)
        from multiscale.site.write import export_site, export_tiles  # here, as the server below: PyTorch takes seconds

        print(export_tiles(file, folder, chosen, title=title) if tiles else export_site(file, folder, title=title))
        say(f"To look at it: python -m http.server -d {shlex.quote(str(folder))}, then open http://localhost:8000.")
        return
    options = Options(
        host=host,
        port=port,
        token=token_for(host, token, token_file, is_public=public_url is not None),
        origins=[parse_origin(origin) for origin in origins],
        public_url=None if public_url is None else parse_public_url(public_url),
        cache_mb=cache_mb,
        network=_at_hand(network),
    )
    from multiscale.explorer.server import serve

    def ready(url: str) -> None:
        print(f"Explore at {url} (Ctrl-C stops it)", flush=True)
        if public_url is not None:
            return
        if "SSH_CONNECTION" in os.environ and is_loopback(host):
            number = urlsplit(url).port
            print(
                f"From another machine: ssh -L {number}:localhost:{number} HOST, then open the same address.",
                flush=True,
            )
        elif not no_browser and has_display():
            threading.Thread(target=webbrowser.open, args=[url], daemon=True).start()

    serve(options, ready)
    sys.stdout.flush()
    os._exit(0)  # at once: a thread may still be inside a layer or an encoder, and nobody waits for it


def _at_hand(network: str | None) -> str | None:
    """What names the network on this machine; UserError if there is none."""
    file = find_network(network)
    return str(file) if network is not None and is_remote(network) else network


def has_display() -> bool:
    """Whether a browser has somewhere to open."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


if __name__ == "__main__":
    main()
