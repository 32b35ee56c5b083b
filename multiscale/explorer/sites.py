"""Networks to take home as a page that needs no server: ``/api/site.zip``, made once for each network and kept for a while."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections import Counter, OrderedDict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeAlias

from aiohttp import web

from dnnlib.errors import UserError
from dnnlib.files import cache_folder, new_temporary_folder
from multiscale.explorer.messages import SiteQuery, parse_query
from multiscale.explorer.networks import Entry, Library
from multiscale.site.write import zip_site

UNFINISHED = 4
"""Networks whose page waits, is being made (one at a time) or sent."""
KEPT = 2
PART_BYTES = 1 << 18
ROOM_BYTES = 1 << 29
"""That the disk must have, beside four times the network."""


Key: TypeAlias = tuple[str, tuple[int, int]]
"""Name and stamp of a network: another file of the same name is another."""


class Sites:
    """The handler of exported pages; methods are for the event loop."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._made: OrderedDict[Key, asyncio.Future[Path]] = OrderedDict()
        self._asked: Counter[Key] = Counter()
        self._thread = ThreadPoolExecutor(1, "site")
        self.folder: Path | None = None
        """Where the files are; made with the first."""

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Make the page of a network, unless it is made already, and send it as a ZIP."""
        entry = self._library.entry(parse_query(SiteQuery, request.query).network)
        key = entry.name, entry.stamp
        page = self._page_of(entry)
        self._asked[key] += 1
        try:
            path = await asyncio.shield(page)  # others may wait for it too, and the next one has it
            headers = {"Content-Disposition": f'attachment; filename="{path.name}"', "Cache-Control": "no-store"}
            answer = web.StreamResponse(headers=headers)
            answer.content_type, answer.content_length = "application/zip", path.stat().st_size
            await answer.prepare(request)
            with path.open("rb") as file:
                while part := file.read(PART_BYTES):
                    await answer.write(part)  # waits for the client; who does not read is cut off
            await answer.write_eof()
        finally:
            self._asked[key] -= 1
            self._forget_oldest()
        return answer

    def close(self) -> None:
        """Give up what waits and remove all files."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _page_of(self, entry: Entry) -> asyncio.Future[Path]:
        key = entry.name, entry.stamp
        if key in self._made:
            self._made.move_to_end(key)
            return self._made[key]
        if sum(self._is_busy(other) for other in self._made) >= UNFINISHED:
            raise UserError(f"The pages of {UNFINISHED} networks are being made or sent; wait for one.")
        if self.folder is None:
            self.folder = new_temporary_folder("multiscale-sites")
        if shutil.disk_usage(self.folder).free < ROOM_BYTES + 4 * entry.stamp[1]:
            raise UserError("The server's disk has no room for a page; try again when there is.")
        work = partial(_make, entry, self.folder / secrets.token_hex(12))
        page = self._made[key] = asyncio.get_running_loop().run_in_executor(self._thread, work)
        page.add_done_callback(lambda _: self._forget_oldest())
        return page

    def _is_busy(self, key: Key) -> bool:
        return self._asked[key] > 0 or not self._made[key].done()

    def _forget_oldest(self) -> None:
        """Keep the last few pages; those that failed go, so that the next one who asks tries again."""
        for key in [key for key, page in self._made.items() if _failed(page)]:
            del self._made[key]
        idle = [key for key in self._made if not self._is_busy(key)]
        for key in idle[:-KEPT]:
            shutil.rmtree(self._made.pop(key).result().parent, ignore_errors=True)
        self._asked += Counter()  # without those that nobody asks for


def _failed(page: asyncio.Future[Path]) -> bool:
    return page.cancelled() or (page.done() and page.exception() is not None)


def _make(entry: Entry, folder: Path) -> Path:
    """On the thread of pages: the only file in a folder of its own."""
    try:
        return zip_site(entry.path, folder)
    except UserError as error:  # for clients, who need not know where things are
        text = str(error).replace(str(entry.path), entry.path.name).replace(str(cache_folder()), "its cache folder")
        raise UserError(f"The page cannot be made: {text}") from error
