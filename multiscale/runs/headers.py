"""Snapshot files without their weights, none of which needs PyTorch: which one is meant, and what its header says."""

from __future__ import annotations

import contextlib
import glob
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dnnlib.console import say
from dnnlib.errors import REFUSED, UserError
from dnnlib.reading import HEAD_BYTES, each_once, from_json, kind_of, parsed, regular_size
from multiscale.config import GeneratorConfig
from multiscale.runs.migrations import check_version, read_stored
from multiscale.runs.remote import BUNDLED_FOLDER, bundled_networks, existing_path, is_remote, local_path

FORMAT = "multiscale-generator"
PATTERN = "generator-*.safetensors"
PUBLISHED = ".pkl"
"""How the name of a file of the published code ends."""
DAMAGED = "{path} is not a whole safetensors file ({reason}); it may be truncated: copy it again, or use an older one."
WANTED = f"the folder of a run or of runs, a {PATTERN} file, or a {PUBLISHED}"
METADATA = "The metadata of {path} are damaged; use another snapshot of the run."
CHECKSUM = "sha256"
"""Key of the checksum of a file's tensors; files of earlier versions have none, and are not checked."""
HEADER_BYTES = 100_000_000
"""Of a safetensors file, as its format allows."""

RUNS = Path("runs")
"""Where runs are that were given no other folder."""
BUNDLED = BUNDLED_FOLDER / "earth64.safetensors"
"""The bundled model, trained on the Earth (docs/lab/earth64.md): 64 x 64 pixels, 6 octaves; parameters in half precision,
training settings in its metadata."""


def is_published(path: Path) -> bool:
    """Whether a file is named as pickles of the published code are."""
    return path.suffix.lower() == PUBLISHED


def read_header(path: Path) -> tuple[GeneratorConfig, dict[str, Any]]:
    """Config and facts of a snapshot, without reading weights.

    Raises:
        UserError: as ``load_snapshot``, but for what is wrong with the weights.
    """
    if is_published(path):
        from multiscale.interop.pickles import load_published  # here: it takes PyTorch, which takes seconds

        published = load_published(path)  # whose header is all over the file
        return published.generator.config, published.info
    with opened(path) as file:
        return file.meaning({})[0], file.info


@dataclass(frozen=True)
class SnapshotFile:
    """A snapshot file that is open, and what its header says."""

    path: Path
    settings: Any
    info: dict[str, Any]
    version: int
    checksum: str | None
    """Of the tensors that were saved; None if it does not say."""
    header: bytes
    rest: int
    """Bytes behind the header, where the tensors are."""
    stream: IO[bytes]

    def whole(self) -> bytes:
        """All bytes of the file, read once: what is used of them and their digest go together, whatever happens on disk."""
        return self.header + self.stream.read(self.rest)

    def meaning(self, weights: dict[str, Any]) -> tuple[GeneratorConfig, dict[str, Any]]:
        """The config, and the weights, as they are meant now."""
        contents = {"config": {"generator": self.settings}, "G_ema": weights}
        config, contents = parsed(
            lambda: read_stored(contents, version=self.version, source=str(self.path)),
            METADATA.replace("{path}", str(self.path)),
        )
        return config.generator, contents["G_ema"]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[SnapshotFile]:
    """The file, once its header has turned out to be a snapshot's, and the file as long as the header says."""
    size = regular_size(path, "the network")
    try:
        with open(path, "rb") as stream:
            yield parsed(lambda: _headed(path, stream, size), DAMAGED.replace("{path}", str(path)))
    except OSError as error:
        raise UserError(f"Cannot read the network {path}: {error.strerror or error}.") from error


def _headed(path: Path, stream: IO[bytes], size: int) -> SnapshotFile:
    """Read a header: its length in 8 bytes, then JSON that places each tensor in the bytes behind it."""
    head = stream.read(HEAD_BYTES)
    length = int.from_bytes(head[:8], "little")
    if length > min(HEADER_BYTES, size - 8):
        kind = None if head[8:9] == b"{" else kind_of(head)  # a header's first byte
        if kind is not None:
            better = _better_than_state(path) if kind == "a ZIP" else None
            raise UserError(better or f"{path} is {kind}, not a network; give {WANTED}.")
        raise ValueError(f"its header claims {length} bytes" if length <= HEADER_BYTES else "it begins otherwise")
    header = head + stream.read(length + 8 - len(head))
    values = dict(from_json(header[8:]))
    metadata = values.pop("__metadata__", None) or {}
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path} is a safetensors file but not a generator of this program; give a {PATTERN} file of a run."
        )
    version = metadata.get("format_version", "")
    if not re.fullmatch(r"[1-9][0-9]{0,3}", version):
        raise UserError(f"{path} does not say which snapshot format it has; its metadata are damaged: use another one.")
    check_version(int(version), kind="snapshot", source=str(path))
    rest = max((tensor["data_offsets"][1] for tensor in values.values()), default=0)
    if len(header) + rest != size:
        raise ValueError(f"it has {size} bytes and should have {len(header) + rest}")
    settings, info = parsed(
        lambda: (from_json(metadata["config"]), dict(from_json(metadata["info"]))),
        METADATA.replace("{path}", str(path)),
    )
    return SnapshotFile(path, settings, info, int(version), metadata.get(CHECKSUM), header, rest, stream)


