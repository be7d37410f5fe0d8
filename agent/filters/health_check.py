"""Load balancers' health checks (envoy.filters.http.health_check): answered here, or passed through and remembered."""

from __future__ import annotations

from typing import Final

from agent.filters.chain import Placed
from agent.filters.step import RequestStep, ResponseStep, Steps
from agent.http.matching import compile_request_headers
from agent.http.request import LocalReply, RequestContext, ResponseHead
from agent.table.filter_config import HealthCheckFilter

_CLUSTER: Final = b"x-envoy-upstream-healthchecked-cluster"


class LastAnswer:
    """The status that the upstream answered last, good until `until`."""

    __slots__ = ("status", "until")

    def __init__(self) -> None:
        self.status = 0
        self.until = 0.0


def compile(placed: Placed) -> Steps | None:
    """Steps for a place in a chain. The log knows the filter's own answers by `health_check_ok` and `health_check_cached`."""
    config: HealthCheckFilter = placed.config
    matches = compile_request_headers(config.headers)
    cluster = config.node_cluster.encode()
    if config.pass_through:
        return _passing(config, placed.state.of(config, LastAnswer))
    healthy = LocalReply(200, headers=((_CLUSTER, cluster),), details="health_check_ok")

    def answer(ctx: RequestContext) -> LocalReply | None:
        if matches is not None and not matches(ctx):
            return None
        return healthy

    step: RequestStep = answer
    return Steps((step,))


def _passing(config: HealthCheckFilter, last: LastAnswer) -> Steps:
    matches = compile_request_headers(config.headers)
    cluster, keep = config.node_cluster.encode(), config.cache_time

    def cached(ctx: RequestContext) -> LocalReply | None:
        if matches is not None and not matches(ctx):
            return None
        ctx.health_check = True
        if ctx.started_at >= last.until:
            return None
        return LocalReply(last.status, details="health_check_cached")

    def note(ctx: RequestContext, head: ResponseHead) -> None:
        if not ctx.health_check:
            return
        head.headers.set(_CLUSTER, cluster)
        if keep and not head.local:
            last.status, last.until = head.status, ctx.started_at + keep

    asked: RequestStep = cached
    answered: ResponseStep = note
    return Steps((asked,), (answered,))
