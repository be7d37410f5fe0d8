"""The processor time of one proxied request in one process: real reactor, codecs, exchange, filters, log, statistics.

`python -m bench.inprocess [--bare] [--profile]`: both ends of the proxy are socket pairs that this process also serves, so
that nothing is scheduled. The least of many rounds is stable on a busy machine, where requests per second are not.
With --profile the sources run interpreted and their functions are listed by their own time. Not for: comparison with
anything else.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if "--profile" in sys.argv:
    os.environ["HOSTMESH_INTERPRETED"] = "1"

import trio

from agent import compiled
from agent.http.request import ConnectionInfo, PeerIdentity
from agent.table.bootstrap import load
from agent.worker.http_station import HttpStation
from agent.worker.transport import Nobody, PlainTransport
from agent.worker.worker import Worker
from bench.bootstraps import BARE, FULL, Hop, bootstrap
from bench.certificates import CLIENT
from bench.processes import free_port

_BATCH = 20
"""Requests timed at once: short enough to fall between two other processes' turns."""
_REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:38733\r\n\r\n"
_RESPONSE = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Mon, 23 Nov 2026 00:00:00 GMT\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 100\r\nConnection: keep-alive\r\n\r\n" + b"x" * 100
)
_READABLE = 1


def _pair() -> tuple[socket.socket, socket.socket]:
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    return near, far


class _Proxy:
    """A downstream connection of a worker's only listener, and the upstream connection that it opens."""

    def __init__(self, worker: Worker) -> None:
        self.reactor = worker.reactor
        (space,) = worker.spaces.values()
        self._upstream: tuple[socket.socket, PlainTransport] | None = None
        space.dialer = self  # type: ignore[assignment]
        (stations,) = space._stations.values()
        station = stations[0]
        assert isinstance(station, HttpStation)
        self._client, ours = _pair()
        self._downstream = PlainTransport(ours, self.reactor, Nobody())
        peer = PeerIdentity(uri_sans=(CLIENT,))
        station.open(
            self._downstream,
            ConnectionInfo(1, ("127.0.0.1", 50000), ("127.0.0.1", 38733), tls=True, peer=peer),
        )
        self._downstream.start()

    def dial(self, host: Any, config: Any, caller: Any) -> None:
        """See Dialer: the other end is this process."""
        server, ours = _pair()
        transport = PlainTransport(ours, self.reactor, caller)
        transport.start()
        self._upstream = server, transport
        self.reactor.soon(lambda: caller.connected(transport, None))

    def request(self) -> None:
        """One request and its response, through."""
        self._client.send(_REQUEST)
        self._event(self._downstream)
        assert self._upstream is not None
        server, transport = self._upstream
        server.recv(4096)
        server.send(_RESPONSE)
        self._event(transport)
        if not self._client.recv(4096).startswith(b"HTTP/1.1 200"):
            raise SystemExit("bench.inprocess: the response did not come through")

    def _event(self, transport: PlainTransport) -> None:
        reactor = self.reactor
        reactor.now = time.monotonic()
        transport.on_event(_READABLE)
        while reactor.dirty or reactor._soon:
            while reactor._soon:
                reactor._soon.popleft()()
            reactor.flush_dirty()


def _floor() -> Callable[[], None]:
    """The same bytes through as many sockets, with no proxy."""
    here, there = _pair()

    def turn() -> None:
        for _ in range(2):
            here.send(_REQUEST)
            there.recv(65536)
            there.send(_RESPONSE)
            here.recv(65536)

    return turn


def _best(turn: Callable[[], None], rounds: int) -> float:
    """Microseconds of the quickest round, for one call."""
    best = 1e9
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(_BATCH):
            turn()
        best = min(best, time.perf_counter() - began)
    return best / _BATCH * 1e6


async def _measure(features: Any, profile: bool, rounds: int, folder: Path) -> None:
    hop = Hop("hop", free_port(), free_port(), 9, folder, features=features)
    table = load(bootstrap(hop)).table
    async with trio.open_nursery() as nursery:
        worker = await nursery.start(Worker().run)
        worker.apply({"": table})
        proxy = _Proxy(worker)
        for _ in range(2000):
            proxy.request()
        took, floor = _best(proxy.request, rounds), _best(_floor(), rounds)
        print(
            f"{took:.1f} us a request, {floor:.1f} us of it the sockets "
            f"({'all features' if features is FULL else 'bare'}, "
            f"{'compiled' if compiled.active() else 'interpreted'})"
        )
        if profile:
            profiler = cProfile.Profile()
            profiler.enable()
            for _ in range(10000):
                proxy.request()
            profiler.disable()
            pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(45)
        nursery.cancel_scope.cancel()


def main() -> None:
    """Print one line; with --profile the functions by their own time."""
    parser = argparse.ArgumentParser(prog="python -m bench.inprocess", description=__doc__)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--bare", action="store_true", help="without RBAC, access log and so on")
    parser.add_argument("--rounds", type=int, default=400)
    arguments = parser.parse_args()
    features = BARE if arguments.bare else FULL
    with tempfile.TemporaryDirectory(prefix="hostmesh-bench-") as folder:
        trio.run(_measure, features, arguments.profile, arguments.rounds, Path(folder))


if __name__ == "__main__":
    main()
