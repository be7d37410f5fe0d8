"""Everything that one table has brought to life: clusters, listeners, stations. A worker has one for each workload.

Rule: `apply` first builds what is new beside what serves (space_build), which fails resource by resource and changes
nothing; then it swaps, which cannot fail. What did not change keeps its object: clusters their hosts, pools and outlier
state, stations their connections; a change of endpoints alone touches nothing but the hosts of that cluster.
Not for: what the objects do; where tables come from.
"""

from __future__ import annotations

import errno
import logging
import os
import select
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from agent.filters import FilterState
from agent.filters.names import values_of
from agent.limits.tally import Tally
from agent.table.access_log import AccessLog
from agent.table.build import Refused
from agent.table.cluster import Cluster, Endpoint
from agent.table.listener import Direction, FixedAnswer, Listener
from agent.table.snapshot import Table
from agent.upstream import breaker
from agent.upstream.cluster import ClusterRuntime
from agent.upstream.host import Host
from agent.upstream.pool import Pool
from agent.worker.accept import ListenerRuntime
from agent.worker.acceptor import Acceptor
from agent.worker.chain_match import owner
from agent.worker.connect import Dialer
from agent.worker.health import ClusterChecks
from agent.worker.http_station import HttpStation
from agent.worker.listen import bind
from agent.worker.raw import RawUpstream
from agent.worker.reactor import IN
from agent.worker.services import Services
from agent.worker.space_build import Build, Builder, ClientContexts
from agent.worker.station import Station
from agent.worker.tcp import TcpStation
from agent.worker.tls_contexts import ClientTls
from agent.worker.upstream import H1Upstream

_QUEUE = 64
"""How often a listener that stops accepts what waits: a full queue and a little more."""
DRAIN_SECONDS = 60.0
"""How long connections of a filter chain, or of a workload, that left the table may go on."""
_AGAIN = 1.0
_SEE_OFF = 1.0
"""Seconds between two looks whether they are over."""
_log = logging.getLogger("hostmesh.worker")