def _better_than_state(path: Path) -> str | None:
    """A sentence on what to give in place of a training state, which is a ZIP of PyTorch; None: it is another ZIP."""
    name = re.search(r"state-(\d+)\.pt$", path.name)
    try:
        with zipfile.ZipFile(path) as archive:
            if not any(member.endswith("/data.pkl") for member in archive.namelist()):
                return None
    except zipfile.BadZipFile:
        if name is None:
            return None
    beside = snapshots_of(path.parent)
    same = [snapshot for snapshot in beside if name is not None and snapshot.stem.endswith(f"-{name[1]}")]
    better = f"{(same or beside)[-1]}, the snapshot beside it" if beside else f"a {PATTERN} file of its run"
    return f"{path} is a training state (for --resume and --transfer), not a network to render; give {better}."


def find_network(network: str | Path | None, tell: Callable[[str], object] | None = None) -> Path:
    """The file meant by ``--network``: a file, the newest of a run's folder, the one written last by any run in a folder of
    runs, a name to fetch, or (None) the one written last by any run in ``runs``.

    Names are ``earth``, ``https://...`` and ``hf://owner/repo`` (:mod:`multiscale.runs.remote`). Without any run it is the
    bundled model.

    Args:
        network: As the user typed it; None: nothing was typed.
        tell: Told which network it is if neither that nor its run was typed (:func:`choice`).

    Raises:
        UserError: what was named does not exist or holds no snapshot.
    """
    if network is None:
        found = written_last(RUNS, snapshots_of) or BUNDLED
    else:
        found = existing_path(network, WANTED)
        if found.is_dir():
            found = _newest_in(found)
    if tell is not None and (sentence := choice(found, network)) is not None:
        tell(sentence)
    return found


def _newest_in(folder: Path) -> Path:
    """The newest snapshot of a run's folder, or the one written last by any run in a folder of runs."""
    if own := snapshots_of(folder):
        return own[-1]
    found = written_last(folder, snapshots_of)
    if found is None:
        raise UserError(
            f"The folder {folder} holds no snapshot ({PATTERN}), nor does a folder in it; give the folder of a run or a file."
        )
    return found


def find_networks(texts: Sequence[str]) -> list[Path]:
    """Snapshot files selected by ``--network``: files, folders of runs (their newest), patterns; none: the one written last.

    Each file is there once, in the place where it was first named, however often and by whichever paths it was named.

    Raises:
        UserError: one of them is not there, or a pattern matches nothing.
    """
    found: list[Path] = []
    for text in texts:
        if glob.has_magic(text) and not is_remote(text) and not Path(text).exists():
            matches = [Path(name) for name in glob.glob(text)]
            if not matches:
                raise UserError(f"No file matches --network {text!r}; give a file, the folder of a run or a pattern.")
            numbered = [path for folder in sorted({m.parent for m in matches}) for path in snapshots_of(folder)]
            others = sorted(set(matches) - set(numbered))
            found += [path for path in numbered if path in matches] + [find_network(path) for path in others]
        else:
            found.append(find_network(text, say))
    return each_once(found, Path.resolve) if texts else [find_network(None, say)]


def choice(path: Path, network: str | Path | None, option: str = "--network") -> str | None:
    """A sentence on a network that nobody named: which it is, how far it was trained, and what names another.

    Args:
        path: As of :func:`find_network`.
        network: What that was given.
        option: What takes a network.

    Returns:
        None if the network, or its run, was named.
    """
    place = RUNS if network is None else local_path(network)
    if network is not None and (not place.is_dir() or path.parent == place):
        return None
    kimg = kimg_of(path)
    trained = "" if kimg is None else f" ({kimg:,.0f} kimg)" if kimg >= 100 else f" ({kimg:.3g} kimg)"
    if path == BUNDLED:
        return f"Using the bundled model{trained}; {option} takes another."
    if kimg == 0:
        return (
            f"Using {path}, the snapshot written last in {place}, which is untrained (0 kimg) and shows noise; "
            f"{option} takes another, such as the bundled model, {next(iter(bundled_networks()))}."
        )
    return f"Using {path}{trained}, the snapshot written last in {place}; {option} takes another."


def kimg_of(path: Path) -> float | None:
    """Thousands of images that a snapshot was trained with, by its header; None if that does not say, or cannot be read."""
    try:
        return kimg_in(read_header(path)[1])
    except (UserError, *REFUSED):
        return None


def kimg_in(info: Mapping[str, Any]) -> float | None:
    """Thousands of images by the facts beside a snapshot's weights, which anybody may have written; None if they do not say."""
    kimg = info.get("kimg")
    return kimg if isinstance(kimg, int | float) and math.isfinite(kimg) else None


def snapshots_of(run: Path) -> list[Path]:
    """Snapshot files of a run's folder, oldest first (by images shown)."""
    found = [(int(m[1]), path) for path in run.glob(PATTERN) if (m := re.search(r"-(\d+)\.safetensors$", path.name))]
    return [path for _, path in sorted(found)]


def written_last(folder: Path, files_of: Callable[[Path], Sequence[Path]]) -> Path | None:
    """The file written last by any run in a folder of runs; None if there is none.

    Args:
        folder: Which need not be there.
        files_of: The files of a run's folder that count, such as :func:`snapshots_of`.
    """
    runs = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    found = [file for run in runs for file in files_of(run)]
    return max(found, key=lambda path: (path.stat().st_mtime, path.name), default=None)
