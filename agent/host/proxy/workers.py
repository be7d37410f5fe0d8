"""`hostmesh-agent proxy` with several workers: forked children, and this parent, which has the admin pages.

Rule: the workers live and end together: when one ends by itself, this process begins anew with as many, and the others go on
accepting until those serve, then drain. A proxy whose workers keep ending, or that cannot begin anew, ends with status 1 for
its supervisor to see. What a dead worker held of the host's limits is free at once. SIGTERM drains, a second
one ends; SIGHUP and SIGUSR1 reopen the access logs. When the parent is gone, the workers drain.
Not for: what a worker does (agent.worker.forked), one worker (agent.worker.standalone).
"""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import socket
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import trio

from agent.host.proxy.admin import Workers, serve
from agent.host.workers.worker_process import WorkerGone, WorkerProcess
from agent.limits.region import LimitsRegion, Shares
from agent.table.bootstrap import Bootstrap, load
from agent.telemetry import reading
from agent.telemetry.stats import StatsRegion
from agent.worker import remote
from agent.worker.control import Config
from agent.worker.forked import ForkedWorker
from agent.worker.standalone import DRAIN_SECONDS, ENDING, REOPENING, refuse

_log = logging.getLogger("hostmesh.proxy")
_BEGIN = Config(1, ()).encode()
_STABLE_SECONDS = 10.0
"""A proxy that has served for so long may begin anew without being counted."""
_BEGINNINGS = 5
"""How often in a row it may do so earlier."""


@dataclass(frozen=True, slots=True)
class Former:
    """What was before this process began anew: living workers with the descriptors of their conversations, which drain when
    these are closed, and how often in a row it was not stable."""

    workers: tuple[tuple[int, int], ...] = ()
    beginnings: int = 0

    def text(self) -> str:
        """As an argument of the command."""
        return json.dumps([self.workers, self.beginnings])

    @classmethod
    def of_text(cls, text: str) -> Former:
        workers, beginnings = json.loads(text)
        return cls(tuple((int(pid), int(descriptor)) for pid, descriptor in workers), int(beginnings))


def run(
    config: Path, bootstrap: Bootstrap, count: int, flush_seconds: float, former: Former = Former()
) -> Former | None:
    """Serve the bootstrap until SIGTERM; exits with status 1 and the reason when that cannot be done. What it returns: with
    which the caller has to begin anew."""
    limits = LimitsRegion.create(count)
    children: list[tuple[int, socket.socket]] = []
    for number in range(count):
        ours, theirs = socket.socketpair()
        child = os.fork()
        if child == 0:
            for _, sock in (*children, (0, ours)):
                sock.close()
            for _, descriptor in former.workers:
                os.close(descriptor)
            remote.serve(ForkedWorker(theirs, Shares(limits, number), bootstrap, flush_seconds))
            return None
        theirs.close()
        children.append((child, ours))
    reasons, again = trio.run(
        _parent, config, bootstrap, limits, children, former, strict_exception_groups=True
    )
    if reasons:
        refuse("; ".join(reasons))
    return again


async def _parent(
    config: Path,
    bootstrap: Bootstrap,
    limits: LimitsRegion,
    children: list[tuple[int, socket.socket]],
    former: Former,
) -> tuple[list[str], Former | None]:
    workers = [
        WorkerProcess(number, ForkedProcess(pid), trio.socket.from_stdlib_socket(sock))
        for number, (pid, sock) in enumerate(children)
    ]
    parent = _Parent(config, bootstrap, limits, workers, former)
    return await parent.run(), parent.again


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
        self,
        config: Path,
        bootstrap: Bootstrap,
        limits: LimitsRegion,
        workers: list[WorkerProcess],
        former: Former,
    ) -> None:
        self.count = len(workers)
        self._config, self._bootstrap = config, bootstrap
        self._limits = limits
        self._workers = workers
        self._living = list(workers)
        self._statistics = reading.Workers()
        self._former = former
        self.again: Former | None = None
        """Set when a worker has ended by itself and others are to take over."""
        self._children: trio.CancelScope
        self._since = inf
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
                    self._children = children.cancel_scope
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
        self._since = trio.current_time()
        for pid, descriptor in self._former.workers:
            os.close(descriptor)
            nursery.start_soon(ForkedProcess(pid).wait)
        _log.info(
            "serving %d listeners with %d workers", len(self._bootstrap.table.listeners), len(self._workers)
        )

    async def _keep(self, worker: WorkerProcess) -> None:
        status = await worker.run()
        self._living.remove(worker)
        self._limits.forget(worker.index)
        if status and not self._reasons:
            reason = f"worker {worker.index} ended with status {status}"
            self.again = self._begin_anew()
            if self.again is not None:
                _log.error("%s; as many new ones take over", reason)
                self._children.cancel()
                return
            _log.error("%s", reason)
            self._reasons.append(reason)
            await self._drain(DRAIN_SECONDS)

    def _begin_anew(self) -> Former | None:
        """With what: the workers that live. None where that is not to be."""
        if self._ending or not self._serving:
            return None
        stable = trio.current_time() - self._since > _STABLE_SECONDS
        beginnings = 1 if stable else self._former.beginnings + 1
        if beginnings > _BEGINNINGS:
            return None
        try:
            load(self._config.read_text(), str(self._config), environment=os.environ)
        except (OSError, ValueError) as error:
            _log.error("cannot begin anew: %s", error)
            return None
        return Former(
            tuple((worker.process.pid, worker.keep_conversation()) for worker in self._living), beginnings
        )

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
