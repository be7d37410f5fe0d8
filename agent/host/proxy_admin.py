"""The admin pages of `hostmesh-agent proxy`, at the bootstrap's `admin.address`, in the worker's own loop.

Rule: the same pages as `run` serves, from what this one process knows. Not for: several hosts' services.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio
from envoy.config.bootstrap.v3 import bootstrap_pb2

from agent.host import pages
from agent.host.admin import AdminPages, Sources
from agent.table.bootstrap import Bootstrap
from agent.table.decode.text import parse
from agent.telemetry.reading import Workers
from agent.upstream.view import cluster_view
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
        admin = AdminPages(_sources(path, bootstrap, worker))
        await pages.serve([listener], admin.respond, task_status)

    return serve


def _sources(path: Path, bootstrap: Bootstrap, worker: Worker) -> Sources:
    message = parse(path.read_text(encoding="utf-8"), bootstrap_pb2.Bootstrap, str(path))
    statistics = Workers()
    statistics.add(worker.recorder.region)

    async def query(what: str) -> list[Any]:
        await trio.lowlevel.checkpoint()
        if what != "clusters":
            return []
        return [
            [
                cluster_view(cluster, added_via_api=False)
                for space in worker.spaces.values()
                for cluster in space.clusters.values()
            ]
        ]

    async def end() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await trio.lowlevel.checkpoint()

    return Sources(
        statistics=statistics.read,
        ready=lambda: bool(worker.spaces),
        draining=worker.drained.is_set,
        query=query,
        bootstrap=lambda: message,
        node_id=bootstrap.node.id,
        started=time.time(),
        options={"config_path": str(path), "concurrency": 1},
        actions={"quitquitquit": end},
    )
