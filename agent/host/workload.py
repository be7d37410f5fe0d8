"""One workload of the host: its identity, its configuration, its DNS names and its health, tied together.

Rule: the data plane gets a configuration only together with the identity it needs, and the last good one is on
disk before istiod hears that it is in use. Not for: any of the parts (each has a module of its own).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from agent.exchange.trial import Trial
from agent.host.config import Workload
from agent.host.control.config_session import Applied, ConfigSession, Held
from agent.host.control.xds_client import Rejected, XdsClient
from agent.host.dns.names import Addresses, Names
from agent.host.dns.server import DnsServer
from agent.host.identity import secrets
from agent.host.identity.identity import Identity
from agent.host.identity.keeper import IdentityKeeper
from agent.host.log import fields
from agent.host.probes import probe as probes
from agent.host.state import State
from agent.host.workers.dataplane import ChangeFailed, Dataplane
from agent.table.build import Refused, resource_path
from agent.table.listener import Listener
from wire.proto import name_table_pb2
from wire.xds import LISTENER, NAME_TABLE, SECRET

log = logging.getLogger("hostmesh.workload")
_MOST_REASON = 1000
"""Characters of a reason that is reported."""


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
    probed: bool | None = None
    """What the application's probe says; None before its first verdict."""
    probe_reason: str = ""
    required_ports: frozenset[int] = frozenset()
    """What capture redirects to: without listeners there the workload is not ready."""
    configured: trio.Event = field(default_factory=trio.Event)


