"""A worker of `hostmesh-agent run`: what it serves, and when it ends, comes from the host process by a socketpair.

Rule: of a configuration everything is applied that can be used; the rest is named, its last good version serving on.
Signals are the host's business: they reach the whole process group, and a worker must outlive its host to let
connections finish. When the host process is gone, nothing new comes (its nftables table is gone too): the worker drains
and ends.
Not for: the frames (control), what applying means (worker).
"""

from __future__ import annotations

import logging
import signal
import socket
import sys
from typing import Any

import trio

from agent.limits.region import LimitsRegion, Shares
from agent.table.build import Refused, TableBuilder
from agent.table.snapshot import Table
from agent.telemetry.stats import StatsRegion
from agent.worker import control, orders
from agent.worker.connect import MARK
from agent.worker.tls_contexts import TlsError
from agent.worker.worker import Worker

_READ = 1 << 20
_LOG_BACKLOG = 1000
_log = logging.getLogger("hostmesh.worker")


def main() -> None:
    """Serve the socketpair whose descriptor is the first argument. Where there are other workers, the second is the
    descriptor of their limits, and the third this worker's number."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    shares = None
    if len(sys.argv) > 2:
        shares = Shares(LimitsRegion.attach(int(sys.argv[2])), int(sys.argv[3]))
    serve(RemoteWorker(sock, shares))


def serve(worker: RemoteWorker) -> None:
    """Run until drained."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    trio.run(worker.run, strict_exception_groups=True)


class RemoteWorker:
    """One worker and its conversation. Invariant: every configuration gets one verdict, every question one answer."""

    added_via_api = True
    """What /clusters says of the clusters."""

    def __init__(self, sock: socket.socket, shares: Shares | None = None) -> None:
        self._region = StatsRegion.create()
        socket.send_fds(sock, [control.encode(control.STATS)], [self._region.fd])
        self._socket = trio.socket.from_stdlib_socket(sock)
        self._shares = shares
        self._sending = trio.Lock()
        self._worker: Worker | None = None
        self._builders: dict[str, TableBuilder] = {}
        self._draining = False
        self._orphan_seconds = control.ORPHAN_SECONDS

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
                await self._drain(self._orphan_seconds, nursery)

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

    async def _handle(self, kind: bytes, payload: bytes, nursery: trio.Nursery) -> None:
        if kind == control.CONFIG:
            await self._configure(control.Config.decode(payload), nursery)
        elif kind == control.DRAIN:
            self._draining = True
            nursery.start_soon(self._drain, float(control.decode_json(payload)["seconds"]), nursery)
        elif kind == control.QUERY:
            question = control.decode_json(payload)
            answer = None
            if self._worker is not None:
                what = str(question["what"])
                answer = orders.obey(self._worker, what, question, added_via_api=self.added_via_api)
            await self._send(control.encode_json(control.ANSWER, id=question["id"], answer=answer))
        elif kind == control.REOPEN and self._worker is not None:
            for error in self._worker.sinks.reopen():
                _log.warning("a log cannot be opened anew: %s", error)

    async def _configure(self, config: control.Config, nursery: trio.Nursery) -> None:
        if self._worker is None:
            self._worker = self._new_worker()
            self._worker.on_listening = lambda: nursery.start_soon(self._report_listening)
            await nursery.start(self._worker.run)
        self._orphan_seconds = float(config.settings.get("drainSeconds", control.ORPHAN_SECONDS))
        for key, side in config.settings.get("sides", {}).items():
            if key not in self._worker.spaces:
                self._worker.describe(key, side["node"], side["principal"])
        try:
            refused = control.refusals_to_json(self._apply(self._worker, config))
        except Exception as error:
            # Not a resource's fault alone, or it would have been named: all of it is left, and the worker serves on.
            if not isinstance(error, OSError | ValueError | TlsError):
                _log.exception("a configuration cannot be applied")
            frame = control.encode_json(control.REFUSED, generation=config.generation, reason=str(error))
        else:
            frame = control.encode_json(
                control.APPLIED, generation=config.generation, refused=refused, **self._listening()
            )
        await self._send(frame)

    def _listening(self) -> dict[str, Any]:
        assert self._worker is not None
        return {"listening": sorted(self._worker.listening()), "waiting": self._worker.waiting()}

    async def _report_listening(self) -> None:
        await self._send(control.encode_json(control.LISTENING, **self._listening()))

    def _new_worker(self) -> Worker:
        return Worker(self._region, mark=_may_mark(), shares=self._shares, ports_may_wait=True)

    def _apply(self, worker: Worker, config: control.Config) -> dict[str, tuple[Refused, ...]]:
        """Take what the host process wants to be served; what of it cannot be used, by workload."""
        tables: dict[str, Table] = {}
        refused: dict[str, tuple[Refused, ...]] = {}
        for workload in config.workloads:
            built = self._builders.setdefault(workload.key, TableBuilder()).build(workload.resources)
            tables[workload.key], refused[workload.key] = built.table, built.refused
        for key, found in worker.apply(tables).items():
            for one in found:
                if not one.in_use:
                    self._builders[key].reject(one.type_url, one.name)
            refused[key] += found
        for key in [key for key in self._builders if key not in tables]:
            del self._builders[key]
        return refused

    async def _drain(self, seconds: float, nursery: trio.Nursery) -> None:
        """Let connections finish, and end; a second order may leave them less time."""
        if self._worker is not None:
            await self._worker.drain(seconds)
        nursery.cancel_scope.cancel()

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
