"""`hostmesh-agent run`: everything that one host needs, started and stopped in the right order.

Start: configuration, identities, last good or fresh xDS configuration, workers listening, capture last.
Stop: "leaving" to istiod, capture down once the others have heard of it, then the workers drain. So traffic
is never brought to a proxy that cannot serve it, nor past one that it was meant for.
Rule: what istiod or the network does after the start never ends the agent.
Not for: how any of the parts works.
"""

from __future__ import annotations

import logging
import random
import signal
import time
from collections.abc import Sequence
from typing import Any

import trio
from google.protobuf import json_format

from agent.host import addresses
from agent.host.admin import local_socket
from agent.host.admin.local_socket import CommandError
from agent.host.admin.own_pages import OwnPages
from agent.host.admin.status import status_of
from agent.host.capture import preflight
from agent.host.capture.gate import WORKERS, Gate
from agent.host.capture.keeper import Keeper
from agent.host.capture.netfilter import NetfilterError
from agent.host.capture.table import Capture, CaptureError, rules_for
from agent.host.config import AgentConfig, AgentConfigError
from agent.host.control.config_session import ConfigSession
from agent.host.control.control_plane import ControlPlane
from agent.host.control.xds_client import XdsClient
from agent.host.dns.forward import Forwarder
from agent.host.dns.names import Names
from agent.host.dns.resolv_conf import Resolvers
from agent.host.dns.server import DnsServer
from agent.host.identity import expiry
from agent.host.identity.keeper import IdentityKeeper
from agent.host.node import HostFacts, all_users, host_facts, istiod_id, node_of, spiffe_id
from agent.host.probes import probe as probes
from agent.host.service_notify import ServiceNotifier
from agent.host.state import State
from agent.host.workers import privileges
from agent.host.workers.dataplane import Dataplane
from agent.host.workers.worker_process import PROGRAM
from agent.host.workload import HostWorkload, Parts

log = logging.getLogger("hostmesh.agent")
SOCKET_NAME = "agent.sock"
_random = random.SystemRandom()
_PATIENCE_SECONDS = 10.0
_HEARSAY_SECONDS = 1.0
"""From "leaving" until the last of the other proxies has dropped our endpoints (push: about 0.2 s)."""


