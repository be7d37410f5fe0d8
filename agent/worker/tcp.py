"""Opaque TCP: a filter chain that ends in a tcp_proxy, and its connections.

Rule: the upstream is chosen and dialled when the connection arrives; with `max_connect_attempts` the next try may go
elsewhere. A connection is recorded once, at its end. Not for: moving bytes (agent/tcp/relay), dialling (connect).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import Final

from agent.http.request import ConnectionInfo, PeerIdentity
from agent.http.xxhash import xxhash64
from agent.table.cluster import Endpoint
from agent.table.listener import Address, Listener, TcpProxy
from agent.tcp.relay import Relay
from agent.telemetry.outcome import Outcome
from agent.telemetry.scopes import TcpStats
from agent.telemetry.series import Recorder
from agent.upstream import reset
from agent.upstream.cluster import ClusterRuntime
from agent.upstream.host import Host
from agent.worker.connect import Caller, Dialer
from agent.worker.station import Door, Station
from agent.worker.transport import PlainTransport, TransportOwner

RECEIVE: Final = 262144
"""Bytes asked of the kernel at once: few and large pieces are what an opaque stream needs."""


class TcpStation(Station):
    """One filter chain with a TCP proxy at its end."""

    bulk = True

    def __init__(
        self, door: Door, proxy: TcpProxy, listener: Listener, clusters: Mapping[str, ClusterRuntime], *,
        logs: tuple[Callable[[Outcome], None], ...], recorder: Recorder, dialer: Dialer, random: Callable[[], int],
    ) -> None:  # fmt: skip
        super().__init__(door)
        self.proxy = proxy
        self.listener = listener
        self.clusters = clusters
        self.logs = logs
        self.recorder = recorder
        self.stats: TcpStats = recorder.tcp(proxy.stat_prefix)
        self.dialer = dialer
        self.random = random
        self._total = sum(destination.weight for destination in proxy.clusters)

    def open(self, transport: PlainTransport, connection: ConnectionInfo) -> None:
        """See Station."""
        if not self.admits(transport, connection):
            return
        tcp = TcpConnection(self, transport, connection)
        self.enter(tcp)
        transport.owner = tcp
        transport.receive_size = RECEIVE
        transport.pause()
        tcp.begin()

    def destination(self, random: int) -> str:
        """A cluster's name, by weight."""
        clusters = self.proxy.clusters
        if len(clusters) == 1:
            return clusters[0].cluster
        die = random % self._total
        for destination in clusters:
            die -= destination.weight
            if die < 0:
                return destination.cluster
        return clusters[-1].cluster

    def close_idle(self) -> None:
        """Nothing is known to be idle."""

    def close_all(self) -> None:
        """See Station."""
        for tcp in tuple(self.inside):
            assert isinstance(tcp, TcpConnection)
            tcp.stop("")


class _UpstreamSide(Caller):
    """What the upstream's transport tells."""

    __slots__ = ("_tcp",)

    def __init__(self, tcp: TcpConnection) -> None:
        self._tcp = tcp

    def received(self, data: bytes) -> None:
        tcp = self._tcp
        tcp.touch()
        tcp.relay.upstream_data(data)
        tcp.transport.flush()

    def ended(self) -> None:
        if self._tcp.relay.end_upstream():
            self._tcp.complete()

    def lost(self, reason: str) -> None:
        self._tcp.stop("")

    def drained(self) -> None:
        self._tcp.relay.upstream_drained()

    def connected(self, transport: PlainTransport, peer: PeerIdentity | None) -> None:
        self._tcp.joined(transport, peer)

    def unreachable(self, reason: str, failure: str) -> None:
        self._tcp.failed(reason, failure)


