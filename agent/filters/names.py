"""Names for the configuration values that hold state, the same in every worker that has the same table.

Rule: a name is a place: listener and chain, or routes, virtual host and route; then the filter, and a number where a table
has several such places. Not for: what is kept under a name (chain.FilterState).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agent.table.listener import FilterChain, FilterConfig, HttpManager
from agent.table.route import FilterOverride, Forward, RouteConfiguration


def values_of(filters: Iterable[FilterConfig], routes: RouteConfiguration | None = None) -> list[object]:
    """The configuration values of a chain's filters, and of what routes say about them."""
    found = [config.value for config in filters]
    if routes is None:
        return found
    levels = [routes.overrides]
    for vhost in routes.virtual_hosts:
        levels.append(vhost.overrides)
        for route in vhost.routes:
            levels.append(route.overrides)
            if isinstance(route.action, Forward):
                levels += [weight.overrides for weight in route.action.weighted]
    found += [override.value for level in levels for override in level.values()]
    return found


class Names:
    """The names of one table's values, by identity."""

    __slots__ = ("_given", "by_identity")

    def __init__(self, routes: Mapping[str, RouteConfiguration]) -> None:
        """`routes` are the table's own; those inside of chains come with them."""
        self.by_identity: dict[int, str] = {}
        self._given: dict[str, int] = {}
        for name, configuration in routes.items():
            self._routes(name, configuration)

    def chain(self, listener: str, chain: FilterChain, former: HttpManager | None = None) -> None:
        """Name the values of a chain. `former` is an equal manager of an earlier table that goes on in its place."""
        where = f"{listener}|{chain.name}"
        self._filters(where, chain.network_filters)
        if isinstance(chain.terminal, HttpManager):
            self._filters(where, chain.terminal.filters)
            if isinstance(chain.terminal.route, RouteConfiguration):
                self._routes(where, chain.terminal.route)
            if former is not None:
                for config, before in zip(chain.terminal.filters, former.filters, strict=False):
                    name = self.by_identity.get(id(config.value))
                    if name is not None:
                        self.by_identity.setdefault(id(before.value), name)

    def _filters(self, where: str, filters: Iterable[FilterConfig]) -> None:
        for config in filters:
            self._name(f"{where}|{config.name}", config.value)

    def _routes(self, where: str, routes: RouteConfiguration) -> None:
        self._overrides(where, routes.overrides)
        for vhost in routes.virtual_hosts:
            of_host = f"{where}|{vhost.name}"
            self._overrides(of_host, vhost.overrides)
            for route in vhost.routes:
                of_route = f"{of_host}|{route.name}"
                self._overrides(of_route, route.overrides)
                if isinstance(route.action, Forward):
                    for weight in route.action.weighted:
                        self._overrides(f"{of_route}|{weight.cluster}", weight.overrides)

    def _overrides(self, where: str, overrides: Mapping[str, FilterOverride]) -> None:
        for name, override in overrides.items():
            self._name(f"{where}|{name}", override.value)

    def _name(self, place: str, value: object) -> None:
        if value is not None and id(value) not in self.by_identity:
            number = self._given[place] = self._given.get(place, 0) + 1
            self.by_identity[id(value)] = f"{place}#{number}"
