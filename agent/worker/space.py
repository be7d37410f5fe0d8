"""Everything that one table has brought to life: clusters, listeners, stations. A worker has one for each workload.

Rule: `apply` first builds what is new, which may fail and then changes nothing; then it swaps, which cannot fail. What did
not change keeps its object: clusters their hosts, pools and outlier state, stations their connections; a change of
endpoints alone touches nothing but the hosts of that cluster.
Not for: what the objects do; where tables come from.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from agent.exchange.local_reply import compile_rewrite
from agent.exchange.setting import Setting
from agent.filters import FilterState, compile_steps
from agent.filters.names import Names
from agent.filters.network import compile_network
from agent.http.intake import compile_intake
from agent.http.outgoing import compile_outgoing
from agent.limits.tally import Tally
from agent.routing.compile import Router, compile_routes
from agent.routing.normalise import compile_normaliser
from agent.table.cluster import Cluster, Endpoint
from agent.table.listener import FilterChain, FixedAnswer, HttpManager, Listener
from agent.table.route import RouteConfiguration
from agent.table.snapshot import Table
from agent.table.tls import UpstreamTls
from agent.upstream import breaker
from agent.upstream.cluster import ClusterRuntime
from agent.upstream.host import Host
from agent.upstream.pool import Pool
from agent.worker.accept import ListenerRuntime
from agent.worker.acceptor import Acceptor
from agent.worker.answers import AnswerStation
from agent.worker.chain_match import ChainIndex, owner
from agent.worker.connect import Dialer
from agent.worker.health import ClusterChecks
from agent.worker.http_station import HttpStation
from agent.worker.listen import bind, host_address
from agent.worker.raw import RawUpstream
from agent.worker.services import Services
from agent.worker.station import Door, Station
from agent.worker.tcp import TcpStation
from agent.worker.tls_contexts import ClientTls, ServerTls
from agent.worker.upstream import H1Upstream

DRAIN_SECONDS = 60.0
"""How long connections of a filter chain that left the table may go on."""


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
        self._by_address: dict[tuple[str, int], ListenerRuntime] = {}
        self._stations: dict[str, list[Station]] = {}
        self._filter_state = FilterState(services.shares)
        self._unsettled = 0
        """Clusters whose first health checks keep the listeners waiting."""
        self._client_tls: dict[tuple[str, UpstreamTls], ClientTls] = {}

    # Applying a table

    def apply(self, table: Table) -> None:
        """Take a table. Raises TlsError, OSError or ValueError (ConfigError) with everything as it was."""
        tls = self._prepare_tls(table)
        names = None
        if self.services.shares is not None:
            names = Names(table.routes)
            self._filter_state.names = names.by_identity
        clusters = {
            name: self.clusters.get(name) or self._new_cluster(cluster)
            for name, cluster in table.clusters.items()
        }
        stations: dict[str, list[Station]] = {}
        runtimes: dict[str, ListenerRuntime] = {}
        routers: list[tuple[HttpStation, Router, RouteConfiguration]] = []
        for name, listener in table.listeners.items():
            runtimes[name], stations[name] = self._listener(name, listener, table, routers, names)
        sockets, waiting = self._bind(runtimes)
        self._commit(table, clusters, tls, runtimes, stations, routers, sockets)
        self.waiting = waiting

    def _prepare_tls(self, table: Table) -> dict[tuple[str, UpstreamTls], ClientTls]:
        """Contexts of all clusters: kept where the settings are the same, renewed where a secret changed."""
        found: dict[tuple[str, UpstreamTls], ClientTls] = {}
        for cluster in table.clusters.values():
            settings = [cluster.tls, *(match.tls for match in cluster.transport_matches)]
            for one in settings:
                if one is None or (cluster.name, one) in found:
                    continue
                known = self._client_tls.get((cluster.name, one))
                if known is None:
                    known = ClientTls(one, table.secrets, http=True)
                else:
                    known.refresh(table.secrets)
                found[(cluster.name, one)] = known
        return found

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
        self.dialer.dial(pool.host, pool.cluster.config, H1Upstream(pool))

    def _raw_pool(self, host: Host) -> Pool:
        """For one TCP connection."""
        return Pool(
            host,
            host.pool.cluster,
            lambda pool: self.dialer.dial(pool.host, pool.cluster.config, RawUpstream(pool)),
        )

    def _listener(
        self,
        name: str,
        listener: Listener,
        table: Table,
        routers: list[tuple[HttpStation, Router, RouteConfiguration]],
        names: Names | None,
    ) -> tuple[ListenerRuntime, list[Station]]:
        """The runtime of a listener, with the stations of unchanged filter chains."""
        known = self.listeners.get(name)
        same = known is not None and known.listener is listener
        if known is not None and (same or same_but_chains(known.listener, listener)):
            old = list(self._stations.get(name, ()))
        else:
            old = []
        made: list[tuple[FilterChain, Station]] = []
        chains = [*listener.chains, *([listener.default_chain] if listener.default_chain is not None else [])]
        for chain in chains:
            station = next((held for held in old if held.chain is chain or held.chain == chain), None)
            if names is not None:
                former = station.setting.manager if isinstance(station, HttpStation) else None
                names.chain(name, chain, former)
            if station is None:
                station = self._station(chain, listener, table)
            else:
                old.remove(station)
                station.chain = chain
                if station.tls is not None:
                    station.tls.refresh(table.secrets)
                if isinstance(station, HttpStation):
                    routes = route_configuration(station.setting.manager, table)
                    if routes is not station.routes:
                        routers.append((station, self._router(station.setting.manager, routes), routes))
            made.append((chain, station))
        stations = [station for _, station in made]
        default = stations[-1] if listener.default_chain is not None else None
        index = ChainIndex(
            [(chain.match, station) for chain, station in made if station is not default], default
        )
        recorder = self.services.recorder
        stats = recorder.listener(stat_name(listener))
        runtime = ListenerRuntime(listener, index, stats, recorder.slots, self._owner_of)
        return runtime, stations

    def _station(self, chain: FilterChain, listener: Listener, table: Table) -> Station:
        services = self.services
        terminal = chain.terminal
        is_http = isinstance(terminal, HttpManager)
        tls = ServerTls(chain.tls, table.secrets, http=is_http) if chain.tls is not None else None
        gate = compile_network(chain.network_filters, self._filter_state)
        door = Door(
            chain, tls, gate, services.recorder.listener(stat_name(listener)), services.recorder.slots
        )
        if isinstance(terminal, FixedAnswer):
            return AnswerStation(door, terminal)
        logs = services.sinks.compile((*terminal.access_logs, *listener.access_logs))
        if not isinstance(terminal, HttpManager):
            return TcpStation(
                door, terminal, listener, self.clusters, logs=logs, recorder=services.recorder, dialer=self.dialer,
                random=services.random,
            )  # fmt: skip
        routes = route_configuration(terminal, table)
        setting = Setting(
            terminal, listener, self._router(terminal, routes), self.clusters,
            intake=compile_intake(terminal, host_address()), normalise=compile_normaliser(terminal),
            outgoing=compile_outgoing(terminal),
            rewrite=compile_rewrite(terminal.local_reply), logs=logs, record=services.recorder.record,
            stats=services.recorder.http(terminal.stat_prefix), slots=services.recorder.slots, clock=services.reactor,
            random=services.random, raw_pool=self._raw_pool, host_address=host_address(),
        )  # fmt: skip
        return HttpStation(door, setting, routes)

    def _router(self, manager: HttpManager, routes: RouteConfiguration) -> Router:
        suppress = manager.router is not None and manager.router.suppress_envoy_headers
        return compile_routes(
            routes,
            lambda scope: compile_steps(
                manager.filters,
                scope,
                self._filter_state,
                self.services.recorder.count,
                f"http.{manager.stat_prefix}.",
            ),
            suppress_envoy_headers=suppress,
        )

    def bind_waiting(self) -> bool:
        """Try again to listen where that was not possible; whether anything changed."""
        if not self.waiting:
            return False
        opened, waiting = self._bind(self.listeners)
        self._move_sockets(opened)
        changed, self.waiting = waiting != self.waiting, waiting
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
                if not listener.bind:
                    continue
                for address in (listener.address, *listener.additional_addresses):
                    key = (address.host, address.port, address.path)
                    if key in self.acceptors or key in opened:
                        continue
                    try:
                        sock = bind(address, transparent=listener.transparent)
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

    def _commit(
        self, table: Table, clusters: dict[str, ClusterRuntime], tls: dict[tuple[str, UpstreamTls], ClientTls],
        runtimes: dict[str, ListenerRuntime], stations: dict[str, list[Station]],
        routers: list[tuple[HttpStation, Router, RouteConfiguration]], sockets: dict[tuple[str, int, str], Acceptor],
    ) -> None:  # fmt: skip
        """Swap. Nothing here may fail."""
        gone = [runtime for name, runtime in self.clusters.items() if name not in clusters]
        self.clusters.clear()
        self.clusters.update(clusters)
        self._client_tls = tls
        for name, runtime in clusters.items():
            config = table.clusters[name]
            runtime.reconfigure(config, self._tls_of(config))
            self._set_hosts(runtime, config, table)
            if config.health_checks and runtime.watch is None:
                self._wait_for(ClusterChecks(runtime, self.dialer, self.services.random))
        for runtime in gone:
            runtime.update_hosts(())
        for station, router, routes in routers:
            station.setting.router = router
            station.routes = routes
        kept = {id(station) for held in stations.values() for station in held}
        left = [station for held in self._stations.values() for station in held if id(station) not in kept]
        self._stations = stations
        self.listeners = runtimes
        self._by_address = {
            (address.host, address.port): runtime
            for runtime in runtimes.values()
            for address in (runtime.listener.address, *runtime.listener.additional_addresses)
        }
        self._move_sockets(sockets)
        self.table = table
        if left:
            self._let_go(left)

    def _wait_for(self, checks: ClusterChecks) -> None:
        """At the start nobody is accepted before the first health checks have told who is there, as in Envoy."""
        if self.acceptors or not checks.waiting:
            return
        self._unsettled += 1

        def settled() -> None:
            self._unsettled -= 1
            if not self._unsettled:
                for acceptor in self.acceptors.values():
                    acceptor.start()

        checks.settled = settled

    def _move_sockets(self, sockets: dict[tuple[str, int, str], Acceptor]) -> None:
        acceptors = {**self.acceptors, **sockets}
        wanted: dict[tuple[str, int, str], ListenerRuntime] = {}
        for runtime in self.listeners.values():
            listener = runtime.listener
            if listener.bind:
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
        for station in stations:
            station.drain()
        self.leaving.extend(stations)

        def over() -> None:
            for station in stations:
                station.close_idle()
                station.close_all()
                if station in self.leaving:
                    self.leaving.remove(station)

        self.services.reactor.timer(over).set(self.services.reactor.now + DRAIN_SECONDS)

    # Clusters

    def _tls_of(self, config: Cluster) -> Callable[[Endpoint], Any]:
        """The TLS of an endpoint: the first transport_socket_match that its metadata satisfies, else the cluster's."""
        contexts = self._client_tls
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
        elif config.discovery in ("strict_dns", "logical_dns"):
            self.services.resolve(runtime)

    def _owner_of(self, address: tuple[str, int]) -> ListenerRuntime | None:
        """The listener for an original destination: its address, else the wildcard with its port."""
        return owner(self._by_address, address)

    # The end

    def drain(self) -> None:
        """Accept no more; connections end with their next response."""
        for acceptor in self.acceptors.values():
            acceptor.stop()
        self.acceptors, self.waiting = {}, {}
        for station in self.every_station():
            station.drain()
            station.close_idle()

    def close(self) -> None:
        """The time is over."""
        for station in self.every_station():
            station.close_all()

    def every_station(self) -> list[Station]:
        """Of the table and those that are leaving."""
        return [*(station for held in self._stations.values() for station in held), *self.leaving]

    def connections(self) -> int:
        """Open client connections."""
        return sum(len(station.inside) for station in self.every_station())


def same_but_chains(old: Listener, new: Listener) -> bool:
    """Is everything but the filter chains as it was? Then chains that did not change keep their connections."""
    return replace(old, chains=(), default_chain=None) == replace(new, chains=(), default_chain=None)


def route_configuration(manager: HttpManager, table: Table) -> RouteConfiguration:
    """The manager's own routes, or those that RDS delivered; an empty configuration answers 404 until they come."""
    if isinstance(manager.route, RouteConfiguration):
        return manager.route
    found = table.routes.get(manager.route)
    return (
        found
        if found is not None
        else _EMPTY_ROUTES.setdefault(manager.route, RouteConfiguration(manager.route))
    )


_EMPTY_ROUTES: dict[str, RouteConfiguration] = {}


def stat_name(listener: Listener) -> str:
    """What follows `listener.` in the names of its statistics."""
    address = listener.address
    return listener.stat_prefix or f"{address.host}_{address.port}"
