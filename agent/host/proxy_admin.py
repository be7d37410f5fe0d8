"""The admin pages of `hostmesh-agent proxy`, at the bootstrap's `admin.address`, in the worker's own loop.

Rule: the same pages as `run` serves, from what this one process knows. Not for: several hosts' services.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from agent.host import pages
from agent.host.admin import AdminPages, Certificates, Sources
from agent.host.admin.respond import resident
from agent.host.admin.standing import complete
from agent.telemetry.reading import Statistics
from agent.upstream.view import cluster_view
from agent.worker.space import stat_name

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from agent.table.bootstrap import Bootstrap
    from agent.table.tls import DataSource, Secret, TlsSettings
    from agent.worker.worker import Worker


def admin_of(path: Path) -> Callable[[Bootstrap, Worker, trio.TaskStatus[None]], Awaitable[None]]:
    """What serves the admin address of the bootstrap in that file."""

    async def serve(bootstrap: Bootstrap, worker: Worker, task_status: trio.TaskStatus[None]) -> None:
        assert bootstrap.admin is not None
        family = socket.AF_INET6 if ":" in bootstrap.admin.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((bootstrap.admin.host, bootstrap.admin.port))
        sock.listen(128)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        admin = AdminPages(_Proxy(path, bootstrap, worker).sources())
        await pages.serve([listener], admin.respond, task_status)

    return serve


class _Proxy:
    """Where the pages of a static proxy get their contents."""

    def __init__(self, path: Path, bootstrap: Bootstrap, worker: Worker) -> None:
        self._path, self._bootstrap, self._worker = path, bootstrap, worker
        self._started = time.time()

    def sources(self) -> Sources:
        """See agent.host.admin."""
        worker = self._worker
        return Sources(
            statistics=self._statistics,
            ready=lambda: bool(worker.spaces),
            draining=worker.drained.is_set,
            query=self._query,
            bootstrap=self._message,
            certificates=self._certificates,
            node_id=self._bootstrap.node.id,
            started=self._started,
            options={"config_path": str(self._path), "concurrency": 1},
            actions={
                "quitquitquit": self._quit,
                "drain_listeners": self._drain,
                "reset_counters": self._reset,
                "reopen_logs": self._reopen,
            },
        )

    def _statistics(self) -> Statistics:
        found = Statistics()
        found.read(self._worker.recorder.region)
        table = self._bootstrap.table
        complete(
            found, table, listener_names=[stat_name(listener) for listener in table.listeners.values()],
            uptime=int(time.time() - self._started), resident=resident(), live=bool(self._worker.spaces),
        )  # fmt: skip
        return found

    async def _query(self, what: str) -> list[Any]:
        await trio.lowlevel.checkpoint()
        if what != "clusters":
            return []
        return [
            [
                cluster_view(cluster, added_via_api=False)
                for space in self._worker.spaces.values()
                for cluster in space.clusters.values()
            ]
        ]

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

    async def _quit(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await trio.lowlevel.checkpoint()

    async def _drain(self) -> None:
        await trio.lowlevel.checkpoint()
        self._worker.reactor.call(self._drain_spaces)

    def _drain_spaces(self) -> None:
        for space in self._worker.spaces.values():
            space.drain()

    async def _reset(self) -> None:
        await trio.lowlevel.checkpoint()
        self._worker.recorder.region.reset_counters()

    async def _reopen(self) -> None:
        await trio.lowlevel.checkpoint()
        for error in self._worker.sinks.reopen():
            raise error


def _read(source: DataSource | None) -> bytes:
    if source is None:
        return b""
    return Path(source.filename).read_bytes() if source.filename else source.inline
