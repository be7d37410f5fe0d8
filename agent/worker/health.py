"""Active health checks of a cluster's hosts: HTTP/1.1 requests and TCP exchanges at intervals (Envoy health_checks).

Rule: each host has a check of its own with one deadline and at most one connection; what a result means is
upstream/checking's business, and a changed verdict rebuilds the cluster's rotation.
Not for: requests of clients; their failures are outlier detection's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from agent.http.codecs import CLIENT_CODEC
from agent.http.h1_message import ClientCodec, H1Violation, InboundResponse, Limits, ResponseSink
from agent.http.headers import Headers
from agent.http.request import PeerIdentity
from agent.table.cluster import HealthCheck
from agent.upstream.checking import CheckState
from agent.upstream.cluster import ClusterRuntime
from agent.upstream.host import Host
from agent.worker.connect import Caller, Dialer
from agent.worker.transport import PlainTransport, TransportOwner


class ClusterChecks:
    """The checks of one cluster's hosts, as long as its configuration asks for them."""

    def __init__(self, cluster: ClusterRuntime, dialer: Dialer, random: Callable[[], int]) -> None:
        self.cluster = cluster
        self.dialer = dialer
        self.random = random
        self._checks: dict[Host, list[HostCheck]] = {}
        self._configs = cluster.config.health_checks
        self.settled: Callable[[], None] | None = None
        """Called once when every check of now has had a result."""
        cluster.watch = self.follow
        self.follow()

    def follow(self) -> None:
        """The members or the configuration have changed: begin with new hosts, leave those that have gone."""
        cluster = self.cluster
        if cluster.config.health_checks != self._configs:
            self._configs = cluster.config.health_checks
            self._stop(list(self._checks))
        self._stop([host for host in self._checks if host not in cluster.hosts])
        for host in cluster.hosts:
            if host not in self._checks and host.endpoint.checked and self._configs:
                host.checked_healthy = False
                self._checks[host] = [HostCheck(self, host, config) for config in self._configs]
        if self._configs:
            cluster.rebuild()
        for checks in list(self._checks.values()):
            for check in checks:
                check.begin()

    @property
    def waiting(self) -> bool:
        """Is there a host that has never been asked to the end?"""
        return any(check.state.waiting for checks in self._checks.values() for check in checks)

    def result(self) -> None:
        """A check has ended."""
        if self.settled is not None and not self.waiting:
            settled, self.settled = self.settled, None
            settled()

    def verdict(self, host: Host) -> None:
        """One of a host's checks has changed its mind: the host is healthy if all of them say so."""
        healthy = all(check.state.healthy for check in self._checks.get(host, ()))
        if healthy != host.checked_healthy:
            host.checked_healthy = healthy
            detector = self.cluster.detector
            if (
                healthy
                and host.ejected_until
                and detector is not None
                and detector.config.unejected_by_checks
            ):
                detector.forget(host)
            self.cluster.rebuild()
            self.cluster.slots[self.cluster.stats.health_check_healthy] = sum(
                checked.checked_healthy for checked in self._checks
            )

    def count(self, what: str) -> None:
        """One more of `health_check.<what>`."""
        slot: int = getattr(self.cluster.stats, f"health_check_{what}")
        self.cluster.slots[slot] += 1

    def _stop(self, hosts: list[Host]) -> None:
        for host in hosts:
            for check in self._checks.pop(host):
                check.stop()


