"""`hostmesh-agent proxy`: the data plane alone, on a static Envoy bootstrap, with one worker: this very process.

Rule: a bootstrap that cannot be used is refused before anything listens. SIGTERM drains, a second one ends; SIGHUP and
SIGUSR1 reopen the access logs.
Not for: several workers (forked), configuration that changes (remote).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NoReturn

import trio

from agent.table.bootstrap import Bootstrap, load
from agent.table.errors import ConfigError
from agent.telemetry.access_log import FLUSH_SECONDS
from agent.worker.tls_contexts import TlsError
from agent.worker.worker import Worker

DRAIN_SECONDS = 30.0
ENDING = (signal.SIGTERM, signal.SIGINT)
REOPENING = (signal.SIGHUP, signal.SIGUSR1)
Admin = Callable[[Bootstrap, Worker, "trio.TaskStatus[None]"], Awaitable[None]]
"""Serves the bootstrap's admin address next to the worker; lives above this layer."""
_log = logging.getLogger("hostmesh.proxy")


def read(config: Path) -> Bootstrap:
    """The bootstrap; exits with status 1 and the reason when it cannot be used."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        bootstrap = load(Path(config).read_text(), str(config), environment=os.environ)
    except (OSError, ValueError) as error:
        refuse(str(error))
    if not bootstrap.table.listeners and bootstrap.admin is None:
        refuse(
            f"{config}: nothing to serve: static_resources.listeners is empty and there is no admin address"
        )
    return bootstrap


def run(bootstrap: Bootstrap, admin: Admin | None = None, *, flush_seconds: float = FLUSH_SECONDS) -> None:
    """Serve the bootstrap until SIGTERM; exits with status 1 and the reason when that cannot be done."""
    reasons: list[str] = []
    try:
        trio.run(_serve, bootstrap, admin, flush_seconds, strict_exception_groups=True)
    except* (TlsError, OSError, ValueError) as group:
        reasons = [str(error) for error in _leaves(group)]
    # Outside of except*, which would wrap the exit in a group.
    if reasons:
        refuse("; ".join(reasons))


def refuse(reason: str) -> NoReturn:
    """Say why and end with status 1."""
    sys.stderr.write(f"hostmesh-agent: {reason}\n")
    raise SystemExit(1)


async def _serve(bootstrap: Bootstrap, admin: Admin | None, flush_seconds: float) -> None:
    async with trio.open_nursery() as nursery:
        worker = Worker(node_metadata=bootstrap.node.metadata, flush_seconds=flush_seconds)
        await nursery.start(worker.run)
        for refused in worker.apply({"": bootstrap.table}).get("", ()):
            raise ConfigError(refused.path, refused.reason)
        if admin is not None and bootstrap.admin is not None:
            await nursery.start(_run_admin, admin, bootstrap, worker)
        _log.info("serving %d listeners", len(bootstrap.table.listeners))
        draining = False
        with trio.open_signal_receiver(*ENDING, *REOPENING) as signals:
            async for signum in signals:
                if signum in REOPENING:
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


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found
