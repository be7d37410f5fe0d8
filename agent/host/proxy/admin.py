"""The admin pages of `hostmesh-agent proxy`, at the bootstrap's `admin.address`: in the worker's own loop where there is
one worker, in the parent's where there are several (workers).

Rule: the same pages as `run` serves, for all workers. Not for: several hosts' services.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from agent.host.admin import AdminPages, Certificates, Sources, pages
from agent.host.admin.respond import resident
from agent.host.admin.standing import complete
from agent.telemetry.reading import Statistics
from agent.worker import orders
from agent.worker.space_build import stat_name
from agent.worker.standalone import DRAIN_SECONDS

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from agent.table.bootstrap import Bootstrap
    from agent.table.tls import DataSource, Secret, TlsSettings
    from agent.worker.worker import Worker


def admin_of(path: Path) -> Callable[[Bootstrap, Worker, trio.TaskStatus[None]], Awaitable[None]]:
    """What serves the admin address of the bootstrap in that file."""

    async def serve_one(bootstrap: Bootstrap, worker: Worker, task_status: trio.TaskStatus[None]) -> None:
        await serve(path, bootstrap, _OneWorker(worker), task_status)

    return serve_one


async def serve(
    path: Path,
    bootstrap: Bootstrap,
    workers: Workers,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the pages until cancelled."""
    assert bootstrap.admin is not None
    family = socket.AF_INET6 if ":" in bootstrap.admin.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((bootstrap.admin.host, bootstrap.admin.port))
    sock.listen(128)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    admin = AdminPages(_Proxy(path, bootstrap, workers).sources())
    guard = pages.programs_on_this_host if pages.is_loopback(bootstrap.admin.host) else pages.anybody
    await pages.serve([listener], admin.respond, guard, task_status)


class Workers(ABC):
    """All workers of a proxy, one or several, as the pages see them."""

    count = 1

    @abstractmethod
    def statistics(self) -> Statistics:
        """What they count, added up."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether they serve."""

    @abstractmethod
    def draining(self) -> bool:
        """Whether they are about to end."""

    @abstractmethod
    async def ask(self, what: str, **arguments: Any) -> list[Any]:
        """One answer a worker (agent.worker.orders)."""


class _OneWorker(Workers):
    """The worker in whose process this is."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def statistics(self) -> Statistics:
        found = Statistics()
        found.read(self._worker.recorder.region)
        return found

    def ready(self) -> bool:
        return bool(self._worker.spaces)

    def draining(self) -> bool:
        return self._worker.drained.is_set()

    async def ask(self, what: str, **arguments: Any) -> list[Any]:
        await trio.lowlevel.checkpoint()
        return [orders.obey(self._worker, what, arguments, added_via_api=False)]


class _Proxy:
    """Where the pages of a static proxy get their contents."""

    def __init__(self, path: Path, bootstrap: Bootstrap, workers: Workers) -> None:
        self._path, self._bootstrap, self._workers = path, bootstrap, workers
        self._started = time.time()

    def sources(self) -> Sources:
        """See agent.host.admin."""
        workers = self._workers
        return Sources(
            statistics=self._statistics,
            ready=workers.ready,
            draining=workers.draining,
            query=self._query,
            set_level=self._set_level,
            bootstrap=self._message,
            certificates=self._certificates,
            runtime=self._bootstrap.runtime,
            node_id=self._bootstrap.node.id,
            started=self._started,
            options={"config_path": str(self._path), "concurrency": workers.count},
            actions={
                "healthcheck/fail": self._fail,
                "healthcheck/ok": self._pass,
                "quitquitquit": self._quit,
                "drain_listeners": self._drain,
                "reset_counters": self._reset,
                "reopen_logs": self._reopen,
            },
        )

    def _statistics(self) -> Statistics:
        found = self._workers.statistics()
        table = self._bootstrap.table
        complete(
            found, table, listener_names=[stat_name(listener) for listener in table.listeners.values()],
            uptime=int(time.time() - self._started), resident=resident(), workers=self._workers.count * self._workers.ready(),
        )  # fmt: skip
        return found

    async def _query(self, what: str) -> list[Any]:
        return [answer for answer in await self._workers.ask(what) if isinstance(answer, list)]

    async def _set_level(self, logger: str, level: int) -> None:
        await self._workers.ask(orders.SET_LEVEL, logger=logger, level=level)

    def _message(self) -> Message:
        """Read when somebody asks; a file that was changed since shows its new contents."""
        from envoy.config.bootstrap.v3 import bootstrap_pb2

        from agent.table.decode.text import parse

        return parse(self._path.read_text(encoding="utf-8"), bootstrap_pb2.Bootstrap, str(self._path))

    def _certificates(self) -> list[Certificates]:
        found: list[Certificates] = []
        for settings in self._tls_settings():
            validation = settings.validation
            roots = self._secret(validation.ca) if validation is not None else None
            for certificate in settings.certificates:
                secret = self._secret(certificate)
                found.append(
                    Certificates(
                        secret.name if secret is not None else "",
                        _read(secret.certificate_chain if secret is not None else None),
                        _read(roots.trusted_ca if roots is not None else None),
                    )
                )
        return found

    def _tls_settings(self) -> Iterable[TlsSettings]:
        table = self._bootstrap.table
        for listener in table.listeners.values():
            for chain in (*listener.chains, listener.default_chain):
                if chain is not None and chain.tls is not None:
                    yield chain.tls
        for cluster in table.clusters.values():
            if cluster.tls is not None:
                yield cluster.tls

    def _secret(self, secret: Secret | str | None) -> Secret | None:
        return self._bootstrap.table.secrets.get(secret) if isinstance(secret, str) else secret

    async def _quit(self, query: Mapping[str, str]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await trio.lowlevel.checkpoint()

    async def _fail(self, query: Mapping[str, str]) -> None:
        await self._workers.ask(orders.FAIL_HEALTH_CHECKS, failing=True)

    async def _pass(self, query: Mapping[str, str]) -> None:
        await self._workers.ask(orders.FAIL_HEALTH_CHECKS, failing=False)

    async def _drain(self, query: Mapping[str, str]) -> None:
        await self._workers.ask(
            orders.DRAIN_LISTENERS,
            graceful=DRAIN_SECONDS if "graceful" in query else 0.0,
            inbound_only="inboundonly" in query,
            stop="skip_exit" not in query,
        )

    async def _reset(self, query: Mapping[str, str]) -> None:
        await self._workers.ask(orders.RESET_COUNTERS)

    async def _reopen(self, query: Mapping[str, str]) -> None:
        for errors in await self._workers.ask(orders.REOPEN_LOGS):
            for error in errors or ():
                raise OSError(error)


def _read(source: DataSource | None) -> bytes:
    if source is None:
        return b""
    return Path(source.filename).read_bytes() if source.filename else source.inline
