"""A worker of `hostmesh-agent run`: what it serves, and when it ends, comes from the host process by a socketpair.

Rule: a configuration is applied whole or refused with the reason, the old one serving on. Signals are the host's
business: they reach the whole process group, and a worker must outlive its host to let connections finish. When the
host process is gone, nothing new comes (its nftables table is gone too): the worker drains and ends.
Not for: the frames (control), what applying means (worker).
"""

from __future__ import annotations

import logging
import signal
import socket
import sys
from typing import Any

import trio

from agent.table.build import TableBuilder
from agent.telemetry.stats import StatsRegion
from agent.upstream.view import cluster_view
from agent.worker import control
from agent.worker.connect import MARK
from agent.worker.worker import Worker

ORPHAN_SECONDS = 30.0
"""How long connections may go on after the host process is gone."""
_READ = 1 << 20
_LOG_BACKLOG = 1000
_log = logging.getLogger("hostmesh.worker")


def main() -> None:
    """Serve the socketpair whose descriptor is the first argument."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sock = socket.socket(fileno=int(sys.argv[1]))
    region = StatsRegion.create()
    socket.send_fds(sock, [control.encode(control.STATS)], [region.fd])
    trio.run(RemoteWorker(trio.socket.from_stdlib_socket(sock), region).run, strict_exception_groups=True)


class RemoteWorker:
    """One worker and its conversation. Invariant: every configuration gets one verdict, every question one answer."""

    def __init__(self, sock: trio.socket.SocketType, region: StatsRegion) -> None:
        self._socket, self._region = sock, region
        self._sending = trio.Lock()
        self._worker: Worker | None = None
        self._builders: dict[str, TableBuilder] = {}
        self._draining = False

    async def run(self) -> None:
        """Serve until drained."""
        records, received = trio.open_memory_channel[dict[str, str]](_LOG_BACKLOG)
        logging.getLogger().handlers[:] = [_ToHost(records)]
        logging.getLogger().setLevel(logging.INFO)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._forward_logs, received)
            await self._listen(nursery)
            # The host process is gone, or has closed its end.
            if not self._draining:
                await self._drain(ORPHAN_SECONDS)
            nursery.cancel_scope.cancel()

    async def _listen(self, nursery: trio.Nursery) -> None:
        reader = control.FrameReader()
        while True:
            try:
                data = await self._socket.recv(_READ)
            except ConnectionResetError:
                return
            if not data:
                return
            for kind, payload in reader.feed(data):
                await self._handle(kind, payload, nursery)
                if self._draining and kind == control.DRAIN:
                    return

    async def _handle(self, kind: bytes, payload: bytes, nursery: trio.Nursery) -> None:
        if kind == control.CONFIG:
            await self._configure(control.Config.decode(payload), nursery)
        elif kind == control.DRAIN:
            self._draining = True
            await self._drain(float(control.decode_json(payload)["seconds"]))
        elif kind == control.QUERY:
            question = control.decode_json(payload)
            answer = self._answer(str(question["what"]))
            await self._send(control.encode_json(control.ANSWER, id=question["id"], answer=answer))
        elif kind == control.REOPEN and self._worker is not None:
            for error in self._worker.sinks.reopen():
                _log.warning("a log cannot be opened anew: %s", error)

    async def _configure(self, config: control.Config, nursery: trio.Nursery) -> None:
        if self._worker is None:
            self._worker = Worker(self._region, mark=_may_mark())
            await nursery.start(self._worker.run)
        for key, side in config.settings.get("sides", {}).items():
            if key not in self._worker.spaces:
                self._worker.describe(key, side["node"], side["principal"])
        try:
            tables = {}
            for workload in config.workloads:
                builder = self._builders.setdefault(workload.key, TableBuilder())
                tables[workload.key] = builder.build(workload.resources)
            self._worker.apply(tables)
        except (OSError, ValueError) as error:
            frame = control.encode_json(control.REFUSED, generation=config.generation, reason=str(error))
        else:
            frame = control.encode_json(control.APPLIED, generation=config.generation)
        await self._send(frame)

    async def _drain(self, seconds: float) -> None:
        if self._worker is not None:
            await self._worker.drain(seconds)

    def _answer(self, what: str) -> Any:
        spaces = self._worker.spaces if self._worker is not None else {}
        if what == "clusters":
            return [
                cluster_view(cluster, added_via_api=True)
                for space in spaces.values()
                for cluster in space.clusters.values()
            ]
        if what == "connections":
            return {key: space.connections() for key, space in spaces.items()}
        return None

    async def _send(self, frame: bytes) -> None:
        async with self._sending:
            view = memoryview(frame)
            try:
                while view:
                    view = view[await self._socket.send(view) :]
            except (BrokenPipeError, ConnectionResetError):
                return  # nobody is there to hear it; the end of input says what follows

    async def _forward_logs(self, records: trio.MemoryReceiveChannel[dict[str, str]]) -> None:
        async for record in records:
            await self._send(control.encode_json(control.LOG, **record))


class _ToHost(logging.Handler):
    """Log records become frames; more than the backlog are dropped, a worker never waits for its log."""

    def __init__(self, records: trio.MemorySendChannel[dict[str, str]]) -> None:
        super().__init__()
        self._records = records
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one record."""
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        try:
            self._records.send_nowait({"level": record.levelname, "logger": record.name, "message": text})
        except (trio.WouldBlock, trio.BrokenResourceError):
            self.dropped += 1


def _may_mark() -> bool:
    """Whether this process may set socket marks (CAP_NET_ADMIN or CAP_NET_RAW); else its user tells its traffic."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
        except PermissionError:
            return False
    return True
