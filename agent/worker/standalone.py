"""`hostmesh-agent proxy`: the data plane alone, on a static Envoy bootstrap.

Rule: one worker is this very process; several are children of a parent that only watches them, each with its own listening
sockets. A bootstrap that cannot be used is refused before anything listens. SIGTERM drains, a second one ends; SIGHUP and
SIGUSR1 reopen the access logs.
Not for: configuration that changes (remote).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from agent.table.bootstrap import Bootstrap, load
from agent.telemetry.access_log import FLUSH_SECONDS
from agent.worker.tls_contexts import TlsError
from agent.worker.worker import Worker

DRAIN_SECONDS = 30.0
_ENDING = (signal.SIGTERM, signal.SIGINT)
_REOPENING = (signal.SIGHUP, signal.SIGUSR1)
Admin = Callable[[Bootstrap, Worker, "trio.TaskStatus[None]"], Awaitable[None]]
"""Serves the bootstrap's admin address next to the worker; lives above this layer."""
_log = logging.getLogger("hostmesh.proxy")


def run(
    config: Path, workers: int = 1, admin: Admin | None = None, *, flush_seconds: float = FLUSH_SECONDS
) -> None:
    """Serve the bootstrap until SIGTERM; exits with status 1 and the reason when it cannot be used."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        bootstrap = load(Path(config).read_text(), str(config), environment=os.environ)
    except (OSError, ValueError) as error:
        refuse(str(error))
    if workers > 1 and (worker := _fork(workers)) is None:
        return
    if workers > 1 and worker != 0:
        admin = None
    reasons: list[str] = []
    try:
        trio.run(_serve, bootstrap, admin, flush_seconds, strict_exception_groups=True)
    except* (TlsError, OSError, ValueError) as group:
        reasons = [str(error) for error in _leaves(group)]
    # Outside of except*, which would wrap the exit in a group.
    if reasons:
        refuse("; ".join(reasons))


def refuse(reason: str) -> None:
    """Say why and end with status 1."""
    sys.stderr.write(f"hostmesh-agent: {reason}\n")
    raise SystemExit(1)


async def _serve(bootstrap: Bootstrap, admin: Admin | None, flush_seconds: float) -> None:
    async with trio.open_nursery() as nursery:
        worker = Worker(node_metadata=bootstrap.node.metadata, flush_seconds=flush_seconds)
        await nursery.start(worker.run)
        worker.apply({"": bootstrap.table})
        if admin is not None and bootstrap.admin is not None:
            await nursery.start(_run_admin, admin, bootstrap, worker)
        _log.info("serving %d listeners", len(bootstrap.table.listeners))
        draining = False
        with trio.open_signal_receiver(*_ENDING, *_REOPENING) as signals:
            async for signum in signals:
                if signum in _REOPENING:
                    worker.sinks.reopen()
                elif draining:
                    nursery.cancel_scope.cancel()
                    return
                else:
                    draining = True
                    nursery.start_soon(_drain, worker, nursery)


async def _run_admin(
    admin: Admin,
    bootstrap: Bootstrap,
    worker: Worker,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    await admin(bootstrap, worker, task_status)


async def _drain(worker: Worker, nursery: trio.Nursery) -> None:
    await worker.drain(DRAIN_SECONDS)
    nursery.cancel_scope.cancel()


def _fork(count: int) -> int | None:
    """Become one of several workers: its number; None in the parent, after all of them have ended."""
    children: dict[int, int] = {}
    for number in range(count):
        child = os.fork()
        if child == 0:
            return number
        children[child] = number

    def forward(signum: int, _frame: object) -> None:
        for child in children:
            os.kill(child, signum)

    for signum in (*_ENDING, *_REOPENING):
        signal.signal(signum, forward)
    failed = False
    while children:
        child, status = os.wait()
        if child not in children:
            continue
        number = children.pop(child)
        if status:
            failed = True
            _log.error("worker %d ended with status %d", number, os.waitstatus_to_exitcode(status))
            forward(signal.SIGTERM, None)
    if failed:
        raise SystemExit(1)
    return None


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found
