"""Frames a second and latency of the explorer, through its real server and WebSocket, for several clients at once.

    python benchmarks/serving.py [--network RUN|FILE --clients 1 4 16 --seconds 20 --side 256 --minutes 10 --out FILE.json]
                                 [--floods 8 --idle 600 --rounds 3]

Each client flies: its input moves 60 times a second, and it asks for the newest view as soon as the last frame has come. The
latency of a frame goes from the input that it shows to its last byte. Memory is the server's, every few seconds;
``--minutes 10`` adds a long flight of four clients for it; ``--floods`` and ``--idle`` compare the last number of clients alone
with the same among connections that ask without end, and others that ask nothing, which a process of its own holds. Clients and
attack run on the same processors as the server. Needs Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import resource
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import torch
from machine import describe, publish, result_file, served

from dnnlib.cli import reports_user_errors

ROOT = Path(__file__).resolve().parent.parent
INPUT_SECONDS = 1 / 60
SAMPLE_SECONDS = 5.0
ATTACK_SECONDS = 3.0
"""Before the clients fly among an attack that has begun, and after its end."""


@dataclass
class Flight:
    """What one client saw."""

    latencies: list[float] = field(default_factory=list)
    render_ms: list[float] = field(default_factory=list)
    bytes: int = 0


def view(seconds: float, client: int, side: int, octaves: float) -> dict[str, Any]:
    """The region that a client looks at: in and out of the world, wandering, the same for every run."""
    depth = (octaves - math.log2(side / 64)) * (0.5 - 0.5 * math.cos(seconds / 5 + client))
    zoom = 2.0 ** max(depth, 0)
    reach = (1 - 1 / zoom) / 2
    x, y = reach * math.sin(seconds / 7 + client), reach * math.cos(seconds / 9 + 2 * client)
    pitch = 1 / (zoom * side)
    return {"left": x - pitch * side / 2, "top": y - pitch * side / 2, "pitch": pitch, "width": side, "height": side}


async def fly(url: str, client: int, side: int, octaves: float, until: float) -> Flight:
    """One client's flight through a WebSocket of its own."""
    flight = Flight()
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}/ws", max_msg_size=0) as socket:
        number = 0
        while (now := time.perf_counter()) < until:
            moved = now - now % INPUT_SECONDS  # the newest input
            request = {
                "type": "frame",
                "id": number,
                "slot": "main",
                "network": None,
                "world": str(client),
                "trunc": 1.0,
            }
            request |= {"quality": "draft", "extrapolate": False, "error": False}
            await socket.send_str(json.dumps(request | view(moved, client, side, octaves)))
            while True:
                message = await socket.receive(timeout=120)
                if message.type is aiohttp.WSMsgType.BINARY:
                    length = int.from_bytes(message.data[:4], "big")
                    header = json.loads(message.data[4 : 4 + length])
                    if header["id"] == number:
                        break
                elif message.type is not aiohttp.WSMsgType.TEXT or json.loads(message.data)["type"] == "error":
                    raise RuntimeError(f"The server answered {message}.")
            flight.latencies.append(time.perf_counter() - moved)
            flight.render_ms.append(header["render_ms"])
            flight.bytes += len(message.data)
            number += 1
    return flight


def frame_of_websocket(text: str) -> bytes:
    """A client's text message as it goes over the wire, its mask zero."""
    data = text.encode()
    return struct.pack(">BBH4x", 0x81, 0x80 | 126, len(data)) + data