class Space:
    """See the module."""

    def __init__(self, services: Services, dialer: Dialer) -> None:
        self.services = services
        self.dialer = dialer
        self.table = Table()
        self.clusters: dict[str, ClusterRuntime] = {}
        """The same dictionary for life: stations look names up in it for each request."""
        self.listeners: dict[str, ListenerRuntime] = {}
        self.acceptors: dict[tuple[str, int, str], Acceptor] = {}
        self.waiting: dict[tuple[str, int, str], str] = {}
        """Addresses of the table that cannot be listened on at present, with the reason."""
        self.leaving: list[Station] = []
        self.client_tls: ClientContexts = {}
        self._by_address: dict[tuple[str, int], ListenerRuntime] = {}
        self._stations: dict[str, list[Station]] = {}
        self._filter_state = FilterState(services.shares)
        self._checks: dict[ClusterRuntime, ClusterChecks] = {}
        self._opened = False
        """Listeners have opened since `bind_waiting` was last asked."""
        self._draining: tuple[Direction, ...] = ()
        """Listeners whose responses end their connections."""
        self._stopped: tuple[Direction, ...] = ()
        """Listeners that accept no more."""
        self._failing = False
        self._seeing_off = services.reactor.timer(self._see_off)
        self._unsettled = 0
        """Clusters whose first resolution or health checks keep the listeners waiting."""

    # Applying a table

    def apply(self, table: Table) -> tuple[Refused, ...]:
        """Take a table, and name what of it cannot be used: that stays as it was. Where ports may not wait:
        raises OSError for an address that cannot be listened on, with everything as it was."""
        build = Builder(self, table, self._filter_state).build()
        sockets, waiting = self._bind(build.runtimes)
        self._commit(build, sockets)
        self.waiting = waiting
        return tuple(dict.fromkeys(build.refused))

    def stations_of(self, listener: str) -> Sequence[Station]:
        """The ends of a listener's chains, in their order."""
        return self._stations.get(listener, ())

    def _new_cluster(self, config: Cluster) -> ClusterRuntime:
        services = self.services
        stats = services.recorder.cluster(config.alt_stat_name or config.name)
        return ClusterRuntime(
            config,
            self._connect,
            stats,
            services.recorder.slots,
            services.random() & 0xFFFF,
            self._tallies(config),
        )

    def _tallies(self, config: Cluster) -> Sequence[Tally] | None:
        """What the breakers of a cluster count in, if not on their own."""
        shares = self.services.shares
        return None if shares is None else shares.tallies(f"cluster|{config.name}", 2 * breaker.COUNTS)

    def _connect(self, pool: Pool) -> None:
        self.dialer.dial(pool.host, pool.cluster.config, H1Upstream(pool), server_name=pool.server_name)

    def raw_pool(self, host: Host) -> Pool:
        """For one TCP connection."""
        return Pool(
            host,
            host.pool.cluster,
            lambda pool: self.dialer.dial(pool.host, pool.cluster.config, RawUpstream(pool)),
        )

    def bind_waiting(self) -> bool:
        """Try again to listen where that was not possible; whether anything changed, also by the first resolutions and
        health checks."""
        changed, self._opened = self._opened, False
        if not self.waiting:
            return changed
        opened, waiting = self._bind(self.listeners)
        self._move_sockets(opened)
        changed = changed or waiting != self.waiting
        self.waiting = waiting
        return changed

    def _bind(
        self, runtimes: Mapping[str, ListenerRuntime]
    ) -> tuple[dict[tuple[str, int, str], Acceptor], dict[tuple[str, int, str], str]]:
        """Sockets for addresses that are new, and the addresses that must wait. Where ports may not wait: raises OSError
        and closes what it opened."""
        opened: dict[tuple[str, int, str], Acceptor] = {}
        waiting: dict[tuple[str, int, str], str] = {}
        try:
            for runtime in runtimes.values():
                listener = runtime.listener
                if not self._listens(listener):
                    continue
                for address in (listener.address, *listener.additional_addresses):
                    key = (address.host, address.port, address.path)
                    if key in self.acceptors or key in opened:
                        continue
                    try:
                        sock = bind(address, transparent=listener.transparent, backlog=listener.backlog)
                    except OSError as error:
                        # The port is this host's business, not the configuration's: the rest of the table is served.
                        if not self.services.ports_may_wait:
                            raise
                        waiting[key] = os.strerror(error.errno or errno.EADDRNOTAVAIL)
                        continue
                    opened[key] = Acceptor(sock, self.services.reactor, runtime)
        except OSError:
            for acceptor in opened.values():
                acceptor.stop()
            raise
        return opened, waiting

    def _commit(self, build: Build, sockets: dict[tuple[str, int, str], Acceptor]) -> None:
        """Swap. Nothing here may fail."""
        table = build.table
        for tls, renewal in build.renewals:
            tls.adopt(renewal)
        self.client_tls = build.client_tls
        starting = not self.acceptors
        gone = [runtime for name, runtime in self.clusters.items() if name not in table.clusters]
        for name in [name for name in self.clusters if name not in table.clusters]:
            del self.clusters[name]
        for name, config in table.clusters.items():
            try:
                runtime = self.clusters.get(name)
                if runtime is None:
                    runtime = self.clusters[name] = self._new_cluster(config)
                runtime.reconfigure(config, self._tls_of(config))
                self._bring_up(runtime, config, table, starting=starting)
            except Exception:
                # A fault of ours, which must not leave the rest of the table out.
                _log.exception("cluster %s", name)
        for runtime in gone:
            self._end(runtime)
        for station, chain in build.chains:
            station.chain = chain
        for station, router, routes in build.routers:
            station.setting.router = router
            station.routes = routes
        kept = {id(station) for held in build.stations.values() for station in held}
        left = [station for held in self._stations.values() for station in held if id(station) not in kept]
        self._stations = build.stations
        self.listeners = build.runtimes
        self._by_address = {
            (address.host, address.port): runtime
            for runtime in build.runtimes.values()
            for address in (runtime.listener.address, *runtime.listener.additional_addresses)
        }
        self._move_sockets(sockets)
        self.table = table
        self._mark_draining()
        if left:
            self._let_go(left)
        self._forget_filters()

    def _listens(self, listener: Listener) -> bool:
        return listener.bind and listener.direction not in self._stopped

    def _bring_up(self, runtime: ClusterRuntime, config: Cluster, table: Table, *, starting: bool) -> None:
        """Give a cluster its hosts and its checks. At the start nobody is accepted before names have been resolved and
        health checks have told who is there, as in Envoy."""
        waits = starting and config.wait_for_warm
        if config.discovery in ("strict_dns", "logical_dns"):
            if waits:
                self._unsettled += 1
                self.services.resolve(runtime, partial(self._resolved, runtime))
            else:
                self.services.resolve(runtime, _nothing)
            self._check(runtime, waits=False)
            return
        self._set_hosts(runtime, config, table)
        self._check(runtime, waits=waits)

    def _resolved(self, runtime: ClusterRuntime) -> None:
        """The first name of a cluster that listeners wait for."""
        checks = self._checks.get(runtime)
        if checks is not None and checks.waiting:
            checks.settled = self._settle
        else:
            self._settle()

    def _check(self, runtime: ClusterRuntime, *, waits: bool) -> None:
        if not runtime.config.health_checks or runtime in self._checks:
            return
        checks = self._checks[runtime] = ClusterChecks(runtime, self.dialer, self.services.random)
        if waits and checks.waiting:
            self._unsettled += 1
            checks.settled = self._settle

    def _settle(self) -> None:
        self._unsettled -= 1
        if not self._unsettled:
            self._opened = True
            for acceptor in self.acceptors.values():
                acceptor.start()

    def _end(self, runtime: ClusterRuntime) -> None:
        """A cluster has gone: no names, no checks, no hosts."""
        self.services.forget(runtime)
        self._checks.pop(runtime, None)
        runtime.by_endpoint.clear()
        runtime.update_hosts(())

    def _forget_filters(self) -> None:
        """State of filters is kept for what serves, or still ends."""
        used: list[object] = []
        for station in self.every_station():
            used += values_of(station.chain.network_filters)
            if isinstance(station, HttpStation):
                used += values_of(station.setting.manager.filters, station.routes)
        self._filter_state.keep_only(used)

    def _move_sockets(self, sockets: dict[tuple[str, int, str], Acceptor]) -> None:
        acceptors = {**self.acceptors, **sockets}
        wanted: dict[tuple[str, int, str], ListenerRuntime] = {}
        for runtime in self.listeners.values():
            listener = runtime.listener
            if self._listens(listener):
                for address in (listener.address, *listener.additional_addresses):
                    wanted[(address.host, address.port, address.path)] = runtime
        for key, acceptor in acceptors.items():
            if key in wanted:
                acceptor.runtime = wanted[key]
                if not self._unsettled:
                    acceptor.start()
            else:
                acceptor.stop()
        self.acceptors = {key: acceptor for key, acceptor in acceptors.items() if key in wanted}

    def _let_go(self, stations: list[Station]) -> None:
        until = self.services.reactor.now + DRAIN_SECONDS
        for station in stations:
            station.draining = True
            station.leaves_at = until
        self.leaving.extend(stations)
        self._see_off()

    def _see_off(self) -> None:
        """Chains that have left the table go with their last connection, or when their time is over."""
        now = self.services.reactor.now
        for station in self.leaving:
            if station.leaves_at <= now:
                station.close_all()
        before = len(self.leaving)
        self.leaving = [station for station in self.leaving if station.occupied()]
        if self.leaving:
            self._seeing_off.set(now + _SEE_OFF)
        if len(self.leaving) < before:
            self._forget_filters()

    # Clusters

    def _tls_of(self, config: Cluster) -> Callable[[Endpoint], Any]:
        """The TLS of an endpoint: the first transport_socket_match that its metadata satisfies, else the cluster's."""
        contexts = self.client_tls
        default = contexts[(config.name, config.tls)] if config.tls is not None else None
        matches = [
            (match.match, contexts[(config.name, match.tls)] if match.tls is not None else None)
            for match in config.transport_matches
        ]

        def tls_of(endpoint: Endpoint) -> ClientTls | None:
            if matches:
                labels = endpoint.metadata.get("envoy.transport_socket_match", {})
                for wanted, tls in matches:
                    if all(labels.get(name) == value for name, value in wanted.items()):
                        return tls
            return default

        return tls_of

    def _set_hosts(self, runtime: ClusterRuntime, config: Cluster, table: Table) -> None:
        if config.discovery == "static" and config.assignment is not None:
            runtime.update_hosts(config.assignment.endpoints, config.assignment.overprovisioning)
        elif config.discovery == "eds":
            assignment = table.assignments.get(config.eds_name or config.name)
            if assignment is not None:
                runtime.update_hosts(assignment.endpoints, assignment.overprovisioning)

    def owner_of(self, address: tuple[str, int]) -> ListenerRuntime | None:
        """The listener for an original destination: its address, else the wildcard with its port."""
        return owner(self._by_address, address)

    # The end

    def drain(self) -> None:
        """Accept no more; connections end with their next response, idle ones when none comes."""
        self._draining = tuple(Direction)
        self.stop_listeners(tuple(Direction))
        self.waiting = {}
        for station in self.every_station():
            station.drain()

    def close(self) -> None:
        """The time is over."""
        for station in self.every_station():
            station.close_all()

    def leave(self, over: Callable[[], None]) -> None:
        """The workload is no more: its connections may go on for DRAIN_SECONDS; then all that is held here ends, and
        `over` is called."""
        self.drain()
        reactor = self.services.reactor
        until = reactor.now + DRAIN_SECONDS

        def look() -> None:
            if self.connections() and reactor.now < until:
                timer.set(reactor.now + _AGAIN)
                return
            timer.close()
            self.close()
            for runtime in self.clusters.values():
                self._end(runtime)
            self.clusters.clear()
            over()

        timer = reactor.timer(look)
        timer.set(reactor.now + _AGAIN)

    def begin_drain(self, directions: Sequence[Direction]) -> None:
        """Listeners of these directions go on, and every response asks its client for another connection."""
        self._draining = tuple(directions)
        self._mark_draining()

    def stop_listeners(self, directions: Sequence[Direction]) -> None:
        """Accept no more for good, but what waits in the kernel's queues; connections stay."""
        self._stopped = tuple(directions)
        for key, acceptor in list(self.acceptors.items()):
            if acceptor.runtime.listener.direction in self._stopped:
                del self.acceptors[key]
                _take_queue(acceptor)
                acceptor.stop()

    def fail_health_checks(self, failing: bool) -> None:
        """As long as the proxy is failing, every response asks its client for another connection, as Envoy's do."""
        self._failing = failing
        self._mark_draining()

    def _mark_draining(self) -> None:
        for name, held in self._stations.items():
            for station in held:
                station.draining = self._failing or self.listeners[name].listener.direction in self._draining

    def every_station(self) -> list[Station]:
        """Of the table and those that are leaving."""
        return [*(station for held in self._stations.values() for station in held), *self.leaving]

    def access_logs(self) -> list[AccessLog]:
        """What is logged to: by the chains of the table and those that are leaving."""
        found = [log for runtime in self.listeners.values() for log in runtime.listener.access_logs]
        for station in self.every_station():
            terminal = station.chain.terminal
            if not isinstance(terminal, FixedAnswer):
                found += terminal.access_logs
            if isinstance(station, HttpStation):
                found += station.setting.listener.access_logs
            elif isinstance(station, TcpStation):
                found += station.listener.access_logs
        return found

    def connections(self) -> int:
        """Open client connections."""
        return sum(len(station.inside) + len(station.refused) for station in self.every_station())


def _take_queue(acceptor: Acceptor) -> None:
    """Connections that the kernel has already accepted would be reset with the listening socket."""
    queue = select.poll()
    queue.register(acceptor.socket, select.POLLIN)
    for _ in range(_QUEUE):
        if not acceptor.accepting or not queue.poll(0):
            return
        acceptor.on_event(IN)


def _nothing() -> None:
    """Nobody waits."""