class HostCheck(TransportOwner, ResponseSink):
    """One checker's view of one host. Invariant: the timer is the next check's time, or the present one's deadline."""

    def __init__(self, owner: ClusterChecks, host: Host, config: HealthCheck) -> None:
        self._owner = owner
        self._host = host
        self._config = config
        self.state = CheckState(config)
        self._timer = owner.dialer.reactor.timer(self._due)
        self._begun = False
        self._stopped = False
        self._asking = False
        self._turn = 0
        """Counts checks, so that a dial that comes late is known to be of another time."""
        self._transport: PlainTransport | None = None
        self._codec: ClientCodec | None = None
        self._status = 0
        self._keep_alive = False
        self._received = b""
        endpoint = host.endpoint
        where = endpoint.check_address or endpoint.address
        self._target = Host(replace(endpoint, address=where))

    def begin(self) -> None:
        """The first check, after the initial jitter."""
        if not self._begun:
            self._begun = True
            share = (self._owner.random() & 0xFFFF) / 0x10000
            self._timer.set(self._owner.dialer.reactor.now + self._config.initial_jitter * share)

    def stop(self) -> None:
        """The host is none of ours any more."""
        self._stopped = True
        self._timer.close()
        self._drop()

    # The check

    def _due(self) -> None:
        if self._stopped:
            return
        if self._asking:
            self._drop()
            self._done(False, network=True)
            return
        self._asking = True
        self._turn += 1
        self._owner.count("attempt")
        self._timer.set(self._owner.dialer.reactor.now + self._config.timeout)
        host, target = self._host, self._target
        if self._transport is not None and not self._transport.closed:
            if target.tls is host.tls and target.tls_context is host.tls_context:
                self._ask()
                return
            self._drop()  # secured in another way than clients' connections are by now
        target.tls, target.tls_context = host.tls, host.tls_context
        self._owner.dialer.dial(self._target, self._owner.cluster.config, _Dialled(self, self._turn))

    def connected(self, transport: PlainTransport) -> None:
        """A connection is up."""
        self._transport = transport
        transport.owner = self
        self._codec = None
        self._ask()

    def unreachable(self) -> None:
        """There is none."""
        if self._asking:
            self._done(False, network=True)

    def wants(self, turn: int) -> bool:
        """Is a connection of this check still wanted?"""
        return self._asking and turn == self._turn and not self._stopped

    def _ask(self) -> None:
        transport, config = self._transport, self._config
        assert transport is not None
        self._received = b""
        if config.kind == "tcp":
            if config.send:
                transport.write(config.send)
            if not config.receive:
                self._done(True)
            return
        if self._codec is None:
            self._codec = CLIENT_CODEC(self, Limits())
        self._codec.expect(config.method, b"")
        host = config.host or self._host.endpoint.check_hostname or self._owner.cluster.name
        transport.write(config.request(host))

    # From the transport

    def received(self, data: bytes) -> None:
        """See TransportOwner."""
        if not self._asking:
            self._drop()
        elif self._config.kind == "tcp":
            self._received += data
            at = 0
            for part in self._config.receive:
                found = self._received.find(part, at)
                if found < 0:
                    return
                at = found + len(part)
            self._done(True)
        elif self._codec is not None:
            try:
                codec = self._codec
                codec.receive(data)
                while codec.more:
                    codec.go_on()
            except H1Violation:
                self._drop()
                self._done(False, network=True)

    def ended(self) -> None:
        """See TransportOwner."""
        codec, asking = self._codec, self._asking
        if asking and codec is not None and self._status:
            try:
                codec.end_of_input()
            except H1Violation:
                self._status = 0
        self._drop()
        if self._asking:
            self._done(False, network=True)

    def lost(self, reason: str) -> None:
        """See TransportOwner."""
        self._transport = None
        if self._asking:
            self._done(False, network=True)

    def drained(self) -> None:
        """See TransportOwner: little is sent."""

    # From the codec

    def informational(self, status: int, headers: Headers) -> None:
        """See ResponseSink."""

    def response_head(self, head: InboundResponse) -> None:
        """See ResponseSink."""
        self._status = head.status
        self._keep_alive = head.keep_alive

    def response_data(self, data: bytes) -> None:
        """See ResponseSink."""

    def response_end(self, trailers: Headers | None) -> None:
        """See ResponseSink."""
        status, self._status = self._status, 0
        if not self._keep_alive:
            self._drop()
        good = any(start <= status < end for start, end in self._config.expected)
        retriable = any(start <= status < end for start, end in self._config.retriable)
        self._done(good, at_once=not good and not retriable)

    # The result

    def _done(self, good: bool, *, network: bool = False, at_once: bool = False) -> None:
        self._asking = False
        owner, state = self._owner, self.state
        if not self._config.reuse or (network and self._transport is not None):
            self._drop()
        owner.count("success" if good else "failure")
        if network:
            owner.count("network_failure")
        changed = state.succeeded() if good else state.failed(at_once=at_once)
        if changed:
            owner.verdict(self._host)
        owner.result()
        stats = owner.cluster.stats
        pause = state.pause(
            traffic=owner.cluster.slots[stats.upstream_cx_total] > 0, changed=changed, random=owner.random()
        )
        self._timer.set(owner.dialer.reactor.now + pause)

    def _drop(self) -> None:
        transport, self._transport = self._transport, None
        codec, self._codec = self._codec, None
        if codec is not None:
            codec.close()
        if transport is not None:
            transport.close()


class _Dialled(Caller):
    """Who a dial of a check reports to: the check, if it has not given up meanwhile."""

    def __init__(self, check: HostCheck, turn: int) -> None:
        self._check = check
        self._turn = turn

    def connected(self, transport: PlainTransport, peer: PeerIdentity | None) -> None:
        """See connect.Caller."""
        if self._check.wants(self._turn):
            self._check.connected(transport)
        else:
            transport.close()

    def unreachable(self, reason: str, failure: str) -> None:
        """See connect.Caller."""
        if self._check.wants(self._turn):
            self._check.unreachable()

    def received(self, data: bytes) -> None:
        """See TransportOwner: nothing comes before it is asked for."""

    def drained(self) -> None:
        """See TransportOwner."""

    def ended(self) -> None:
        """See TransportOwner."""

    def lost(self, reason: str) -> None:
        """See TransportOwner."""
