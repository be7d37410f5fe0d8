"""What a table becomes in a worker, built beside what serves now.

Rule: building may fail and changes nothing that serves: renewed certificates, routes and chains of what stays are noted,
and Space takes them when all is there. It fails resource by resource: what cannot be used is named with its reason,
its last good version stays, and everything else goes on.
Not for: swapping (space), listening (listen), what the objects do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from agent.exchange.local_reply import compile_rewrite
from agent.exchange.setting import Setting
from agent.exchange.trial import refusal
from agent.filters import FilterState, compile_steps
from agent.filters.names import Names
from agent.filters.network import compile_network
from agent.http.intake import compile_intake
from agent.http.outgoing import compile_outgoing
from agent.routing.compile import Router, compile_routes
from agent.routing.normalise import compile_normaliser
from agent.table.build import CLUSTER, LISTENER, ROUTE, SECRET, Refused, resource_path
from agent.table.cluster import Cluster
from agent.table.errors import ConfigError
from agent.table.listener import FilterChain, FixedAnswer, HttpManager, Listener
from agent.table.route import RouteConfiguration
from agent.table.snapshot import Table
from agent.table.tls import Secret, UpstreamTls
from agent.worker.accept import ListenerRuntime
from agent.worker.answers import AnswerStation
from agent.worker.chain_match import ChainIndex
from agent.worker.http_station import HttpStation
from agent.worker.listen import host_address
from agent.worker.station import Door, Station
from agent.worker.tcp import TcpStation
from agent.worker.tls_contexts import ClientTls, Renewal, ServerTls, Tls, TlsError, check_secret

if TYPE_CHECKING:
    from agent.worker.space import Space

_log = logging.getLogger("hostmesh.worker")
ClientContexts = dict[tuple[str, UpstreamTls], ClientTls]


@dataclass(slots=True)
class Build:
    """Everything that a commit takes. `table` has the last good version of what was refused, or not even that."""

    table: Table
    refused: list[Refused] = field(default_factory=list)
    client_tls: ClientContexts = field(default_factory=dict)
    renewals: list[tuple[Tls, Renewal]] = field(default_factory=list)
    chains: list[tuple[Station, FilterChain]] = field(default_factory=list)
    routers: list[tuple[HttpStation, Router, RouteConfiguration]] = field(default_factory=list)
    runtimes: dict[str, ListenerRuntime] = field(default_factory=dict)
    stations: dict[str, list[Station]] = field(default_factory=dict)


class Builder:
    """One building. `space` is read only, but for its filters' state, which is made at its first use."""

    def __init__(self, space: Space, table: Table, state: FilterState) -> None:
        self._space = space
        self._services = space.services
        self._former = space.table
        self._state = state
        self._routes = dict(table.routes)
        self._build = Build(table)

    def build(self) -> Build:
        """All of it. Raises nothing that a resource is to blame for."""
        build = self._build
        build.table = replace(build.table, secrets=self._usable_secrets(build.table))
        build.table = replace(build.table, clusters=self._usable_clusters(build.table))
        names = None
        if self._services.shares is not None:
            names = Names(build.table.routes)
            self._state.names = names.by_identity
        listeners: dict[str, Listener] = {}
        for name, listener in build.table.listeners.items():
            used = self._usable_listener(name, listener, names)
            if used is not None:
                listeners[name] = used
        build.table = replace(build.table, listeners=listeners, routes=self._routes)
        return build

    def _refuse(self, type_url: str, name: str, error: Exception, *, in_use: bool = False) -> None:
        if not isinstance(error, TlsError | OSError | ValueError):
            _log.error("%s cannot be used", resource_path(type_url, name), exc_info=error)
        self._build.refused.append(replace(refusal(type_url, name, error), in_use=in_use))

    def _usable_secrets(self, table: Table) -> dict[str, Secret]:
        used: dict[str, Secret] = {}
        for name, secret in table.secrets.items():
            former = self._former.secrets.get(name)
            if secret is not former:
                try:
                    check_secret(secret)
                except Exception as error:
                    self._refuse(SECRET, name, error)
                    if former is not None:
                        used[name] = former
                    continue
            used[name] = secret
        return used

    # Clusters

    def _usable_clusters(self, table: Table) -> dict[str, Cluster]:
        used: dict[str, Cluster] = {}
        for name, cluster in table.clusters.items():
            try:
                self._client_contexts(cluster, table)
            except Exception as error:
                self._refuse(CLUSTER, name, error)
                former = self._former.clusters.get(name)
                if former is None:
                    continue
                cluster = former
                self._client_contexts(cluster, table)
            used[name] = cluster
        return used

    def _client_contexts(self, cluster: Cluster, table: Table) -> None:
        """Contexts of a cluster: kept where the settings are the same, renewed where a secret changed."""
        settings = [("transport_socket", cluster.tls)]
        for position, match in enumerate(cluster.transport_matches):
            settings.append((f"transport_socket_matches[{position}].transport_socket", match.tls))
        for path, one in settings:
            if one is None:
                continue
            key = (cluster.name, one)
            known = self._space.client_tls.get(key)
            if known is None:
                try:
                    self._build.client_tls[key] = ClientTls(one, table.secrets, http=True)
                except TlsError as error:
                    raise ConfigError(path, str(error)) from error
                continue
            self._build.client_tls[key] = known
            self._renew(known, table, CLUSTER, cluster.name, path)

    def _renew(self, tls: Tls, table: Table, type_url: str, name: str, path: str) -> None:
        """Note renewed certificates; the old ones stay where they cannot be used."""
        try:
            renewal = tls.renewal(table.secrets)
        except TlsError as error:
            self._refuse(type_url, name, ConfigError(path, str(error)), in_use=True)
        else:
            if renewal is not None:
                self._build.renewals.append((tls, renewal))

    # Listeners

    def _usable_listener(self, name: str, listener: Listener, names: Names | None) -> Listener | None:
        build, former = self._build, self._former.listeners.get(name)
        chains, routers, renewals = len(build.chains), len(build.routers), len(build.renewals)
        try:
            build.runtimes[name], build.stations[name] = self._listener(name, listener, names)
        except Exception as error:
            del build.chains[chains:], build.routers[routers:], build.renewals[renewals:]
            self._refuse(LISTENER, name, error)
        else:
            return listener
        if former is None:
            return None
        try:
            build.runtimes[name], build.stations[name] = self._listener(name, former, names)
        except Exception:
            # What serves cannot be built again: it goes on as it is.
            _log.exception("listener %s", name)
            del build.chains[chains:], build.routers[routers:], build.renewals[renewals:]
            build.runtimes[name] = self._space.listeners[name]
            build.stations[name] = list(self._space.stations_of(name))
        return former

    def _listener(
        self, name: str, listener: Listener, names: Names | None
    ) -> tuple[ListenerRuntime, list[Station]]:
        """The runtime of a listener, with the stations of unchanged filter chains."""
        space = self._space
        known = space.listeners.get(name)
        kept = known is not None and (known.listener is listener or same_but_chains(known.listener, listener))
        old = list(space.stations_of(name)) if kept else []
        made: list[tuple[FilterChain, Station]] = []
        for path, chain in numbered_chains(listener):
            station = next((held for held in old if held.chain is chain or held.chain == chain), None)
            if names is not None:
                former = station.setting.manager if isinstance(station, HttpStation) else None
                names.chain(name, chain, former)
            try:
                if station is None:
                    station = self._station(name, path, chain, listener)
                else:
                    old.remove(station)
                    self._keep(name, path, station, chain)
            except ConfigError as error:
                raise ConfigError(f"{path}.{error.path}" if error.path else path, error.reason) from error
            except (OSError, ValueError) as error:
                raise ConfigError(path, str(error)) from error
            made.append((chain, station))
        stations = [station for _, station in made]
        default = stations[-1] if listener.default_chain is not None else None
        index = ChainIndex(
            [(chain.match, station) for chain, station in made if station is not default], default
        )
        recorder = self._services.recorder
        stats = recorder.listener(stat_name(listener))
        runtime = ListenerRuntime(listener, index, stats, recorder.slots, space.owner_of)
        return runtime, stations

    def _keep(self, name: str, path: str, station: Station, chain: FilterChain) -> None:
        """A chain that is as it was: its connections go on; certificates and routes may be new."""
        build = self._build
        build.chains.append((station, chain))
        if station.tls is not None:
            self._renew(station.tls, build.table, LISTENER, name, f"{path}.transport_socket")
        if isinstance(station, HttpStation):
            manager = station.setting.manager
            routes = self._routes_of(manager)
            if routes is not station.routes:
                router = self._compile(manager, routes, station.routes)
                if router is not None:
                    build.routers.append((station, router, routes))

    def _station(self, name: str, path: str, chain: FilterChain, listener: Listener) -> Station:
        services = self._services
        terminal = chain.terminal
        is_http = isinstance(terminal, HttpManager)
        tls = None if chain.tls is None else self._server_tls(name, path, chain, http=is_http)
        gate = compile_network(chain.network_filters, self._state)
        door = Door(
            chain, tls, gate, services.recorder.listener(stat_name(listener)), services.recorder.slots
        )
        if isinstance(terminal, FixedAnswer):
            return AnswerStation(door, terminal)
        logs = services.sinks.compile((*terminal.access_logs, *listener.access_logs))
        if not isinstance(terminal, HttpManager):
            return TcpStation(
                door, terminal, listener, self._space.clusters, logs=logs, recorder=services.recorder,
                dialer=self._space.dialer, random=services.random,
            )  # fmt: skip
        routes = self._routes_of(terminal)
        router = self._compile(terminal, routes, None)
        if router is None:
            routes = self._routes_of(terminal)
            router = self._router(terminal, routes)
        setting = Setting(
            terminal, listener, router, self._space.clusters,
            intake=compile_intake(terminal, host_address()), normalise=compile_normaliser(terminal),
            outgoing=compile_outgoing(terminal),
            rewrite=compile_rewrite(terminal.local_reply), logs=logs, record=services.recorder.record,
            stats=services.recorder.http(terminal.stat_prefix), slots=services.recorder.slots, clock=services.reactor,
            random=services.random, raw_pool=self._space.raw_pool, host_address=host_address(),
        )  # fmt: skip
        return HttpStation(door, setting, routes)

    def _server_tls(self, name: str, path: str, chain: FilterChain, *, http: bool) -> ServerTls:
        """A chain whose certificate cannot be used refuses its connections, lest others take them; but a listener that
        has served keeps its last good version instead."""
        assert chain.tls is not None
        try:
            return ServerTls(chain.tls, self._build.table.secrets, http=http)
        except TlsError as error:
            if name in self._former.listeners:
                raise ConfigError("transport_socket", str(error)) from error
            broken = ConfigError(f"{path}.transport_socket", str(error))
            self._refuse(LISTENER, name, broken, in_use=True)
            return ServerTls(chain.tls, None, http=http, missing=str(error))

    # Routes

    def _routes_of(self, manager: HttpManager) -> RouteConfiguration:
        return route_configuration(manager, self._routes)

    def _compile(
        self, manager: HttpManager, routes: RouteConfiguration, former: RouteConfiguration | None
    ) -> Router | None:
        """The router of RDS routes; None where they are refused, for the last good ones in `_routes` instead."""
        if not isinstance(manager.route, str):
            return self._router(manager, routes)
        try:
            return self._router(manager, routes)
        except Exception as error:
            name = manager.route
            self._refuse(ROUTE, name, error)
            good = former if former is not None else self._former.routes.get(name)
            if good is None or good is routes:
                self._routes.pop(name, None)
            else:
                self._routes[name] = good
            return None

    def _router(self, manager: HttpManager, routes: RouteConfiguration) -> Router:
        suppress = manager.router is not None and manager.router.suppress_envoy_headers
        steps_for: Callable[..., object] = lambda scope: compile_steps(  # noqa: E731
            manager.filters, scope, self._state, self._services.recorder.count, f"http.{manager.stat_prefix}."
        )
        return compile_routes(routes, steps_for, suppress_envoy_headers=suppress)  # type: ignore[arg-type]


def numbered_chains(listener: Listener) -> Iterable[tuple[str, FilterChain]]:
    """Each chain with its path, the default one last."""
    for position, chain in enumerate(listener.chains):
        yield f"filter_chains[{position}]", chain
    if listener.default_chain is not None:
        yield "default_filter_chain", listener.default_chain


def same_but_chains(old: Listener, new: Listener) -> bool:
    """Is everything but the filter chains as it was? Then chains that did not change keep their connections."""
    return replace(old, chains=(), default_chain=None) == replace(new, chains=(), default_chain=None)


def route_configuration(manager: HttpManager, routes: Mapping[str, RouteConfiguration]) -> RouteConfiguration:
    """The manager's own routes, or those that RDS delivered; an empty configuration answers 404 until they come."""
    if isinstance(manager.route, RouteConfiguration):
        return manager.route
    found = routes.get(manager.route)
    return found if found is not None else _EMPTY


_EMPTY = RouteConfiguration("")


def stat_name(listener: Listener) -> str:
    """What follows `listener.` in the names of its statistics."""
    address = listener.address
    return listener.stat_prefix or f"{address.host}_{address.port}"