class AgentService:
    """One run of the agent. Invariant: capture is up only after every workload got a configuration, and as the gate says."""

    def __init__(self, config: AgentConfig, program: Sequence[str] = PROGRAM) -> None:
        self.config = config
        self.facts: HostFacts = host_facts(config)
        users = all_users(config)
        run_as = privileges.workers_run_as(config)
        self._run_as = run_as
        own = (run_as.uid if run_as is not None else 0, privileges.own_uid())
        self.capture = Capture(rules_for(config, users, own))
        self.dataplane = Dataplane(config.proxy.worker_count(), run_as, _random.random, program)
        self.state = State(config.state_dir)
        self.control_plane = ControlPlane(config.istiod, istiod_id(config))
        self.resolvers = Resolvers()
        self.forwarder = Forwarder(self.resolvers.current)
        self.workloads = [self._workload(index) for index in range(len(config.workloads))]
        self.shared_dns = DnsServer(self._shared_names(), self.forwarder, self.resolvers.search)
        """For users without a workload (capture.rules.Rules.dns_shared)."""
        keys = [workload.key for workload in self.workloads]
        self.gate = Gate(self.capture, keys, enabled=config.capture.enabled)
        self.notifier = ServiceNotifier()
        self.started = time.time()
        self.dataplane.on_serving = self._serving_changed
        self.dataplane.required = self.capture.rules.proxy_ports
        self.dataplane.drain_seconds = config.proxy.drain_seconds
        self._served = trio.Event()
        self._keeper: Keeper | None = None
        self.stopping = trio.Event()
        self.ending = False
        self.own_pages = OwnPages(self)

    @property
    def ready(self) -> bool:
        """Whether traffic may come, for every workload."""
        return self.gate.ready and not self.ending

    async def run(self) -> None:
        """Serve until told to stop by a signal or the local socket, then stop in order."""
        privileges.keep_capabilities_to_ourselves()
        privileges.allow_many_descriptors()
        if (reason := privileges.why_not_started(self._run_as)) is not None:
            raise SystemExit(f"hostmesh-agent: {reason}")
        if (reason := privileges.fallback_user(self.config, self._run_as)) is not None:
            log.warning("%s", reason)
        self.state.prepare(workload.key for workload in self.workloads)
        async with trio.open_nursery() as nursery:
            await nursery.start(self._signals)
            path = self.config.run_dir / SOCKET_NAME
            await nursery.start(local_socket.serve, path, self._commands())
            await self.own_pages.serve(nursery)
            for index, workload in enumerate(self.workloads):
                await nursery.start(workload.parts.dns.serve, self.config.proxy_ports(index).dns)
            if self.config.shares_dns:
                await nursery.start(self.shared_dns.serve, self.config.proxy.ports.dns_shared)
            self._keep_connections()
            await nursery.start(self.dataplane.run)
            nursery.start_soon(self.notifier.watchdog)
            nursery.start_soon(self._follow_addresses)
            for workload in self.workloads:
                nursery.start_soon(self._serve_workload, workload)
            keepers = {workload.key: workload.parts.identity for workload in self.workloads}
            nursery.start_soon(expiry.watch, keepers, self._expired, self._valid)
            nursery.start_soon(self._open_up, nursery)
            await self.stopping.wait()
            await self._stop()
            nursery.cancel_scope.cancel()

    def _keep_connections(self) -> None:
        """Have the workers hold what keeps redirected connections alive without us."""
        if not self.config.capture.enabled:
            return
        try:
            self._keeper = Keeper()
        except NetfilterError as error:
            log.warning("connections in progress will be cut when capture goes down: %s", error)
        else:
            self.dataplane.kept = self._keeper.descriptors

    async def _serve_workload(self, workload: HostWorkload) -> None:
        async with trio.open_nursery() as nursery:
            if not workload.parts.identity.load():
                log.info("joining the mesh as %s", spiffe_id(self.config, workload.parts.config))
            await nursery.start(workload.parts.identity.run)
            await workload.restore()
            # The registry may have it as healthy from the run before.
            self._check_served()
            await workload.parts.xds.run()
            nursery.cancel_scope.cancel()

    async def _follow_addresses(self) -> None:
        """Register under the present addresses: with the old ones others would call a host that is not there."""
        async for _ in addresses.changes():
            try:
                facts = await trio.to_thread.run_sync(host_facts, self.config)
            except AgentConfigError:
                continue  # none at the moment: the next change brings one
            if facts == self.facts or self.ending:
                continue
            log.info("this host's addresses are now %s", ", ".join(facts.addresses))
            self.facts = facts
            for index, workload in enumerate(self.workloads):
                node = node_of(self.config, index, facts)
                workload.parts.node_id = node.id
                self.dataplane.sides[workload.key]["node"] = json_format.MessageToDict(node.metadata)
                workload.parts.session.become(node)
                workload.parts.xds.rejoin()

    async def _open_up(self, nursery: trio.Nursery) -> None:
        """Let traffic in once every workload can serve it."""
        for workload in self.workloads:
            while not workload.parts.configured.is_set():
                self.notifier.waiting(
                    f"waiting for istiod: {workload.key} has no configuration", 3 * _PATIENCE_SECONDS
                )
                with trio.move_on_after(_PATIENCE_SECONDS):
                    await workload.parts.configured.wait()
        while not self.dataplane.serving:
            self._served = trio.Event()
            waiting = "; ".join(f"{where}: {reason}" for where, reason in self.dataplane.waiting.items())
            self.notifier.waiting(f"waiting for a worker to serve {waiting}".strip(), 3 * _PATIENCE_SECONDS)
            with trio.move_on_after(_PATIENCE_SECONDS):
                await self._served.wait()
        if self.stopping.is_set():
            return
        try:
            self.gate.open()
        except CaptureError as error:
            raise SystemExit(f"hostmesh-agent: capture: {error}") from error
        self._check_served()
        self.notifier.ready(f"serving {', '.join(workload.key for workload in self.workloads)}")
        log.info("ready: traffic is %s", "captured" if self.capture.active else "not captured")
        if self.config.capture.enabled and (reason := preflight.unreachable_names()) is not None:
            log.warning("%s", reason)
        for workload in self.workloads:
            nursery.start_soon(workload.watch_health)

    def _serving_changed(self, serving: bool) -> None:
        """Without a worker that listens, the host's traffic flows as if there were no agent, until one does again."""
        if serving:
            self._served.set()
            self.gate.release(WORKERS)
        else:
            self.gate.hold(WORKERS, "no worker serves")
        self._check_served()

    def _expired(self, key: str, reason: str) -> None:
        self.gate.hold(key, reason)
        self._check_served()

    def _valid(self, key: str) -> None:
        self.gate.release(key)
        self.gate.settle()
        self._check_served()

    def _check_served(self) -> None:
        """Have the registry show what callers would meet; called at each change, and with each look at the identities."""
        if self.ending:
            return  # the workloads leave
        for workload in self.workloads:
            workload.check_served(self.gate.against(workload.key))

    async def _stop(self) -> None:
        self.ending = True
        self.notifier.stopping()
        log.info("stopping: leaving the mesh, then up to %g s of draining", self.config.proxy.drain_seconds)
        known = any(workload.parts.xds.connected for workload in self.workloads)
        async with trio.open_nursery() as nursery:
            for workload in self.workloads:
                nursery.start_soon(workload.parts.xds.leave)
        if known and self.capture.active:
            # The others still call us, with TLS, until they have heard of it: the proxy must be there for them.
            await trio.sleep(min(_HEARSAY_SECONDS, self.config.proxy.drain_seconds))
        self.gate.close()
        await self.dataplane.drain(self.config.proxy.drain_seconds)

    async def _signals(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP:
                    await self.dataplane.reopen_logs()
                elif self.ending:
                    log.warning("a second signal: not waiting for connections to end")
                    for worker in self.dataplane.workers:
                        worker.process.kill()
                else:
                    self.stopping.set()

    def _workload(self, index: int) -> HostWorkload:
        config = self.config.workloads[index]
        workload = HostWorkload(self.dataplane, self.state, self._names_changed)
        spiffe, node = spiffe_id(self.config, config), node_of(self.config, index, self.facts)
        identity = IdentityKeeper(
            config.key,
            spiffe,
            state=self.state,
            control_plane=self.control_plane,
            token=config.join_token or self.config.join_token,
            on_change=workload.identity_changed,
            clock=time.time,
            chance=_random.random,
        )
        side: dict[str, object] = {"node": json_format.MessageToDict(node.metadata), "principal": str(spiffe)}
        self.dataplane.sides[config.key] = side
        session = ConfigSession(node)
        xds = XdsClient(
            config.key,
            session=session,
            identity=identity,
            control_plane=self.control_plane,
            apply=workload.apply,
            chance=_random.random,
        )
        names = Names({}, {}, config.namespace, self.config.domain, known=False)
        ports = self.config.proxy_ports(index)
        probe_user = privileges.probes_run_as(self.config, config)
        workload.parts = Parts(
            config=config,
            node_id=node.id,
            domain=self.config.domain,
            identity=identity,
            session=session,
            xds=xds,
            dns=DnsServer(names, self.forwarder, self.resolvers.search),
            required_ports=frozenset((ports.outbound, ports.inbound)),
            probe_target=lambda: probes.Target(self.facts.addresses[0], probe_user),
        )
        return workload

    def _shared_names(self) -> Names:
        return Names.shared([workload.parts.dns.names for workload in self.workloads])

    def _names_changed(self) -> None:
        if self.config.shares_dns:
            self.shared_dns.names = self._shared_names()

    def _commands(self) -> dict[str, local_socket.Command]:
        return {
            "ping": self._ping,
            "status": self._status,
            "drain": self._drain,
            "capture-up": self._capture_up,
            "capture-down": self._capture_down,
        }

    async def _ping(self, question: dict[str, Any]) -> str:
        await trio.lowlevel.checkpoint()
        return "pong"

    async def _status(self, question: dict[str, Any]) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return status_of(self)

    async def _drain(self, question: dict[str, Any]) -> str:
        self.stopping.set()
        await trio.lowlevel.checkpoint()
        return f"draining, for {self.config.proxy.drain_seconds:g} s at most"

    async def _capture_up(self, question: dict[str, Any]) -> str:
        await trio.lowlevel.checkpoint()
        if not self.gate.opened:
            raise CommandError("not before every workload has a configuration (see hostmesh-agent status)")
        if not self.dataplane.serving:
            raise CommandError("no worker listens on the ports of the proxy (see hostmesh-agent status)")
        if not self.config.capture.enabled:
            raise CommandError("capture.enabled is false in the configuration")
        try:
            self.gate.put_up()
        except CaptureError as error:
            raise CommandError(str(error)) from error
        if not self.capture.active:
            raise CommandError("; ".join(self.gate.reasons.values()))
        return "capture is up, held by the agent"

    async def _capture_down(self, question: dict[str, Any]) -> str:
        await trio.lowlevel.checkpoint()
        self.gate.take_down()
        return "capture is down until `capture up` or the agent's next start"
