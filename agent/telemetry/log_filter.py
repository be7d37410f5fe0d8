"""Access-log filters as predicates over outcomes (Envoy config.accesslog.v3.AccessLogFilter).

Not for: the filters' values, which agent/table/access_log_filter holds.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import eq, ge, le, ne
from typing import Final, TypeAlias

from agent.table import access_log_filter as values
from agent.table.matchers import compile_header, compile_metadata
from agent.telemetry.header_fields import GRPC_STATUSES, grpc_status, request_field
from agent.telemetry.outcome import NOTHING, Outcome

Predicate: TypeAlias = Callable[[Outcome], bool]

_OPERATORS: Final = {"eq": eq, "ge": ge, "le": le, "ne": ne}


def compile_filter(tree: values.AccessLogFilter) -> Predicate:
    """Predicate: is this outcome to be logged?"""
    if isinstance(tree, values.Every):
        all_of = tuple(compile_filter(item) for item in tree.filters)
        return lambda outcome: all(test(outcome) for test in all_of)
    if isinstance(tree, values.AnyOf):
        any_of = tuple(compile_filter(item) for item in tree.filters)
        return lambda outcome: any(test(outcome) for test in any_of)
    if isinstance(tree, values.Comparison):
        return _comparison(tree)
    if isinstance(tree, values.NotHealthCheck):
        return lambda outcome: not outcome.details.startswith("health_check_")
    if isinstance(tree, values.Flags):
        wanted = tree.flags
        return lambda outcome: not wanted.isdisjoint(outcome.flags) if wanted else bool(outcome.flags)
    if isinstance(tree, values.Sampled):
        takes = tree.fraction.takes
        return lambda outcome: takes(_draw(outcome))
    if isinstance(tree, values.RequestHeader):
        test, read = compile_header(tree.match), request_field(tree.match.name.decode())
        return lambda outcome: outcome.request is not None and test(read(outcome.request))
    if isinstance(tree, values.GrpcStatus):
        return _grpc(tree)
    return _metadata(tree)


def _comparison(tree: values.Comparison) -> Predicate:
    compare, limit = _OPERATORS[tree.op], tree.value
    if tree.subject == "status_code":
        return lambda outcome: bool(compare(outcome.response_code, limit))
    return lambda outcome: bool(compare(int((outcome.finished_at - outcome.started_at) * 1e3), limit))


def _draw(outcome: Outcome) -> int:
    """A random number of this outcome: other bits of the request's than those that splits and faults look at."""
    if outcome.request is not None:
        return int(outcome.request.random) >> 24
    return int(outcome.started_at * 1e9)


def _grpc(tree: values.GrpcStatus) -> Predicate:
    numbers = {number for number, name in enumerate(GRPC_STATUSES) if name in tree.statuses}
    exclude = tree.exclude

    def test(outcome: Outcome) -> bool:
        status = grpc_status(outcome)
        if status is None:
            status = _FROM_HTTP.get(outcome.response_code, 2)
        return (status in numbers) != exclude

    return test


_FROM_HTTP: Final = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14, 200: 0}
"""gRPC status of an answer without one (gRPC: HTTP to gRPC status code mapping)."""


def _metadata(tree: values.DynamicMetadata) -> Predicate:
    matches = compile_metadata(tree.match)
    namespace, path, if_missing = tree.match.filter, tree.match.path, tree.match_if_missing

    def test(outcome: Outcome) -> bool:
        found = (outcome.request.dynamic_metadata if outcome.request is not None else None) or NOTHING
        node: object = found.get(namespace)
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        return if_missing if node is None else matches(found)

    return test
