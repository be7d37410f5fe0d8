"""Opaque TCP: a filter chain that ends in a tcp_proxy, and its connections.

Rule: the upstream is chosen and dialled when the connection arrives; with `max_connect_attempts` the next try may go
elsewhere. A connection is recorded once, when its relay is over; its sides are counted until they are closed.

    end                                        client's side              upstream's side            flags
    both directions ended                      sent, then closed          sent, then closed
    the upstream broke off                     RST                        -                          UR
    the client broke off                       -                          RST                        (DC: no upstream yet)
    idle, too old, drained                     closed                     closed                     (DT too old)
    no upstream                                closed                     -                          UF,URX UH UO NC NR

Not for: moving bytes (agent/tcp/relay), dialling (connect), sending what is left at the end (linger).
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
from agent.worker.linger import Linger
from agent.worker.station import Admitted, Door, Station
from agent.worker.transport import PlainTransport

RECEIVE: Final = 262144
"""Bytes asked of the kernel at once: few and large pieces are what an opaque stream needs."""
_PATIENCE: Final = 3600.0
"""Seconds without progress at the end of a connection whose proxy has no idle timeout (Envoy's default for it)."""


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
        self._tcp.upstream_lost()

    def drained(self) -> None:
        self._tcp.relay.upstream_drained()

    def connected(self, transport: PlainTransport, peer: PeerIdentity | None) -> None:
        self._tcp.joined(transport, peer)

    def unreachable(self, reason: str, failure: str) -> None:
        self._tcp.failed(reason, failure)


class TcpConnection(Admitted):
    """One client's connection. Invariant: once `over`, nothing is relayed, recorded or logged again; the station has it until
    the client's side is closed, and the cluster's counts until the upstream's is."""

    __slots__ = (
        "_attempts", "_client_linger", "_holds_host", "_idle_at", "_max_at", "_random", "_series", "_timer", "_upstream_linger",
        "cluster", "host", "outcome", "over", "relay", "station", "transport", "upstream",
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
        self._holds_host = False
        """A dial or a connection is counted by breaker and host."""
        self._client_linger: Linger | None = None
        self._upstream_linger: Linger | None = None
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
        self._holds_host = True
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
            self._give_back()
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
        self._give_back()
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
            self.outcome.flags.extend(("UF", "URX"))
            self._stop()

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
        """See TransportOwner. A client that broke off is not a client that has said everything."""
        if self.upstream is None:
            self.outcome.flags.append("DC")
        elif not self.upstream.closed:
            self.upstream.abort()
        self._stop()

    def upstream_lost(self) -> None:
        """The upstream broke off: the client must not take what it got for the whole."""
        self.outcome.flags.append("UR")
        self.transport.abort()
        self._stop()

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
            self.outcome.flags.append("DT")
            self._stop()
        elif self._idle_at <= now:
            slots[stats.idle_timeout] += 1
            self._stop()
        else:
            self._timer.set(min(self._idle_at, self._max_at))

    # The end

    def complete(self) -> None:
        """Both directions have ended: send what is queued and close. Whoever takes nothing for as long as an idle connection
        may live is closed all the same."""
        upstream = self.upstream
        assert upstream is not None
        patience = self.station.proxy.idle_timeout or _PATIENCE
        self._record()
        self._idle_at = inf
        self._client_linger = Linger(self.transport, patience, self._client_closed)
        self._upstream_linger = Linger(upstream, patience, self._upstream_closed)
        self._client_linger.close_when_sent()
        self._upstream_linger.close_when_sent()

    def _refuse(self, flag: str, details: str) -> None:
        self.outcome.flags.append(flag)
        self.outcome.details = details
        self._stop()

    def drain(self) -> None:
        """See Admitted: nothing is known to be idle."""

    def cut(self) -> None:
        """See Admitted."""
        self._stop()

    def _stop(self) -> None:
        """Something broke, or time is up: close both sides, now."""
        self._record()
        if self._client_linger is not None:
            self._client_linger.close()
        if self._upstream_linger is not None:
            self._upstream_linger.close()
        self.transport.close()
        self._client_closed()
        if self.upstream is not None:
            self.upstream.close()
            self._upstream_closed()

    def _client_closed(self) -> None:
        self._client_linger = None
        self._timer.close()
        self.station.leave(self)

    def _upstream_closed(self) -> None:
        self._upstream_linger = None
        cluster = self.cluster
        if self._holds_host and cluster is not None:
            cluster.slots[cluster.stats.upstream_cx_active] -= 1
            cluster.slots[cluster.stats.upstream_cx_destroy] += 1
            self._give_back()

    def _give_back(self) -> None:
        """Breaker and host get back what a dial took."""
        cluster, host = self.cluster, self.host
        if self._holds_host and cluster is not None and host is not None:
            self._holds_host = False
            cluster.breakers[0].add_connections(-1)
            host.active -= 1

    def _record(self) -> None:
        """The relay is over: statistics and the log, once."""
        if self.over:
            return
        self.over = True
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
            if cluster is not None:
                cluster.slots[cluster.stats.upstream_cx_rx_bytes_total] += relay.from_upstream
                cluster.slots[cluster.stats.upstream_cx_tx_bytes_total] += relay.from_client
            station.recorder.record_tcp_bytes(self._series, relay.from_client, relay.from_upstream)
            station.recorder.record_tcp_closed(self._series)
        for log in station.logs:
            log(outcome)
