"""Descriptors of a request for rate limits (Envoy route RateLimit actions).

Rule: one action list makes one descriptor; an action that finds nothing makes the whole descriptor fall away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from agent.http.matching import compile_query, compile_request_headers, request_value
from agent.http.request import RequestContext
from agent.table.filter_config import LocalRateLimit, RateLimitActions
from agent.table.route import RouteScope

Entries: TypeAlias = tuple[tuple[str, str], ...]
Descriptors: TypeAlias = tuple[Entries, ...]
Entry: TypeAlias = Callable[[RequestContext], Entries | None]


def compile_descriptors(config: LocalRateLimit, scope: RouteScope) -> Callable[[RequestContext], Descriptors]:
    """All descriptors of a request; none at all where the filter has no buckets for them."""
    limits = [limit for limit in _limits(config, scope) if limit.stage == config.stage]
    if not config.descriptors or not limits:
        return lambda ctx: ()
    compiled = [[_entry(kind, parameters) for kind, parameters in limit.actions] for limit in limits]

    def descriptors(ctx: RequestContext) -> Descriptors:
        found: list[Entries] = []
        for actions in compiled:
            entries: Entries = ()
            for action in actions:
                made = action(ctx)
                if made is None:
                    break
                entries += made
            else:
                if entries:
                    found.append(entries)
        return tuple(found)

    return descriptors


def _limits(config: LocalRateLimit, scope: RouteScope) -> tuple[RateLimitActions, ...]:
    if config.rate_limits:
        return config.rate_limits
    route, vhost = scope.rate_limits if len(scope.rate_limits) == 2 else ((), ())
    if config.vh_rate_limits == "include" or scope.both_rate_limits:
        return (*route, *vhost)
    if config.vh_rate_limits == "override" and not route:
        return vhost
    return route


def _entry(kind: str, parameters: Mapping[str, Any]) -> Entry:
    if kind == "remote_address":
        return lambda ctx: (("remote_address", ctx.client[0]),)
    if kind == "generic_key":
        entry = ((str(parameters["key"]), str(parameters["value"])),)
        return lambda ctx: entry
    if kind == "destination_cluster":
        return lambda ctx: (("destination_cluster", ctx.route.cluster if ctx.route is not None else ""),)
    if kind == "request_headers":
        value_of, key = request_value(parameters["name"]), str(parameters["key"])
        absent: Entries | None = () if parameters["skip_if_absent"] else None

        def header(ctx: RequestContext) -> Entries | None:
            value = value_of(ctx)
            return absent if value is None else ((key, value.decode("utf-8", "surrogateescape")),)

        return header
    if kind == "header_value_match":
        matches = compile_request_headers(parameters["headers"])
    elif kind == "query_parameter_value_match":
        matches = compile_query(parameters["query"])
    else:
        return lambda ctx: (("source_cluster", ""),)
    expected, made = parameters["expect"], ((str(parameters["key"]), str(parameters["value"])),)
    return lambda ctx: made if (matches is None or matches(ctx)) == expected else None
