"""The workers of this host as one: what one of them uses all of them use, and a dead one is replaced.

Rule: a configuration is in force when every live worker has applied what can be used of it; what one of them cannot
use, none does. If one takes none of it, all go back to the one before. A worker that starts later gets the one in force.
Replacing a worker waits longer each time it dies.
Not for: the conversation with one worker (`worker_process`), where configurations come from (`xds_client`).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from agent.host.log import fields
from agent.host.workers import liveness
from agent.host.workers.worker_process import PROGRAM, RunAs, WorkerGone, WorkerProcess
from agent.limits.region import LimitsRegion
from agent.table.build import Refused
from agent.worker.control import ORPHAN_SECONDS, Config, WorkloadConfig
from wire.grpc import Backoff

log = logging.getLogger("hostmesh.dataplane")
APPLY_SECONDS = 30.0
"""A worker that has not answered by then is taken for stuck and replaced."""
_STABLE_SECONDS = 30.0
_KILL_SECONDS = 5.0

Bodies = Mapping[str, Mapping[str, bytes]]
"""Type URL, name, serialised google.protobuf.Any."""


class ChangeFailed(Exception):
    """A worker cannot take the configuration at all; the former one is in force again."""


@dataclass(slots=True)
class _Round:
    """The workers' verdicts on one generation."""

    reasons: list[str] = field(default_factory=list)
    """Why workers took none of it."""
    refused: list[Mapping[str, tuple[Refused, ...]]] = field(default_factory=list)
    """What each of the others left, by workload."""
    nobody: bool = False
    """Every worker ended before it answered."""


@dataclass(slots=True)
class WorkerStatus:
    """What `status` shows of one worker."""

    pid: int
    generation: int
    restarts: int


