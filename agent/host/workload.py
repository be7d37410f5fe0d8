"""One workload of the host: its identity, its configuration, its DNS names and its health, tied together.

Rule: the data plane gets a configuration only together with the identity it needs, and the last good one is on
disk before istiod hears that it is in use. Not for: any of the parts (each has a module of its own).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from agent.exchange.trial import judge
from agent.host.config import Workload
from agent.host.control.config_session import ConfigSession, Held
from agent.host.control.xds_client import Rejected, XdsClient
from agent.host.dns.names import Addresses, Names
from agent.host.dns.server import DnsServer
from agent.host.identity import secrets
from agent.host.identity.identity import Identity
from agent.host.identity.keeper import IdentityKeeper
from agent.host.log import fields
from agent.host.probes import probe as probes
from agent.host.state import State
from agent.host.workers.dataplane import Dataplane, Refused
from agent.table.build import TableBuilder
from wire.proto import name_table_pb2
from wire.xds import LISTENER, NAME_TABLE, SECRET

log = logging.getLogger("hostmesh.workload")


@dataclass(slots=True)
class Parts:
    """What a workload is made of."""

    config: Workload
    node_id: str
    domain: str
    identity: IdentityKeeper
    session: ConfigSession
    xds: XdsClient
    dns: DnsServer
    probe_target: Callable[[], probes.Target] = probes.Target
    """Where the probe goes now: the host's address may change."""
    healthy: bool | None = None
    """None before the probe's first verdict."""
    health_reason: str = ""
    configured: trio.Event = field(default_factory=trio.Event)


class HostWorkload:
    """One workload at run time. Invariant: `parts.configured` is set once a configuration is in force."""

    def __init__(self, dataplane: Dataplane, state: State, names_changed: Callable[[], None]) -> None:
        self._dataplane, self._state, self._names_changed = dataplane, state, names_changed
        self._builder = TableBuilder()
        self._resources: Held | None = None
        self.parts: Parts

    @property
    def key(self) -> str:
        """`namespace/service`."""
        return self.parts.config.key

    async def identity_changed(self, identity: Identity, roots: bytes) -> None:
        """Give the new identity to the workers; connections in progress go on with the old one."""
        if self._resources is None:
            return
        try:
            await self._dataplane.change(self.key, self._bodies(self._resources, identity, roots))
        except Refused as error:
            log.warning("the new certificate is not in use: %s", error, extra=fields(workload=self.key))

    async def apply(self, resources: Held) -> None:
        """Validate a configuration as a whole and bring it into force; `Rejected` says why not."""
        identity = self.parts.identity.current
        assert identity is not None
        bodies = self._bodies(resources, identity, self.parts.identity.roots)
        self._validate(bodies)
        names = names_of(resources, self.parts.config.namespace, self.parts.domain)
        try:
            await self._dataplane.change(self.key, bodies)
        except Refused as error:
            raise Rejected(str(error)) from error
        self._resources = resources
        # Stored first: a name that was answered once is answered after a crash, too.
        await trio.to_thread.run_sync(self._store, resources)
        self.parts.dns.names = names
        self._names_changed()
        if resources.get(LISTENER):
            self.parts.configured.set()

    async def restore(self) -> bool:
        """Bring the last good configuration on disk into force; False when there is none that can be used."""
        stored = self._state.resources(self.key)
        if stored is None or self.parts.identity.current is None:
            return False
        self.parts.session.preload(stored)
        try:
            await self.apply(self.parts.session.held())
        except Rejected as error:
            log.warning("the stored configuration is not used: %s", error, extra=fields(workload=self.key))
            self.parts.session.preload({})
            return False
        return True

    async def watch_health(self) -> None:
        """Run the application's probe and report; without a probe it is healthy at once."""
        probe = self.parts.config.probe
        if probe is None:
            await self._health(True, "no probe")
            return
        await probes.run(probe, self.parts.probe_target, self._health)

    async def _health(self, healthy: bool, reason: str) -> None:
        self.parts.healthy, self.parts.health_reason = healthy, reason
        log.info(
            "workload is %s",
            "healthy" if healthy else "unhealthy",
            extra=fields(workload=self.key, reason=reason),
        )
        self.parts.xds.report(healthy, reason)
        await trio.lowlevel.checkpoint()

    def _validate(self, bodies: Mapping[str, Mapping[str, bytes]]) -> None:
        """Build the table as the workers will; what did not change is not decoded again."""
        built = self._builder.build(bodies)
        refused = (*built.refused, *judge(built.table))
        if refused:
            raise Rejected("; ".join(map(str, refused)))

    def _store(self, resources: Held) -> None:
        try:
            self._state.save_resources(self.key, resources)
        except OSError as error:
            log.warning("the configuration could not be stored: %s", error, extra=fields(workload=self.key))

    def _bodies(self, resources: Held, identity: Identity, roots: bytes) -> dict[str, dict[str, bytes]]:
        bodies = {
            type_url: {name: resource.body for name, resource in held.items()}
            for type_url, held in resources.items()
            if type_url != NAME_TABLE
        }
        bodies[SECRET] = secrets.bodies(identity, roots)
        return bodies


def names_of(resources: Held, namespace: str, domain: str) -> Names:
    """The DNS names of a configuration; `Rejected` when its name table cannot be read."""
    hosts: dict[str, Addresses] = {}
    alternates: dict[str, str] = {}
    for resource in resources.get(NAME_TABLE, {}).values():
        message = name_table_pb2.NameTable()
        try:
            AnyMessage.FromString(resource.body).Unpack(message)
        except DecodeError as error:
            raise Rejected(f"the name table cannot be decoded: {error}") from error
        for name, info in message.table.items():
            hosts[name] = Addresses.of(info.ips)
            for alternate in info.alt_hosts:
                alternates.setdefault(alternate, name)
    return Names(hosts, alternates, namespace, domain)