class HostWorkload:
    """One workload at run time. Invariant: `parts.configured` is set once a configuration is in force."""

    def __init__(self, dataplane: Dataplane, state: State, names_changed: Callable[[], None]) -> None:
        self._dataplane, self._state, self._names_changed = dataplane, state, names_changed
        self._trial = Trial()
        self._applying = trio.Lock()
        self._wanted: Held | None = None
        """What istiod wants to be in force."""
        self._resources: Held | None = None
        """What of it is, with the last good version of the rest."""
        self.refused: tuple[Refused, ...] = ()
        self.missing: tuple[str, ...] = ("a configuration",)
        """What the workload cannot be ready without."""
        self.parts: Parts
        self.unserved = ""
        """Why the data plane does not serve it, whatever the application does; empty when it does."""

    @property
    def key(self) -> str:
        """`namespace/service`."""
        return self.parts.config.key

    @property
    def health(self) -> tuple[bool | None, str]:
        """Whether callers can be served, and why so; None before the probe's first verdict."""
        if self.unserved:
            return False, self.unserved
        return self.parts.probed, self.parts.probe_reason

    async def identity_changed(self, identity: Identity, roots: bytes) -> None:
        """Give the new identity to the workers; connections in progress go on with the old one."""
        if self._wanted is None:
            return
        try:
            await self.apply(self._wanted)
        except Rejected as error:
            log.warning("the new certificate is not in use: %s", error, extra=fields(workload=self.key))

    async def apply(self, resources: Held) -> Applied:
        """Bring into force what can be used of a configuration; the rest is named, and keeps its last good version.
        `Rejected`: the workers can take none of it."""
        async with self._applying:
            return await self._apply(resources)

    async def _apply(self, resources: Held) -> Applied:
        identity = self.parts.identity.current
        assert identity is not None
        built = self._trial.build(self._bodies(resources, identity, self.parts.identity.roots))
        refused = list(built.refused)
        try:
            by_workers = await self._dataplane.change(self.key, built.bodies)
        except ChangeFailed as error:
            raise Rejected(str(error)) from error
        for one in by_workers:
            if not one.in_use:
                self._trial.reject(one.type_url, one.name)
        refused += by_workers
        try:
            names = names_of(resources, self.parts.config.namespace, self.parts.domain)
        except NamesUnreadable as error:
            names = None
            refused += [
                Refused(NAME_TABLE, name, resource_path(NAME_TABLE, name), str(error))
                for name in resources[NAME_TABLE]
            ]
        in_use = self._in_use(resources, refused)
        self._wanted, self._resources, self.refused = resources, in_use, tuple(refused)
        # Stored first: a name that was answered once is answered after a crash, too.
        await trio.to_thread.run_sync(self._store, in_use)
        if names is not None:
            self.parts.dns.names = names
            self._names_changed()
        listeners = [one for name, one in built.table.listeners.items() if name in in_use[LISTENER]]
        self.missing = self._missing(listeners)
        if listeners and not self.missing:
            self.parts.configured.set()
        return Applied(in_use, self.refused, again=bool(by_workers))

    def _in_use(self, resources: Held, refused: list[Refused]) -> Held:
        """The resources with those that were refused as they were before, or without them."""
        found = {type_url: dict(held) for type_url, held in resources.items()}
        for one in refused:
            if one.in_use or one.type_url not in found:
                continue
            found[one.type_url].pop(one.name, None)
            before = (self._resources or {}).get(one.type_url, {}).get(one.name)
            if before is not None:
                found[one.type_url][one.name] = before
        return found

    def _missing(self, listeners: list[Listener]) -> tuple[str, ...]:
        """What capture needs and the configuration does not have: a listener on each port that it redirects to."""
        served = {listener.address.port for listener in listeners if listener.bind}
        return tuple(f"a listener on port {port}" for port in sorted(self.parts.required_ports - served))

    async def restore(self) -> bool:
        """Bring the last good configuration on disk into force; False when there is none that can be used."""
        stored = self._state.resources(self.key)
        if stored is None or self.parts.identity.current is None:
            return False
        self.parts.session.preload(stored)
        try:
            applied = await self.apply(self.parts.session.held())
        except Rejected as error:
            log.warning("the stored configuration is not used: %s", error, extra=fields(workload=self.key))
            self.parts.session.preload({})
            return False
        for one in applied.refused:
            log.warning("stored, and not used: %s", one, extra=fields(workload=self.key))
        self.parts.session.preload(applied.in_use)
        return True

    async def watch_health(self) -> None:
        """Run the application's probe and report; without a probe it is healthy at once."""
        probe = self.parts.config.probe
        if probe is None:
            await self._health(True, "no probe")
            return
        await probes.run(probe, self.parts.probe_target, self._health)

    def check_served(self, against: str) -> None:
        """Look whether the data plane serves the workload, and report it when that has changed.

        `against`: why its traffic may not come at all (agent.host.capture.gate); empty when it may."""
        unserved = (self._why_not_served() or against)[:_MOST_REASON]
        if unserved != self.unserved:
            self.unserved = unserved
            self.parts.xds.report(*self.health)

    def _why_not_served(self) -> str:
        if self.missing:
            refused = "; ".join(map(str, self.refused)) or self.parts.xds.last_rejection
            return f"the proxy has not got {', '.join(self.missing)}" + (f": {refused}" if refused else "")
        if not self._dataplane.serving:
            waiting = "; ".join(f"{where}: {reason}" for where, reason in self._dataplane.waiting.items())
            return f"no worker serves {waiting}".strip()
        return ""

    async def _health(self, healthy: bool, reason: str) -> None:
        self.parts.probed, self.parts.probe_reason = healthy, reason
        log.info(
            "workload is %s",
            "healthy" if healthy else "unhealthy",
            extra=fields(workload=self.key, reason=reason),
        )
        self.parts.xds.report(*self.health)
        await trio.lowlevel.checkpoint()

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


class NamesUnreadable(ValueError):
    """A name table that cannot be decoded."""


def names_of(resources: Held, namespace: str, domain: str) -> Names:
    """The DNS names of a configuration. Raises NamesUnreadable."""
    hosts: dict[str, Addresses] = {}
    alternates: dict[str, str] = {}
    for resource in resources.get(NAME_TABLE, {}).values():
        message = name_table_pb2.NameTable()
        try:
            AnyMessage.FromString(resource.body).Unpack(message)
        except DecodeError as error:
            raise NamesUnreadable(str(error)) from error
        for name, info in message.table.items():
            hosts[name] = Addresses.of(info.ips)
            for alternate in info.alt_hosts:
                alternates.setdefault(alternate, name)
    return Names(hosts, alternates, namespace, domain)
