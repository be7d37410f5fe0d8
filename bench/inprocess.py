"""The Python of one proxied request, without sockets: what the interpreter costs between two system calls.

`python -m bench.inprocess [--profile] [--bare]`: real reactor, codecs, exchange, filters, log and statistics; the
transports hand over canned bytes. The least of many rounds is stable on a busy machine, where requests per second
are not. Not for: comparison with anything else.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import trio

from agent.http.request import ConnectionInfo, PeerIdentity
from agent.table.bootstrap import load
from agent.worker.stations import HttpStation
from agent.worker.transport import PlainTransport
from agent.worker.worker import Worker
from bench.bootstraps import BARE, FULL, Hop, bootstrap
from bench.certificates import CLIENT
from bench.processes import free_port

_BATCH = 25
"""Requests timed at once: short enough to fall between two other processes' turns."""
_REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:38733\r\n\r\n"
_RESPONSE = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Mon, 23 Nov 2026 00:00:00 GMT\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 100\r\nConnection: keep-alive\r\n\r\n" + b"x" * 100
)


class _Socket:
    """Enough of a socket for a transport that never uses it."""

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        """Nothing to close."""

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", 40000)


class _Transport(PlainTransport):
    """Takes what is written; the upstream's answers at once."""

    __slots__ = ("answer",)

    def __init__(self, reactor: Any, owner: Any, answer: bytes) -> None:
        super().__init__(_Socket(), reactor, owner)  # type: ignore[arg-type]
        self.answer = answer

    def flush(self) -> None:
        self._dirty = False
        self.out.clear()
        self.backlog = 0
        if self.answer:
            self.owner.received(self.answer)


def _serve(worker: Worker) -> tuple[Any, _Transport]:
    """A downstream connection of the only listener, with an upstream that answers."""
    (space,) = worker.spaces.values()
    reactor = worker.reactor

    def dial(host: Any, config: Any, caller: Any) -> None:
        transport = _Transport(reactor, caller, _RESPONSE)
        reactor.soon(lambda: caller.connected(transport, None))

    space.dialer.dial = dial  # type: ignore[method-assign, assignment]
    (stations,) = space._stations.values()
    station = stations[0]
    assert isinstance(station, HttpStation)
    peer = PeerIdentity(uri_sans=(CLIENT,))
    connection = ConnectionInfo(1, ("127.0.0.1", 50000), ("127.0.0.1", 38733), tls=True, peer=peer)
    transport = _Transport(reactor, None, b"")
    station.open(transport, connection)
    return transport.owner, transport


def _turn(reactor: Any, received: Any) -> None:
    reactor.now = time.monotonic()
    received(_REQUEST)
    while reactor.dirty or reactor._soon:
        while reactor._soon:
            reactor._soon.popleft()()
        reactor.flush_dirty()
    if reactor.timers.next_due() <= reactor.now:
        reactor.timers.run(reactor.now)


async def _measure(features: Any, profile: bool, rounds: int, folder: Path) -> None:
    hop = Hop("hop", free_port(), free_port(), 9, folder, features=features)
    table = load(bootstrap(hop)).table
    async with trio.open_nursery() as nursery:
        worker = await nursery.start(Worker().run)
        worker.apply({"": table})
        owner, _ = _serve(worker)
        reactor, received = worker.reactor, owner.received
        for _ in range(2000):
            _turn(reactor, received)
        best = 1e9
        for _ in range(rounds):
            began = time.perf_counter()
            for _ in range(_BATCH):
                _turn(reactor, received)
            best = min(best, (time.perf_counter() - began) / _BATCH)
        print(f"{best * 1e6:.1f} us of Python a request ({'all features' if features is FULL else 'bare'})")
        if profile:
            profiler = cProfile.Profile()
            profiler.enable()
            for _ in range(10000):
                _turn(reactor, received)
            profiler.disable()
            pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(45)
        nursery.cancel_scope.cancel()


def main() -> None:
    """Print one line; with --profile the functions by their own time."""
    parser = argparse.ArgumentParser(prog="python -m bench.inprocess", description=__doc__)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--bare", action="store_true", help="without RBAC, access log and so on")
    parser.add_argument("--rounds", type=int, default=600)
    arguments = parser.parse_args()
    features = BARE if arguments.bare else FULL
    with tempfile.TemporaryDirectory(prefix="hostmesh-bench-") as folder:
        trio.run(_measure, features, arguments.profile, arguments.rounds, Path(folder))


if __name__ == "__main__":
    main()
