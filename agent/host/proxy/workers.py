"""`hostmesh-agent proxy` with several workers: forked children, and this parent, which has the admin pages.

Rule: the workers live and end together: when one ends by itself, the others drain and the proxy ends with status 1, for
its supervisor to start it anew. What a dead worker held of the host's limits is free at once. SIGTERM drains, a second
one ends; SIGHUP and SIGUSR1 reopen the access logs. When the parent is gone, the workers drain.
Not for: what a worker does (agent.worker.forked), one worker (agent.worker.standalone).
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import socket
from pathlib import Path
from typing import Any

import trio

from agent.host.proxy.admin import Workers, serve
from agent.host.workers.worker_process import WorkerGone, WorkerProcess
from agent.limits.region import LimitsRegion, Shares
from agent.table.bootstrap import Bootstrap
from agent.telemetry import reading
from agent.telemetry.stats import StatsRegion
from agent.worker import remote
from agent.worker.control import Config
from agent.worker.forked import ForkedWorker
from agent.worker.standalone import DRAIN_SECONDS, ENDING, REOPENING, refuse

_log = logging.getLogger("hostmesh.proxy")
_BEGIN = Config(1, ()).encode()


def run(config: Path, bootstrap: Bootstrap, count: int, flush_seconds: float) -> None:
    """Serve the bootstrap until SIGTERM; exits with status 1 and the reason when that cannot be done."""
    limits = LimitsRegion.create(count)
    children: list[tuple[int, socket.socket]] = []
    for number in range(count):
        ours, theirs = socket.socketpair()
        child = os.fork()
        if child == 0:
            for _, sock in (*children, (0, ours)):
                sock.close()
            remote.serve(ForkedWorker(theirs, Shares(limits, number), bootstrap, flush_seconds))
            return
        theirs.close()
        children.append((child, ours))
    reasons = trio.run(_parent, config, bootstrap, limits, children, strict_exception_groups=True)
    if reasons:
        refuse("; ".join(reasons))


async def _parent(
    config: Path, bootstrap: Bootstrap, limits: LimitsRegion, children: list[tuple[int, socket.socket]]
) -> list[str]:
    workers = [
        WorkerProcess(number, ForkedProcess(pid), trio.socket.from_stdlib_socket(sock))
        for number, (pid, sock) in enumerate(children)
    ]
    return await _Parent(config, bootstrap, limits, workers).run()


class ForkedProcess:
    """A child made by fork, with as much of trio.Process as a WorkerProcess needs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._pidfd = os.pidfd_open(pid)
        self._waiting = trio.Lock()

    async def wait(self) -> int:
        """Its exit status, as subprocess has it."""
        async with self._waiting:
            if self.returncode is None:
                await trio.lowlevel.wait_readable(self._pidfd)
                self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])  # noqa: ASYNC222 (it has ended)
                os.close(self._pidfd)
        return self.returncode

    def kill(self) -> None:
        """SIGKILL, if it still lives."""
        if self.returncode is None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


class _Parent(Workers):
    """The parent and its children."""

    def __init__(
        self, config: Path, bootstrap: Bootstrap, limits: LimitsRegion, workers: list[WorkerProcess]
    ) -> None:
        self.count = len(workers)
        self._config, self._bootstrap = config, bootstrap
        self._limits = limits
        self._workers = workers
        self._living = list(workers)
        self._statistics = reading.Workers()
        self._serving = self._ending = False
        self._reasons: list[str] = []
        for worker in workers:
            worker.on_stats = self._watch

    async def run(self) -> list[str]:
        """Until all workers have ended: why that was not because they were told so."""
        async with trio.open_nursery() as nursery:
            with trio.open_signal_receiver(*ENDING, *REOPENING) as signals:
                nursery.start_soon(self._obey, signals)
                async with trio.open_nursery() as children:
                    for worker in self._workers:
                        children.start_soon(self._keep, worker)
                    if await self._begin():
                        await self._serve(nursery)
                    else:
                        self._kill()
                nursery.cancel_scope.cancel()
        return self._reasons

    async def _begin(self) -> bool:
        """Have all workers listen; False when one cannot."""
        async with trio.open_nursery() as nursery:
            for worker in self._workers:
                nursery.start_soon(self._begin_one, worker)
        self._reasons[:] = sorted(set(self._reasons))
        return not self._reasons

    async def _begin_one(self, worker: WorkerProcess) -> None:
        try:
            reason = (await worker.configure(1, _BEGIN)).reason
        except WorkerGone:
            return  # `_keep` says so
        if reason is not None:
            self._reasons.append(reason)

    async def _serve(self, nursery: trio.Nursery) -> None:
        if self._bootstrap.admin is not None:
            try:
                await nursery.start(serve, self._config, self._bootstrap, self)
            except OSError as error:
                admin = self._bootstrap.admin
                self._reasons.append(f"cannot listen on {admin.host}:{admin.port}: {error.strerror}")
                self._kill()
                return
        self._serving = True
        _log.info(
            "serving %d listeners with %d workers", len(self._bootstrap.table.listeners), len(self._workers)
        )

    async def _keep(self, worker: WorkerProcess) -> None:
        status = await worker.run()
        self._living.remove(worker)
        self._limits.forget(worker.index)
        if status and not self._reasons:
            reason = f"worker {worker.index} ended with status {status}"
            _log.error("%s", reason)
            self._reasons.append(reason)
            await self._drain(DRAIN_SECONDS)

    async def _obey(self, signals: Any) -> None:
        async for signum in signals:
            if signum in REOPENING:
                await self._tell(WorkerProcess.reopen_logs)
            else:
                await self._drain(0.0 if self._ending else DRAIN_SECONDS)

    async def _drain(self, seconds: float) -> None:
        self._ending = True
        await self._tell(functools.partial(WorkerProcess.drain, seconds=seconds))

    async def _tell(self, order: Any) -> None:
        for worker in list(self._living):
            try:
                await order(worker)
            except WorkerGone:
                _log.debug("worker %d ended by itself", worker.index)

    def _kill(self) -> None:
        for worker in self._living:
            worker.process.kill()

    def _watch(self, descriptor: int) -> None:
        self._statistics.add(StatsRegion.attach(descriptor))

    # For the pages

    def statistics(self) -> reading.Statistics:
        """See Workers."""
        return self._statistics.read()

    def ready(self) -> bool:
        """See Workers."""
        return self._serving

    def draining(self) -> bool:
        """See Workers."""
        return self._ending

    async def ask(self, what: str, **arguments: Any) -> list[Any]:
        """See Workers."""
        answers: list[Any] = []

        async def one(worker: WorkerProcess) -> None:
            try:
                answers.append(await worker.query(what, **arguments))
            except WorkerGone:
                return  # and the others with it

        async with trio.open_nursery() as nursery:
            for worker in list(self._living):
                nursery.start_soon(one, worker)
        return answers
