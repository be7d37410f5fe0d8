"""Whether the data plane understands a configuration, without any I/O: decoding, and compiling what decoding cannot judge.

Rule: judges each resource for itself, by the functions that the workers use. istiod asks before it stores, the host
process before it gives a configuration to its workers.
Not for: what only the host can say (files, certificates, addresses to listen on: agent/worker/space).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType

from agent.exchange.local_reply import compile_rewrite
from agent.filters.chain import FilterState, compile_steps
from agent.filters.network import compile_network
from agent.http.intake import compile_intake
from agent.http.outgoing import compile_outgoing
from agent.routing.compile import compile_routes
from agent.routing.normalise import compile_normaliser
from agent.table.access_log import AccessLog
from agent.table.build import (
    LISTENER,
    ROUTE,
    Bodies,
    Built,
    Refused,
    Resources,
    TableBuilder,
    resource_path,
    unread,
)
from agent.table.checks import doubled_addresses
from agent.table.decode.message import read_bytes
from agent.table.errors import ConfigError
from agent.table.listener import FilterChain, FixedAnswer, HttpManager, Listener
from agent.table.route import RouteConfiguration
from agent.table.snapshot import Table
from agent.telemetry.format import compile_format, compile_json
from agent.telemetry.log_filter import compile_filter


class Trial:
    """Judges one set of resources after the other. What did not change is not judged again, and a resource that cannot be
    used keeps its last good version."""

    def __init__(self, read_file: Callable[[str], bytes] = read_bytes) -> None:
        self._builder = TableBuilder(read_file)
        self._good: dict[int, object] = {}
        """Listeners and routes that have been compiled, by identity."""
        self._serving: frozenset[str] = frozenset()

    def build(self, resources: Resources) -> Built:
        """The table of what can be used, and what cannot."""
        built = self._builder.build(resources)
        found = judge(built.table, self._good, self._serving)
        if found:
            for one in found:
                self._builder.reject(one.type_url, one.name)
            left = {(one.type_url, one.name) for one in found}
            again = self._builder.build(self._builder.last_good(built.bodies, left), again=True)
            built = Built(again.table, again.bodies, (*built.refused, *found))
        table = built.table
        self._serving = frozenset(table.listeners)
        self._good = {id(one): one for one in (*table.listeners.values(), *table.routes.values())}
        return built

    def reject(self, type_url: str, name: str) -> None:
        """A resource of the last table failed at its use: its last good version is the one before."""
        self._builder.reject(type_url, name)


def decode(resources: Resources) -> tuple[Bodies, tuple[Refused, ...]]:
    """What an agent without any earlier configuration would take, and what it would refuse and why.

    `resources` and what is taken: type URL, name, serialised google.protobuf.Any. Pure: files that a resource names are
    the host's and count as readable.
    """
    built = Trial(unread).build(resources)
    return built.bodies, built.refused


def judge(
    table: Table, good: Mapping[int, object] = MappingProxyType({}), serving: Collection[str] = ()
) -> tuple[Refused, ...]:
    """The resources of a table that cannot be compiled. `good` are values that can, by identity; `serving` the names of
    listeners that have their addresses already."""
    found: list[Refused] = []
    managers: dict[str, HttpManager] = {}
    fresh: set[str] = set()
    """Route configurations that a new listener has filters for."""
    doubled = doubled_addresses(table.listeners, serving)
    for name, listener in table.listeners.items():
        if name in doubled:
            found.append(refusal(LISTENER, name, ConfigError("address", doubled[name])))
            continue
        known = good.get(id(listener)) is listener
        for _, chain in _chains(listener):
            if isinstance(chain.terminal, HttpManager) and isinstance(chain.terminal.route, str):
                managers.setdefault(chain.terminal.route, chain.terminal)
                if not known:
                    fresh.add(chain.terminal.route)
        if known:
            continue
        try:
            _listener(listener)
        except ValueError as error:
            found.append(refusal(LISTENER, name, error))
    for name, routes in table.routes.items():
        if name not in fresh and good.get(id(routes)) is routes:
            continue
        try:
            _routes(routes, managers.get(name))
        except ValueError as error:
            found.append(refusal(ROUTE, name, error))
    return tuple(found)


def refusal(type_url: str, name: str, error: Exception) -> Refused:
    """The resource is refused for an error at its compilation or use."""
    path = resource_path(type_url, name)
    if isinstance(error, ConfigError):
        own = f"route_config[{name}]."
        inner = error.path.removeprefix(own)
        return Refused(type_url, name, f"{path}.{inner}" if inner else path, error.reason)
    return Refused(type_url, name, path, str(error) or type(error).__name__)


def _chains(listener: Listener) -> Iterable[tuple[str, FilterChain]]:
    for position, chain in enumerate(listener.chains):
        yield f"filter_chains[{position}]", chain
    if listener.default_chain is not None:
        yield "default_filter_chain", listener.default_chain


def _listener(listener: Listener) -> None:
    _logs(listener.access_logs, "access_log")
    for path, chain in _chains(listener):
        try:
            compile_network(chain.network_filters, FilterState())
            terminal = chain.terminal
            if isinstance(terminal, FixedAnswer):
                continue
            _logs(terminal.access_logs, "access_log")
            if isinstance(terminal, HttpManager):
                _manager(terminal)
        except ConfigError as error:
            raise ConfigError(f"{path}.{error.path}" if error.path else path, error.reason) from error
        except ValueError as error:
            raise ConfigError(path, str(error)) from error


def _manager(manager: HttpManager) -> None:
    compile_intake(manager)
    compile_normaliser(manager)
    compile_outgoing(manager)
    compile_rewrite(manager.local_reply)
    routes = manager.route if isinstance(manager.route, RouteConfiguration) else RouteConfiguration("")
    _routes(routes, manager)


def _routes(routes: RouteConfiguration, manager: HttpManager | None) -> None:
    filters = () if manager is None else manager.filters
    compile_routes(routes, lambda scope: compile_steps(filters, scope))


def _logs(logs: Iterable[AccessLog], path: str) -> None:
    for position, log in enumerate(logs):
        try:
            if log.format_json is not None:
                compile_json(log.format_json, omit_empty=log.omit_empty_values)
            elif log.format_text:
                compile_format(log.format_text, omit_empty=log.omit_empty_values)
            if log.filter is not None:
                compile_filter(log.filter)
        except ValueError as error:
            raise ConfigError(f"{path}[{position}]", str(error)) from error
