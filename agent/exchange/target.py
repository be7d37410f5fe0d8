"""Where a request goes and how long it may take: the parts of the decision that need more than the plan.

Rule: pure; reads the plan, the cluster and the headers, and takes away headers that were meant for us.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Final

from agent.exchange import grpc_timeouts
from agent.http.headers import Headers
from agent.http.request import RequestContext
from agent.routing.hosts import port_start
from agent.routing.plan import RoutePlan
from agent.table.cluster import Endpoint
from agent.table.listener import Address
from agent.table.matchers import decimal
from agent.upstream.cluster import ClusterRuntime
from agent.upstream.host import Host
from agent.upstream.retry import RetryState


def host_for(
    cluster: ClusterRuntime,
    ctx: RequestContext,
    plan: RoutePlan,
    tried: Sequence[Host | None],
    state: RetryState | None,
) -> Host | None:
    """The host for the next attempt, None when there is none."""
    if cluster.config.discovery == "original_dst":
        endpoint = original_destination(cluster, ctx)
        return None if endpoint is None else cluster.original_destination(endpoint)
    key = plan.hash_key(ctx) if plan.hash_key is not None else None
    if tried:
        random = (ctx.random * (2 * len(tried) + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        if state is not None:
            return cluster.pick_again(random, key, plan.metadata_match, tried, state.plan)
        return cluster.pick(random, key, plan.metadata_match)
    return cluster.pick(ctx.random, key, plan.metadata_match)


def original_destination(cluster: ClusterRuntime, ctx: RequestContext) -> Endpoint | None:
    """The endpoint of an ORIGINAL_DST cluster: where the client wanted to go, or what the header says if that is allowed."""
    host, port = ctx.connection.local
    if cluster.config.use_http_header:
        told = ctx.headers.get(b"x-envoy-original-dst-host")
        if told is not None:
            address, _, number = told.decode("ascii", "replace").rpartition(":")
            try:
                host = str(ip_address(address.strip("[]")))
            except ValueError:
                return None
            found = decimal(number.encode())
            if found is None or not 0 <= found <= 65535:
                return None
            port = found
    return Endpoint(Address(host, cluster.config.upstream_port or port))


def server_name(authority: bytes) -> str:
    """The host of an authority, for SNI and certificates; "." for none, which no certificate has."""
    host = authority[: port_start(authority)].removesuffix(b".")
    return host.decode("latin-1").lower() or "."


def timeouts(plan: RoutePlan, headers: Headers) -> tuple[float, float]:
    """The whole request's and one attempt's timeout in seconds, 0 for none (Envoy FilterUtility::finalTimeout)."""
    total = plan.timeout if plan.max_stream_duration is None else 0.0
    if plan.grpc_timeouts is not None:
        total = grpc_timeouts.whole(plan.grpc_timeouts, headers, total)
    each = plan.retry.per_try_timeout if plan.retry is not None else 0.0
    told = headers.pop(b"x-envoy-upstream-rq-timeout-ms", None)
    if told is not None:
        total = _seconds(told, total)
    told = headers.pop(b"x-envoy-upstream-rq-per-try-timeout-ms", None)
    if told is not None:
        each = _seconds(told, each)
    if total and each >= total:
        each = 0.0
    return total, each


def _seconds(told: bytes, default: float) -> float:
    """A header's milliseconds; the default where it is no number of 64 bits."""
    number = decimal(told)
    return default if number is None or number < 0 else number / 1000.0


def tell_timeout(headers: Headers, total: float, each: float) -> None:
    """How long the upstream may expect us to wait (Envoy FilterUtility::setTimeoutHeaders)."""
    expected = each or total
    if expected > 0:
        told = _told.get(expected)
        if told is None:
            told = b"%d" % round(expected * 1000)
            if len(_told) < _REMEMBERED:
                _told[expected] = told
        headers[b"x-envoy-expected-rq-timeout-ms"] = told


_REMEMBERED: Final = 256
_told: Final[dict[float, bytes]] = {}
"""Timeouts as they are told: few, but for what is left in a retry."""
