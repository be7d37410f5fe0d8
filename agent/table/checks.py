"""Whether the parts of a static table fit together: Envoy refuses to start where they do not.

Not for: xDS, where a route may name a cluster that is still on its way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from agent.table.errors import ConfigError
from agent.table.listener import FilterChain, HttpManager, Listener
from agent.table.route import Forward, RouteConfiguration
from agent.table.snapshot import Table


def doubled_addresses(listeners: Mapping[str, Listener], first: Collection[str] = ()) -> dict[str, str]:
    """Listeners that would open an address of another one, with a text that says so: one socket serves one listener.

    `first`: names that come before all others; otherwise the order counts. Port 0 is never the same twice."""
    owners: dict[tuple[str, int, str], str] = {}
    found: dict[str, str] = {}
    for name in sorted(listeners, key=lambda name: name not in first):
        listener = listeners[name]
        places = [
            (address.host, address.port, address.path)
            for address in (listener.address, *listener.additional_addresses)
            if listener.bind and (address.port or address.path)
        ]
        taken = next((place for place in places if place in owners), None)
        if taken is not None:
            found[name] = f"{taken[2] or f'{taken[0]}:{taken[1]}'} is the address of listener {owners[taken]}"
            continue
        owners.update(dict.fromkeys(places, name))
    return found


def check_references(table: Table) -> None:
    """Every cluster and secret that is named must be there, and every address be one listener's. Raises ConfigError."""
    doubled = doubled_addresses(table.listeners)
    for number, name in enumerate(table.listeners):
        if name in doubled:
            raise ConfigError(f"static_resources.listeners[{number}].address", doubled[name])
    for number, listener in enumerate(table.listeners.values()):
        path = f"static_resources.listeners[{number}]"
        for position, chain in enumerate(listener.chains):
            _check_chain(table, chain, f"{path}.filter_chains[{position}]")
        if listener.default_chain is not None:
            _check_chain(table, listener.default_chain, f"{path}.default_filter_chain")


def _check_chain(table: Table, chain: FilterChain, path: str) -> None:
    terminal = chain.terminal
    manager = f"{path}.filters[{len(chain.network_filters)}].typed_config"
    if isinstance(terminal, HttpManager):
        if isinstance(terminal.route, str):
            raise ConfigError(f"{manager}.rds", f"route configuration {terminal.route} needs a control plane")
        if terminal.route.validate_clusters is not False:
            for where, name in _clusters(terminal.route):
                if name not in table.clusters:
                    raise ConfigError(f"{manager}.route_config.{where}", f"unknown cluster {name!r}")
    if chain.tls is not None:
        for certificate in chain.tls.certificates:
            if isinstance(certificate, str) and certificate not in table.secrets:
                raise ConfigError(f"{path}.transport_socket", f"unknown secret {certificate!r}")


def _clusters(config: RouteConfiguration) -> Iterator[tuple[str, str]]:
    for number, host in enumerate(config.virtual_hosts):
        for position, route in enumerate(host.routes):
            where = f"virtual_hosts[{number}].routes[{position}].route"
            if not isinstance(route.action, Forward):
                continue
            if route.action.cluster:
                yield f"{where}.cluster", route.action.cluster
            for index, weight in enumerate(route.action.weighted):
                if weight.cluster:
                    yield f"{where}.weighted_clusters.clusters[{index}].name", weight.cluster
            for index, mirror in enumerate(route.action.mirrors):
                if mirror.cluster:
                    yield f"{where}.request_mirror_policies[{index}].cluster", mirror.cluster
