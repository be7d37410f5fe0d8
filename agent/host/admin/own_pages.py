"""The agent's own ports for people and scrapers: admin (15000, loopback), metrics (15020), readiness (15021), and the
admin socket in runDir.

Rule: any user of the host may read the admin pages (secrets are redacted in them); what changes something is served on the
socket only, which the agent's user and root can open (0600). istiod reaches the reading pages, of one workload at a time, by
the stream that the agent dials to it. Not for: what the pages look like (`respond`), HTTP (`pages`).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import trio

from agent.host import ports
from agent.host.admin import AdminPages, Certificates, MetricsPages, Resource, Sources, pages
from agent.host.admin.page import Page
from agent.host.control import debug_channel
from agent.host.identity import secrets
from agent.host.workers.worker_process import WorkerGone, WorkerProcess
from agent.telemetry.reading import Workers
from agent.telemetry.stats import StatsRegion
from agent.worker import orders
from wire.grpc import Channel
from wire.private_socket import private_socket
from wire.xds import SECRET

if TYPE_CHECKING:
    from agent.host.service import AgentService
    from agent.host.workload import HostWorkload

log = logging.getLogger("hostmesh.pages")
_ANSWER_SECONDS = 5.0
ADMIN_SOCKET = "admin.sock"


class OwnPages:
    """All pages of one run. Made before the workers start, because it collects their statistics."""

    def __init__(self, service: AgentService) -> None:
        self._service = service
        self._statistics = Workers()
        self._regions: dict[int, int] = {}
        self._socket = service.config.run_dir / ADMIN_SOCKET
        self.admin = AdminPages(
            Sources(
                statistics=self._statistics.read,
                ready=lambda: service.ready and service.dataplane.serving,
                draining=lambda: service.ending,
                query=self._query,
                set_level=self._set_level,
                resources=self._resources,
                certificates=self._certificates,
                node_id=service.workloads[0].parts.node_id,
                started=service.started,
                options={"concurrency": service.config.proxy.worker_count()},
                refusal=f"served on the socket only: curl --unix-socket {self._socket} -X POST http://localhost/...",
                actions={
                    "healthcheck/fail": self._fail,
                    "healthcheck/ok": self._pass,
                    "quitquitquit": self._stop,
                    "drain_listeners": self._stop,
                    "reset_counters": self._reset,
                    "reopen_logs": self._reopen,
                },
            )
        )
        self._metrics = MetricsPages(self._statistics.read, lambda: self.admin.ready)
        service.dataplane.on_worker = self._watch
        for workload in service.workloads:
            workload.parts.xds.with_channel(functools.partial(self._attach, workload))

    async def serve(self, nursery: trio.Nursery) -> None:
        """Listen; returns when all ports are served. Raises PortTaken."""
        own = self._service.config.proxy.ports
        for port, purpose, everywhere, respond, guard in (
            (own.readiness, "readiness", True, self._readiness, pages.anybody),
            (own.metrics, "metrics", True, self._metrics.respond, pages.anybody),
            (own.admin, "admin", False, self.admin.respond_reading, pages.programs_on_this_host),
        ):
            listeners = ports.listen(port, purpose, everywhere=everywhere)
            await nursery.start(pages.serve, listeners, respond, guard)
        await nursery.start(self._serve_socket)

    async def _serve_socket(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with private_socket(self._socket) as sock:
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
            await pages.serve([listener], self.admin.respond, pages.anybody, task_status)

    async def _readiness(self, method: str, path: str, body: bytes) -> Page:
        await trio.lowlevel.checkpoint()
        if path.partition("?")[0] != "/healthz/ready":
            return Page(404, "text/plain", b"only /healthz/ready is served here\n")
        if method not in ("GET", "HEAD"):
            return Page(405, "text/plain", b"GET or HEAD\n")
        if self.admin.ready:
            return Page(200, "text/plain", b"ready\n")
        return Page(503, "text/plain", b"not ready\n")

    def _watch(self, worker: WorkerProcess) -> None:
        def take(fd: int) -> None:
            before = self._regions.pop(worker.index, None)
            if before is not None:
                self._statistics.retire(before)
            try:
                self._regions[worker.index] = self._statistics.add(StatsRegion.attach(fd))
            except ValueError as error:
                log.warning("worker %d sent a descriptor: %s", worker.index, error)

        worker.on_stats = take

    async def _set_level(self, logger: str, level: int) -> None:
        await self._query(orders.SET_LEVEL, logger=logger, level=level)

    async def _query(self, what: str, **arguments: Any) -> list[Any]:
        answers: list[Any] = []

        async def ask(worker: WorkerProcess) -> None:
            try:
                with trio.move_on_after(_ANSWER_SECONDS):
                    answers.append(await worker.query(what, **arguments))
            except WorkerGone:
                return  # its successor has no hosts to show yet

        async with trio.open_nursery() as nursery:
            for worker in self._service.dataplane.workers:
                nursery.start_soon(ask, worker)
        return [answer for answer in answers if isinstance(answer, list)]

    def _resources(self, key: str) -> dict[str, list[Resource]]:
        found: dict[str, list[Resource]] = {}
        for workload in self._service.workloads:
            if key in ("", workload.key):
                for type_url, held in workload.parts.session.held().items():
                    found.setdefault(type_url, []).extend(
                        Resource(name, item.version, item.body) for name, item in held.items()
                    )
                identity = workload.parts.identity.current
                if identity is not None:
                    bodies = secrets.bodies(identity, workload.parts.identity.roots)
                    found.setdefault(SECRET, []).extend(
                        Resource(name, identity.serial, secrets.redacted(body))
                        for name, body in bodies.items()
                    )
        return found

    def _certificates(self) -> list[Certificates]:
        return [
            Certificates(workload.key, identity.chain_pem, workload.parts.identity.roots)
            for workload in self._service.workloads
            if (identity := workload.parts.identity.current) is not None
        ]

    async def _fail(self, query: Mapping[str, str]) -> None:
        await self._query(orders.FAIL_HEALTH_CHECKS, failing=True)

    async def _pass(self, query: Mapping[str, str]) -> None:
        await self._query(orders.FAIL_HEALTH_CHECKS, failing=False)

    async def _stop(self, query: Mapping[str, str]) -> None:
        await trio.lowlevel.checkpoint()
        self._service.stopping.set()

    async def _reset(self, query: Mapping[str, str]) -> None:
        self._statistics.forget_ended()
        await self._query(orders.RESET_COUNTERS)

    async def _reopen(self, query: Mapping[str, str]) -> None:
        await self._service.dataplane.reopen_logs()

    async def _attach(self, workload: HostWorkload, channel: Channel) -> None:
        async def respond(method: str, path: str, body: bytes) -> Page:
            if path.partition("?")[0].strip("/") == "config_dump":
                path += f"{'&' if '?' in path else '?'}workload={workload.key}"
            return await self.admin.respond_to_istiod(method, path, body)

        await debug_channel.serve(channel, [workload.parts.node_id], respond)
