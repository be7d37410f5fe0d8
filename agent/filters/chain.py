"""From the filters of a connection manager, and what a route says about them, to flat tuples of functions.

Rule: the most specific override of a filter wins, as a whole; a filter may look at all levels if Envoy's does (CORS,
header mutation). A filter with nothing to do leaves no function behind. State (token buckets, counts) belongs to the
configuration value it was made for and outlives a recompilation in `FilterState`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from agent.filters.step import NO_STEPS, RequestStep, ResponseStep, Steps
from agent.filters.token_bucket import ALONE, BucketPlace
from agent.limits.tally import Tally
from agent.table.errors import ConfigError
from agent.table.listener import FilterConfig
from agent.table.route import NO_ROUTE, FilterOverride, RouteScope

if TYPE_CHECKING:
    from agent.limits.region import Shares

T = TypeVar("T")


class FilterState:
    """State of filters by the identity of their configuration value, so that an unchanged value keeps its state.

    With `shares`, what limits is shared by all workers of the host, under the names that `names` has for the values.
    """

    __slots__ = ("_held", "_shares", "names")

    def __init__(self, shares: Shares | None = None) -> None:
        self._held: dict[int, tuple[object, Any]] = {}
        self._shares = shares
        self.names: Mapping[int, str] = {}
        """By identity (agent/filters/names); the same in every worker. A value without a name is this worker's own."""

    def of(self, config: object, make: Callable[[], T]) -> T:
        """The state of a configuration value; made at its first use."""
        held = self._held.get(id(config))
        if held is None:
            held = self._held[id(config)] = (config, make())
        state: T = held[1]
        return state

    def tally(self, config: object) -> Tally:
        """A count for a value's limit."""
        name = self.names.get(id(config))
        if self._shares is None or name is None:
            return Tally()
        return self._shares.tallies(name, 1)[0]

    def buckets(self, config: object) -> BucketPlace:
        """The place of a value's token buckets."""
        name = self.names.get(id(config))
        return ALONE if self._shares is None or name is None else BucketPlace(self._shares, name)

    def keep_only(self, configs: Sequence[object]) -> None:
        """Forget the state of values that are in no table any more."""
        if self._held:
            alive = {id(config) for config in configs}
            self._held = {key: held for key, held in self._held.items() if key in alive}


Increment: TypeAlias = Callable[[], None]
Count: TypeAlias = Callable[[str], Increment]
"""From the name of a counter to what adds one to it."""


def uncounted(name: str) -> Increment:
    """Count nothing."""
    return _nothing


def _nothing() -> None:
    """Not counted."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A filter at its place in a chain, with what a route says about it."""

    config: Any
    """The chain's own value, or the most specific override of the same class."""
    overrides: tuple[FilterOverride, ...]
    """All levels, the least specific first."""
    scope: RouteScope
    state: FilterState
    count: Count = uncounted
    """Counters of the process; the manager's own have the prefix `stats`."""
    stats: str = ""
    """`http.<stat_prefix>.` of the connection manager."""


Compile: TypeAlias = Callable[[Placed], Steps | None]


def compile_steps(
    filters: Sequence[FilterConfig],
    scope: RouteScope = NO_ROUTE,
    state: FilterState | None = None,
    count: Count = uncounted,
    stats: str = "",
) -> Steps:
    """The steps of a chain for the routes of a scope. Pass one `state` for the life of a worker.

    Raises ConfigError for a value that cannot be compiled (a bad %OPERATOR%).
    """
    from agent.filters.registry import HTTP_FILTERS

    held = state if state is not None else FilterState()
    request: list[RequestStep] = []
    response: list[ResponseStep] = []
    for config in filters:
        overrides = scope.overrides.get(config.name, ())
        if _disabled(config, overrides):
            continue
        try:
            steps = HTTP_FILTERS[config.kind](Placed(config.value, overrides, scope, held, count, stats))
        except ValueError as error:
            raise ConfigError(f"http_filters[{config.name}]", str(error)) from error
        if steps is not None:
            request.extend(steps.request)
            response[:0] = steps.response
    return Steps(tuple(request), tuple(response)) if request or response else NO_STEPS


def _disabled(config: FilterConfig, overrides: tuple[FilterOverride, ...]) -> bool:
    """The most specific level decides; one that gives a configuration switches a disabled filter on."""
    return overrides[-1].disabled if overrides else config.disabled


def most_specific(placed: Placed, kind: type[T]) -> T:
    """The override that wins, else the chain's own value."""
    for override in reversed(placed.overrides):
        if isinstance(override.value, kind):
            return override.value
    config: T = placed.config
    return config


Registry: TypeAlias = Mapping[str, Compile]