async def flood(url: str, client: int, side: int, sent: list[int]) -> asyncio.Future[Any]:
    """Connect, then ask for other views as fast as the connection takes it, and read what comes: what is returned, for ever.

    Messages are made beforehand, so that this takes next to nothing of processors that the server may run on.
    """
    messages = []
    for number in range(12 * 97):
        request = {"type": "frame", "id": number, "slot": f"s{number % 12}", "world": f"{client}{number % 97}"}
        request |= {"quality": "draft", **view(number / 50, client, side, 6)}
        messages.append(frame_of_websocket(json.dumps(request)))
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(
        f"GET /ws HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    if b" 101 " not in await reader.readline():
        raise RuntimeError("The server takes no WebSocket.")

    async def read() -> None:
        while await reader.read(1 << 16):
            pass
        raise RuntimeError("The server has closed a flood; it is to be measured under it.")

    async def write() -> None:
        while True:
            for first in range(0, len(messages), 100):
                chosen = messages[first : first + 100]
                writer.write(b"".join(chosen))
                await writer.drain()
                sent[0] += len(chosen)

    return asyncio.gather(read(), write())


async def idle(url: str, begun: bytes, opened: list[int]) -> None:
    """Connections of which nothing, or half of a request, comes; opened again when the server has closed them."""
    parts = urlsplit(url)
    while True:
        try:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            opened[0] += 1
            writer.write(begun)
            await reader.read()
            writer.close()
        except OSError:
            pass
        await asyncio.sleep(1)


def attack(url: str, floods: int, idles: int, side: int, stop: Any, counts: Any) -> None:
    """Flood and idle until told to stop; ``counts`` becomes messages sent, connections opened, and seconds."""

    async def work() -> None:
        sent, opened, start = [0], [0], time.perf_counter()
        others: list[asyncio.Future[Any]] = [await flood(url, i, side, sent) for i in range(floods)]
        others += [asyncio.create_task(idle(url, b"GET / HT" if i % 2 else b"", opened)) for i in range(idles)]
        while not stop.is_set():
            counts[:] = sent[0], opened[0], time.perf_counter() - start
            await asyncio.sleep(0.2)
            if ended := [other for other in others if other.done()]:
                await ended[0]
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
    asyncio.run(work())


async def resident(pid: int, samples: list[float]) -> None:
    """Append the server's resident memory in MB every few seconds."""
    while True:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        samples.append(next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")))
        await asyncio.sleep(SAMPLE_SECONDS)


async def attacked(url: str, pid: int, options: argparse.Namespace, octaves: float) -> dict[str, Any]:
    """Fly the last number of clients alone and among floods and idle connections, in turns: the machine may do other work.

    ``p95_times`` is the 95th percentile of all latencies of the clients under attack over that of the same clients alone, in
    each round; ``p95_times_of_worst`` the same of the client that is worst off.
    """
    context = multiprocessing.get_context("spawn")
    rounds = []
    for _ in range(options.rounds):
        quiet = await measure(url, pid, options.clients[-1], options.seconds, options.side, octaves)
        stop, counts = context.Event(), context.Array("d", 3)
        arguments = url, options.floods, options.idle, options.side, stop, counts
        other = context.Process(target=attack, args=arguments, daemon=True)  # ends with this one, whatever ends it
        other.start()
        while not counts[2] and other.exitcode is None:
            await asyncio.sleep(0.1)
        await asyncio.sleep(ATTACK_SECONDS)
        under = await measure(url, pid, options.clients[-1], options.seconds, options.side, octaves)
        if other.exitcode is not None:
            raise SystemExit("The attack has ended early.")
        stop.set()
        other.join()
        await asyncio.sleep(ATTACK_SECONDS)
        messages, connections, lasted = (float(counts[i]) for i in range(3))
        rounds.append(
            {
                "load": os.getloadavg()[0],
                "messages_per_sec": messages / lasted,
                "connections_per_sec": connections / lasted,
                "quiet": quiet,
                "under": under,
                "p95_times": under["latency_ms"]["p95"] / quiet["latency_ms"]["p95"],
                "p95_times_of_worst": under["latency_ms"]["p95_of_worst"] / quiet["latency_ms"]["p95_of_worst"],
            }
        )
    return {"floods": options.floods, "idle": options.idle, "rounds": rounds}


def cpu_seconds(pid: int) -> float:
    """That a process has taken so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(url: str, pid: int, clients: int, seconds: float, side: int, octaves: float) -> dict[str, Any]:
    """Fly ``clients`` at once and sum up."""
    memory: list[float] = []
    sampler = asyncio.create_task(resident(pid, memory))
    start, cpu = time.perf_counter(), cpu_seconds(pid)
    flights = await asyncio.gather(*(fly(url, i, side, octaves, start + seconds) for i in range(clients)))
    took = time.perf_counter() - start
    sampler.cancel()
    cpu = (cpu_seconds(pid) - cpu) / took
    each_p95 = [1000 * float(np.quantile(flight.latencies, 0.95)) for flight in flights]
    latencies = 1000 * np.concatenate([flight.latencies for flight in flights])
    counts = [len(flight.latencies) for flight in flights]
    return {
        "clients": clients,
        "seconds": round(took, 1),
        "frames_per_sec": sum(counts) / took,
        "frames_per_sec_of_each": [min(counts) / took, max(counts) / took],
        "latency_ms": {
            "p50": float(np.median(latencies)),
            "p95": float(np.quantile(latencies, 0.95)),
            "p95_of_worst": max(each_p95),
        },
        "server_cores": cpu,
        "render_ms": float(np.median(np.concatenate([flight.render_ms for flight in flights]))),
        "bytes_a_frame": sum(flight.bytes for flight in flights) / sum(counts),
        "server_mb": [memory[0], max(memory), memory[-1]],
    }


async def flights(options: argparse.Namespace, url: str, pid: int) -> dict[str, Any]:
    """All flights of a report."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/api/info") as answer:
        info = await answer.json()
    network = next(entry for entry in info["networks"] if entry["name"] == info["default"])
    octaves = math.log2(network["world_px"] / 64)
    await measure(url, pid, 1, 3, options.side, octaves)  # warm-up
    rows = [await measure(url, pid, n, options.seconds, options.side, octaves) for n in options.clients]
    report = {"device": info["device"], "network": network["name"], "side": options.side, "flights": rows}
    if options.floods or options.idle:
        report["attacked"] = await attacked(url, pid, options, octaves)
    if options.minutes:
        report["long"] = await measure(url, pid, 4, options.minutes * 60, options.side, octaves)
    return report


@reports_user_errors
def main() -> None:
    """Measure, print, and write the JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", help="run or snapshot (default: as zoom.py chooses)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16], help="clients at once (default 1 4 16)")
    parser.add_argument("--seconds", type=float, default=20, help="of each flight (default 20)")
    parser.add_argument("--minutes", type=float, default=0, help="of a long flight of four clients (default none)")
    parser.add_argument("--side", type=int, default=256, help="side of a frame in pixels (default 256)")
    parser.add_argument("--floods", type=int, default=0, help="connections that ask without end (default none)")
    parser.add_argument("--idle", type=int, default=0, help="connections that ask nothing (default none)")
    parser.add_argument("--rounds", type=int, default=3, help="alone and among them, in turns (default 3)")
    parser.add_argument("--out", type=result_file, help="JSON file to write")
    options = parser.parse_args()
    network = ["--network", options.network] if options.network else []
    with served(str(ROOT / "zoom.py"), "--no-browser", *network) as (url, process):
        report = asyncio.run(flights(options, url, process))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    publish({"machine": describe(torch.get_num_threads(), device), **report}, options.out)


if __name__ == "__main__":
    main()
