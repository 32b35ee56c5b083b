"""The networks that can be shown: a file, or all snapshots of a run, of which the last few used are loaded."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dnnlib.errors import REFUSED, UserError
from multiscale.explorer.scheduler import Owner, Rank, RenderQueue
from multiscale.rendering.renderer import Renderer, provenance
from multiscale.runs.headers import BUNDLED, find_network, kimg_in, read_header, snapshots_of
from multiscale.runs.snapshots import Snapshot, load_snapshot

LOADED = 3
UNKNOWN: dict[str, Any] = dict.fromkeys(
    ("kimg", "resolution", "octaves", "world_px", "layers", "channels", "licence", "credit")
)
"""Facts of a snapshot that cannot be read."""

TERMS_CHARACTERS = 200
"""Limit of a licence's name and of a credit as sent to clients."""


@dataclass(frozen=True)
class Entry:
    """A snapshot on disk, as its header describes it."""

    path: Path
    stamp: tuple[int, int]
    """Modification time in nanoseconds, and size in bytes."""
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        """Its name for clients."""
        return self.path.stem


@dataclass(frozen=True)
class Network:
    """A loaded snapshot."""

    name: str
    digest: str
    provenance: dict[str, Any]
    renderer: Renderer
    """For any image, in pieces."""
    drafts: Renderer
    """For many images of few shapes, fast and in one piece each: outermost pixels are accurate to 38 dB (bundled model)."""


@dataclass
class Library:
    """The networks of one server. Methods are for the event loop, except :meth:`scan`."""

    network: str | None
    """A file, a run's folder, or None for the newest run."""
    device: torch.device
    queue: RenderQueue
    run: Path | None = field(init=False, default=None)
    """The folder that is watched."""
    entries: dict[str, Entry] = field(init=False, default_factory=dict)
    """By name, oldest first; never empty."""

    def __post_init__(self) -> None:
        """Find the networks.

        Raises:
            UserError: there is none.
        """
        path = find_network(self.network)
        self._file = path
        if (self.network is None and path != BUNDLED) or (self.network is not None and Path(self.network).is_dir()):
            self.run = path.parent
        self._owner = Owner()
        self._loaded: OrderedDict[tuple[str, tuple[int, int]], Network] = OrderedDict()
        self._arriving: dict[tuple[str, tuple[int, int]], asyncio.Task[Network]] = {}
        self._loader = ThreadPoolExecutor(1, "load")
        self._broken: set[tuple[str, tuple[int, int]]] = set()
        self.scan()
        if not self.entries:
            raise UserError(f"Cannot read the network {path}: it has just disappeared.")

    def scan(self) -> bool:
        """Look at the disk; whether the list has changed. It stays as it is if all networks have disappeared."""
        found = {}
        for path in snapshots_of(self.run) if self.run is not None else [self._file]:
            try:
                stat = path.stat()
            except OSError:
                continue
            stamp = stat.st_mtime_ns, stat.st_size
            known = self.entries.get(path.stem)
            found[path.stem] = known if known and known.stamp == stamp else Entry(path, stamp, header_facts(path))
        if not found or found == self.entries:
            return False
        self.entries = found
        return True

    @property
    def default(self) -> str:
        """Name of the newest network that can be read, as far as is known."""
        readable = [name for name, entry in self.entries.items() if self._is_usable(entry)]
        return (readable or list(self.entries))[-1]

    def _is_usable(self, entry: Entry) -> bool:
        return entry.facts["octaves"] is not None and (entry.name, entry.stamp) not in self._broken

    async def first(self) -> Network:
        """The newest network that can be read; errors of newer ones are printed.

        Raises:
            UserError: none can; the message is about the newest.
        """
        reason: UserError | None = None
        for _ in range(len(self.entries)):
            name = self.default
            try:
                return await self.get(name)
            except UserError as error:
                reason = reason or error
                self._broken.add((name, self.entries[name].stamp))
                if any(self._is_usable(entry) for entry in self.entries.values()):
                    print(f"{error} Showing an older one of the run.", flush=True)
        raise reason or UserError("There is no network.")

    def listing(self) -> list[dict[str, Any]]:
        """The networks as clients see them."""
        default = self.default
        return [
            {"name": name, **(entry.facts if self._is_usable(entry) else UNKNOWN), "current": name == default}
            for name, entry in self.entries.items()
        ]

    def entry(self, name: str | None) -> Entry:
        """A network on disk by name (None: the default).

        Raises:
            UserError: there is none of this name.
        """
        name = self.default if name is None else name
        if name not in self.entries:
            raise UserError(f"There is no network {name!r} here (any more); choose one of the list.")
        return self.entries[name]

    async def get(self, name: str | None) -> Network:
        """A network by name (None: the default), loaded if need be.

        Raises:
            UserError: there is none of this name, or its file has disappeared or is broken.
        """
        name = self.default if name is None else name
        if (network := self._kept(name)) is not None:
            return network
        entry = self.entry(name)
        key = name, entry.stamp
        if key not in self._arriving:
            self._arriving[key] = asyncio.create_task(self._load(entry))
            self._arriving[key].add_done_callback(lambda task: self._arrived(key, task))
        return await asyncio.shield(self._arriving[key])  # others may wait for it too

    async def _load(self, entry: Entry) -> Network:
        try:
            snapshot = await asyncio.get_running_loop().run_in_executor(self._loader, load_snapshot, entry.path)
        except UserError as error:  # for clients, which need not know the path
            self._broken.add((entry.name, entry.stamp))
            raise UserError(str(error).replace(str(entry.path), entry.path.name)) from error
        job = self.queue.call(self._owner, Rank.DRAFT, lambda _: self._placed(entry, snapshot))
        try:
            return await asyncio.wrap_future(job.future)
        finally:
            job.close()

    def _arrived(self, key: tuple[str, tuple[int, int]], task: asyncio.Task[Network]) -> None:
        del self._arriving[key]
        if task.cancelled() or task.exception() is not None:
            return
        self._loaded[key] = task.result()
        while len(self._loaded) > LOADED:
            self._loaded.popitem(last=False)

    def _kept(self, name: str) -> Network | None:
        """The network if it is loaded; of a file that has gone, the last one loaded."""
        entry = self.entries.get(name)
        keys = [key for key in self._loaded if key[0] == name and (entry is None or key[1] == entry.stamp)]
        if not keys:
            return None
        self._loaded.move_to_end(keys[-1])
        return self._loaded[keys[-1]]

    def _placed(self, entry: Entry, snapshot: Snapshot) -> Network:
        return Network(
            name=entry.name,
            digest=snapshot.digest,
            provenance=provenance(snapshot),
            renderer=Renderer(snapshot.generator, self.device),
            drafts=Renderer(snapshot.generator, self.device, reach=0, replay=True),
        )


def header_facts(path: Path) -> dict[str, Any]:
    """What a snapshot's header says, without reading weights; None where it says nothing."""
    facts = dict(UNKNOWN)
    try:
        config, info = read_header(path)
    except (UserError, *REFUSED):
        return facts
    facts |= {
        "kimg": kimg_in(info),
        "resolution": config.img_resolution,
        "octaves": config.octaves,
        "world_px": config.img_resolution << config.octaves,
        "layers": config.num_layers + 1,
        "channels": config.img_channels,
    }
    facts |= {key: str(info[key])[:TERMS_CHARACTERS] for key in ("licence", "credit") if key in info}
    return facts
