"""First match in the configured order, without trying every route.

Rule: the first route whose path and conditions match wins, exactly as if they were tried one after the other. Where a
virtual host has many routes, those that could not match a path are left out: exact paths by a dictionary, prefixes by
their first segment, connections by the destination that their filter state has to hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from agent.http.matching import RequestPredicate
from agent.http.request import RequestContext
from agent.routing.paths import PathPredicate, bare_path
from agent.routing.plan import RoutePlan
from agent.table.route import RouteMatch

Chooser: TypeAlias = Callable[[RequestContext], RoutePlan]
Choice: TypeAlias = RoutePlan | Chooser
Entry: TypeAlias = tuple[RouteMatch, PathPredicate | None, RequestPredicate | None, Choice]
Candidate: TypeAlias = tuple[PathPredicate | None, RequestPredicate | None, RoutePlan | None, Chooser | None]

_QUERY: Final = 0x3F
_FRAGMENT: Final = 0x23
INDEX_FROM: Final = 8
"""Fewer routes than this are tried one after the other."""


class RouteOrder:
    """The routes of one virtual host."""

    __slots__ = (
        "_all", "_by_destination", "_by_path", "_by_segment", "_ignore_parameters", "_of_destination", "_of_path",
        "_of_segment", "_others", "_rest",
    )  # fmt: skip

    def __init__(self, entries: list[Entry], ignore_path_parameters: bool = False) -> None:
        self._ignore_parameters = ignore_path_parameters
        self._all = [_candidate(entry) for entry in entries]
        self._by_path: dict[bytes, list[int]] = {}
        self._by_segment: dict[bytes, list[int]] = {}
        self._by_destination: dict[str, list[int]] = {}
        self._others: list[int] = []
        if len(entries) < INDEX_FROM:
            self._others = list(range(len(entries)))
        else:
            for position, (match, _, _, _) in enumerate(entries):
                self._file(position, match)
        self._rest = self._pick(self._others)
        self._of_path: dict[bytes, tuple[Candidate, ...]] = {}
        self._of_segment: dict[bytes, tuple[Candidate, ...]] = {}
        self._of_destination: dict[str, tuple[Candidate, ...]] = {}

    def _file(self, position: int, match: RouteMatch) -> None:
        if (destination := _destination(match)) is not None:
            self._by_destination.setdefault(destination, []).append(position)
            return
        value = match.value.encode()
        if match.kind == "path" and match.case_sensitive:
            self._by_path.setdefault(value, []).append(position)
            return
        end = value.find(b"/", 1)
        if match.kind in {"prefix", "separated_prefix"} and match.case_sensitive and end > 0:
            self._by_segment.setdefault(value[:end], []).append(position)
            return
        self._others.append(position)

    def _pick(self, positions: list[int]) -> tuple[Candidate, ...]:
        return tuple(self._all[position] for position in sorted(positions))

    def find(self, ctx: RequestContext) -> RoutePlan | None:
        """The plan of the first route that matches; None for none."""
        path = ctx.path
        if _QUERY in path or _FRAGMENT in path:
            path = bare_path(path)
        if self._ignore_parameters:
            path = path.partition(b";")[0]
        candidates = self._candidates(path)
        if self._by_destination and ctx.connection.filter_state:
            candidates = self._to_destination(ctx.connection.local[0], path, candidates)
        for test, condition, plan, choose in candidates:
            if (test is None or test(path)) and (condition is None or condition(ctx)):
                return plan if choose is None else choose(ctx)
        return None

    def _to_destination(
        self, address: str, path: bytes, others: tuple[Candidate, ...]
    ) -> tuple[Candidate, ...]:
        """With the routes for the connection's destination: only destinations that the configuration names."""
        own = self._by_destination.get(address)
        if own is None:
            return others
        if others is not self._rest:
            return self._pick([*own, *self._positions(path)])
        merged = self._of_destination.get(address)
        if merged is None:
            merged = self._of_destination[address] = self._pick([*own, *self._others])
        return merged

    def _positions(self, path: bytes) -> list[int]:
        end = path.find(b"/", 1)
        segment = self._by_segment.get(path[:end], []) if end > 0 else []
        return [*self._by_path.get(path, ()), *segment, *self._others]

    def _candidates(self, path: bytes) -> tuple[Candidate, ...]:
        """Only paths and segments that the configuration names are remembered, so strangers cannot fill this."""
        exact = self._by_path.get(path)
        end = path.find(b"/", 1) if self._by_segment else -1
        segment = self._by_segment.get(path[:end]) if end > 0 else None
        if exact is None and segment is None:
            return self._rest
        memory, key = (self._of_path, path) if exact is not None else (self._of_segment, path[:end])
        merged = memory.get(key)
        if merged is None:
            merged = memory[key] = self._pick([*(exact or ()), *(segment or ()), *self._others])
        return merged


def _destination(match: RouteMatch) -> str | None:
    """The only destination of the connection for which a route without path can match."""
    if match.kind != "prefix" or match.value != "/":
        return None
    for state in match.filter_state:
        if state.value.kind == "exact" and not state.value.ignore_case:
            destination: str = state.value.value
            return destination
    return None


def _candidate(entry: Entry) -> Candidate:
    _, test, condition, choice = entry
    if isinstance(choice, RoutePlan):
        return test, condition, choice, None
    return test, condition, None, choice