class Dataplane:
    """All workers. `generation` is the configuration in force; 0 before the first."""

    def __init__(
        self,
        count: int,
        run_as: RunAs | None,
        chance: Callable[[], float],
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self.generation = 0
        self.sides: dict[str, dict[str, object]] = {}
        """By workload, `node` and `principal`: what the workers' metrics say of their own side."""
        self.on_worker: Callable[[WorkerProcess], None] = lambda worker: None
        """Called with each worker that starts, before anything is sent to it."""
        self.on_serving: Callable[[bool], None] = lambda serving: None
        """Called with True when a worker serves after none did, with False when none does any more."""
        self.required: frozenset[int] = frozenset()
        """The ports that capture redirects to: a worker serves when it listens on all of them."""
        self.drain_seconds = ORPHAN_SECONDS
        """How long connections of the workers may go on when this process is killed."""
        self.kept: tuple[int, ...] = ()
        """Descriptors that every worker inherits and only keeps open."""
        self._serving: set[int] = set()
        self._count, self._run_as, self._chance, self._program = count, run_as, chance, program
        self._workers: dict[int, WorkerProcess] = {}
        self._restarts = [0] * count
        self._in_force: dict[str, Bodies] = {}
        self._last_generation = 0
        self._changing = trio.Lock()
        self._draining = False
        self._started = trio.Event()
        """Set when a worker has started since the last change began."""
        self._limits = LimitsRegion.create(count) if count > 1 else None
        """What the workers count together."""

    @property
    def serving(self) -> bool:
        """Whether at least one live worker has applied a configuration and listens on every required port."""
        return bool(self._serving)

    @property
    def waiting(self) -> dict[str, str]:
        """The addresses that a worker cannot listen on at present, with the reason."""
        return {where: reason for worker in self.workers for where, reason in worker.waiting.items()}

    @property
    def workers(self) -> list[WorkerProcess]:
        """The live workers in order."""
        return [self._workers[index] for index in sorted(self._workers)]

    def status(self) -> list[WorkerStatus]:
        """One line a live worker."""
        return [
            WorkerStatus(worker.process.pid, worker.generation, self._restarts[worker.index])
            for worker in self.workers
        ]

    def resources(self, key: str) -> Bodies:
        """What is in force for a workload."""
        return self._in_force.get(key, {})

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the workers running until cancelled or drained; started when all have been spawned."""
        async with trio.open_nursery() as nursery:
            for index in range(self._count):
                await nursery.start(self._keep, index)
            task_status.started()

    async def change(self, key: str, resources: Bodies) -> tuple[Refused, ...]:
        """Bring a workload's resources into force in all workers. What of them a worker cannot use is named, and its last
        good version stays in force. Raises `ChangeFailed`, nothing changed, when a worker takes none of it."""
        async with self._changing:
            before = dict(self._in_force)
            self._in_force[key] = resources
            self._started = trio.Event()
            round_ = await self._tell_all()
            if round_.nobody:
                # They may have ended for another reason: their successors are asked once more.
                with trio.move_on_after(APPLY_SECONDS):
                    await self._started.wait()
                round_ = await self._tell_all()
            if round_.nobody:
                round_.reasons.append("every worker ended while it applied the configuration")
            if round_.reasons:
                self._in_force = before
                if before:
                    back = await self._tell_all()
                    if back.reasons:
                        log.error("the former configuration is refused now: %s", "; ".join(back.reasons))
                raise ChangeFailed("; ".join(sorted(set(round_.reasons))))
            refused = dict.fromkeys(one for found in round_.refused for one in found.get(key, ()))
            left = {(one.type_url, one.name) for one in refused if not one.in_use}
            self._in_force[key] = without(resources, left, before.get(key, {}))
            if left and any(found.get(key) != round_.refused[0].get(key) for found in round_.refused):
                # Some workers can use what others cannot: all go on with what every one of them can.
                await self._tell_all()
            self.generation = self._last_generation
            return tuple(refused)

    async def drain(self, seconds: float) -> None:
        """Let all workers finish and end; those that do not end in time are killed."""
        self._draining = True
        for worker in self.workers:
            try:
                await worker.drain(seconds)
            except WorkerGone:
                log.info("worker %d ended by itself", worker.index)
        with trio.move_on_after(seconds + _KILL_SECONDS):
            for worker in self.workers:
                await worker.process.wait()
        for worker in self.workers:
            if worker.process.returncode is None:
                log.warning("a worker did not end in time", extra=fields(pid=worker.process.pid))
                worker.process.kill()

    async def reopen_logs(self) -> None:
        """Have all workers open their log files anew."""
        for worker in self.workers:
            try:
                await worker.reopen_logs()
            except WorkerGone:
                continue  # its successor opens them anyway

    async def _tell_all(self) -> _Round:
        self._last_generation += 1
        told = self.workers
        round_ = _Round()
        async with trio.open_nursery() as nursery:
            for worker in told:
                nursery.start_soon(self._tell, worker, self._last_generation, round_)
        round_.nobody = bool(told) and not round_.reasons and not round_.refused
        return round_

    async def _tell(self, worker: WorkerProcess, generation: int, round_: _Round) -> None:
        payload = self._payload(worker.index, generation)
        try:
            with trio.fail_after(APPLY_SECONDS):
                verdict = await worker.configure(generation, payload)
        except WorkerGone:
            return  # its successor gets the configuration in force
        except trio.TooSlowError:
            log.error("a worker is stuck and is replaced", extra=fields(pid=worker.process.pid))  # noqa: TRY400
            worker.process.kill()
            round_.reasons.append(f"a worker was stuck in it for {APPLY_SECONDS:g} s")
            return
        if verdict.reason is not None:
            round_.reasons.append(verdict.reason)
            return
        round_.refused.append(verdict.refused)
        self._listening_changed(worker)

    def _listening_changed(self, worker: WorkerProcess) -> None:
        """A worker has applied a configuration, or opened listeners since: does it serve?"""
        for where, reason in worker.waiting.items():
            log.warning("worker %d cannot listen on %s and tries again: %s", worker.index, where, reason)
        self._set_serving(worker.index, self.required <= worker.listening)

    def _set_serving(self, index: int, serves: bool) -> None:
        before = self.serving
        (self._serving.add if serves else self._serving.discard)(index)
        if self.serving != before and not self._draining:
            self.on_serving(self.serving)

    def _payload(self, index: int, generation: int) -> bytes:
        workloads = [WorkloadConfig(key, resources) for key, resources in self._in_force.items()]
        settings = {
            "worker": index,
            "workers": self._count,
            "sides": self.sides,
            "drainSeconds": self.drain_seconds,
        }
        return Config(generation, workloads, settings).encode()

    async def _keep(self, index: int, task_status: trio.TaskStatus[None]) -> None:
        backoff = Backoff(self._chance, initial=0.1, maximum=10.0)
        first = True
        while not self._draining:
            began = trio.current_time()
            try:
                worker = await WorkerProcess.start(
                    index,
                    self._run_as,
                    self._program,
                    None if self._limits is None else self._limits.fd,
                    self.kept,
                )
            except OSError as error:
                if first:
                    raise
                # No memory, no descriptor, no process: the others go on, and this one is tried again.
                delay = backoff.next_delay()
                log.error(  # noqa: TRY400 (the reason is one line)
                    "a worker cannot be started",
                    extra=fields(worker=index, reason=str(error), seconds=round(delay, 2)),
                )
                await trio.sleep(delay)
                continue
            worker.on_listening = functools.partial(self._listening_changed, worker)
            self.on_worker(worker)
            self._workers[index] = worker
            self._started.set()
            if first:
                first = False
                task_status.started()
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._catch_up, worker)
                    nursery.start_soon(self._end_when_hung, worker)
                    status = await worker.run()
                    nursery.cancel_scope.cancel()
            finally:
                del self._workers[index]
                self._set_serving(index, False)
                await worker.end()
                if self._limits is not None:
                    self._limits.forget(index)
            if self._draining:
                return
            if trio.current_time() - began > _STABLE_SECONDS:
                backoff.reset()
            self._restarts[index] += 1
            delay = backoff.next_delay()
            log.error(
                "a worker ended and is replaced",
                extra=fields(worker=index, pid=worker.process.pid, status=status, seconds=round(delay, 2)),
            )
            await trio.sleep(delay)

    async def _end_when_hung(self, worker: WorkerProcess) -> None:
        await liveness.hung(worker)
        log.error(
            "a worker does not answer and is replaced",
            extra=fields(worker=worker.index, pid=worker.process.pid),
        )
        worker.process.kill()

    async def _catch_up(self, worker: WorkerProcess) -> None:
        async with self._changing:
            if self._in_force:
                round_ = _Round()
                await self._tell(worker, self.generation, round_)
                refused = [str(one) for held in round_.refused for found in held.values() for one in found]
                if round_.reasons or refused:
                    reasons = "; ".join([*round_.reasons, *refused])
                    log.error("a new worker refuses what is in force: %s", reasons)


def without(resources: Bodies, left: Collection[tuple[str, str]], before: Bodies) -> Bodies:
    """The resources with those of `left` (type URL, name) as they were before, or not at all."""
    found: dict[str, dict[str, bytes]] = {}
    for type_url, bodies in resources.items():
        former = before.get(type_url, {})
        used = found[type_url] = dict(bodies)
        for name in bodies:
            if (type_url, name) in left:
                del used[name]
                if name in former:
                    used[name] = former[name]
    return found