class TcpConnection(TransportOwner):
    """One client's connection. Invariant: once `over`, nothing is counted, logged or closed again."""

    __slots__ = (
        "_attempts", "_client_gone", "_idle_at", "_max_at", "_random", "_series", "_timer", "cluster", "host", "outcome",
        "over", "relay", "station", "transport", "upstream",
    )  # fmt: skip

    def __init__(self, station: TcpStation, transport: PlainTransport, connection: ConnectionInfo) -> None:
        self.station = station
        self.transport = transport
        self.upstream: PlainTransport | None = None
        self.relay = Relay(transport)
        self.cluster: ClusterRuntime | None = None
        self.host: Host | None = None
        self.over = False
        self._random = station.random()
        self._attempts = 0
        self._series = -1
        self._client_gone = False
        now = transport.reactor.now
        self._idle_at = self._max_at = inf
        proxy = station.proxy
        if proxy.idle_timeout:
            self._idle_at = now + proxy.idle_timeout
        if proxy.max_downstream_connection_duration:
            self._max_at = now + proxy.max_downstream_connection_duration
        self._timer = transport.reactor.timer(self._timed_out)
        self._timer.set(min(self._idle_at, self._max_at))
        outcome = self.outcome = Outcome()
        outcome.connection = connection
        outcome.listener = station.listener
        outcome.stat_prefix = proxy.stat_prefix
        outcome.started_at = now
        outcome.received_at = transport.reactor.wall()
        station.recorder.slots[station.stats.downstream_cx_total] += 1

    def begin(self) -> None:
        """Choose cluster and host, and dial."""
        station, outcome = self.station, self.outcome
        cluster = self.cluster = station.clusters.get(station.destination(self._random))
        if cluster is None:
            station.recorder.slots[station.stats.downstream_cx_no_route] += 1
            self._refuse("NC" if station.proxy.clusters else "NR", "cluster_not_found")
            return
        outcome.cluster = cluster.config
        breaker = cluster.breakers[0]
        if not breaker.may_connect():
            cluster.slots[cluster.stats.upstream_cx_overflow] += 1
            self._refuse("UO", "")
            return
        host = self.host = self._pick(cluster)
        if host is None:
            self._refuse("UH", "")
            return
        self._attempts += 1
        outcome.attempts = self._attempts
        outcome.upstream_address = host.name
        outcome.upstream_host = host.endpoint.hostname
        outcome.upstream_metadata = host.endpoint.metadata
        breaker.add_connections(1)
        host.active += 1
        station.dialer.dial(host, cluster.config, _UpstreamSide(self), bulk=True)

    def _pick(self, cluster: ClusterRuntime) -> Host | None:
        connection = self.outcome.connection
        if cluster.config.discovery == "original_dst":
            address, port = connection.local
            return cluster.original_destination(
                Endpoint(Address(address, cluster.config.upstream_port or port))
            )
        key = xxhash64(connection.remote[0].encode()) if self.station.proxy.hash_source_ip else None
        return cluster.pick(
            (self._random + self._attempts * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF, key, {}
        )

    def joined(self, transport: PlainTransport, peer: PeerIdentity | None) -> None:
        """The upstream is connected."""
        cluster = self.cluster
        assert cluster is not None
        if self.over:
            transport.close()
            self._left()
            return
        self.upstream = transport
        transport.receive_size = RECEIVE
        outcome = self.outcome
        outcome.upstream_peer = peer
        outcome.upstream_connected_at = transport.reactor.now
        name = transport.socket.getsockname()
        outcome.upstream_local = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name)
        slots, stats = cluster.slots, cluster.stats
        slots[stats.upstream_cx_total] += 1
        slots[stats.upstream_cx_active] += 1
        self._series = self.station.recorder.record_tcp_opened(outcome)
        self.relay.join(transport)

    def failed(self, reason: str, failure: str) -> None:
        """The upstream could not be connected."""
        cluster, host = self.cluster, self.host
        assert cluster is not None and host is not None
        self._left()
        slots, stats = cluster.slots, cluster.stats
        slots[stats.upstream_cx_connect_fail] += 1
        if reason == reset.CONNECT_TIMEOUT:
            slots[stats.upstream_cx_connect_timeout] += 1
        now = self.transport.reactor.now
        if cluster.detector is not None:
            ejected = cluster.detector.local_failure(host, now, self._random % 100, len(cluster.hosts))
            cluster.count_outliers()
            if ejected:
                cluster.rebuild()
        if self.over:
            return
        self.outcome.upstream_failure = failure
        if self._attempts < self.station.proxy.max_connect_attempts:
            self.begin()
        else:
            self.outcome.flags.append("URX" if self.station.proxy.max_connect_attempts > 1 else "UF")
            self.stop("")

    # From the client's transport

    def received(self, data: bytes) -> None:
        """See TransportOwner."""
        self.touch()
        self.relay.client_data(data)
        if self.upstream is not None:
            self.upstream.flush()

    def ended(self) -> None:
        """See TransportOwner."""
        if self.relay.end_client():
            self.complete()

    def lost(self, reason: str) -> None:
        """See TransportOwner."""
        self._client_gone = True
        self.stop("DC" if self.upstream is None else "")

    def hung_up(self, broken: bool) -> None:
        """See TransportOwner. A half-close waits for what came before it; a client that is gone takes no more."""
        if broken:
            self.transport.close()
            self.lost("connection reset")

    def drained(self) -> None:
        """See TransportOwner."""
        self.relay.client_drained()

    def touch(self) -> None:
        """Bytes moved: the idle clock starts again."""
        timeout = self.station.proxy.idle_timeout
        if timeout:
            self._idle_at = self.transport.reactor.now + timeout

    def _timed_out(self) -> None:
        now = self.transport.reactor.now
        slots, stats = self.station.recorder.slots, self.station.stats
        if self._max_at <= now:
            slots[stats.max_downstream_connection_duration] += 1
            self.stop("DT")
        elif self._idle_at <= now:
            slots[stats.idle_timeout] += 1
            self.stop("")
        else:
            self._timer.set(min(self._idle_at, self._max_at))

    # The end

    def complete(self) -> None:
        """Both directions have ended: send what is queued and close."""
        self.transport.close_when_sent()
        if self.upstream is not None:
            self.upstream.close_when_sent()
        self._over()

    def _refuse(self, flag: str, details: str) -> None:
        self.outcome.flags.append(flag)
        self.stop(details)

    def stop(self, flag_or_details: str) -> None:
        """Something broke, or time is up: close both sides, after what they are still owed."""
        if self.over:
            return
        if flag_or_details in ("DC", "DT"):
            self.outcome.flags.append(flag_or_details)
        elif flag_or_details:
            self.outcome.details = flag_or_details
        if self.upstream is not None and not self.upstream.closed:
            self.upstream.close_when_sent()
        if not self.transport.closed:
            self.transport.close_when_sent()
        self._over()

    def _left(self) -> None:
        """The breaker and the host are given back what a dial took."""
        cluster, host = self.cluster, self.host
        if cluster is not None and host is not None:
            cluster.breakers[0].add_connections(-1)
            host.active -= 1

    def _over(self) -> None:
        if self.over:
            return
        self.over = True
        self._timer.close()
        outcome, station, cluster = self.outcome, self.station, self.cluster
        now = self.transport.reactor.now
        relay = self.relay
        outcome.bytes_received, outcome.bytes_sent = relay.from_client, relay.from_upstream
        outcome.finished_at = outcome.downstream_last_at = now
        outcome.duration = now - outcome.started_at
        slots, stats = station.recorder.slots, station.stats
        slots[stats.downstream_cx_rx_bytes_total] += relay.from_client
        slots[stats.downstream_cx_tx_bytes_total] += relay.from_upstream
        if self.upstream is not None:
            self._left()
            if cluster is not None:
                cluster.slots[cluster.stats.upstream_cx_active] -= 1
                cluster.slots[cluster.stats.upstream_cx_destroy] += 1
                cluster.slots[cluster.stats.upstream_cx_rx_bytes_total] += relay.from_upstream
                cluster.slots[cluster.stats.upstream_cx_tx_bytes_total] += relay.from_client
            station.recorder.record_tcp_bytes(self._series, relay.from_client, relay.from_upstream)
            station.recorder.record_tcp_closed(self._series)
        for log in station.logs:
            log(outcome)
        station.leave(self)
