"""Answering load balancers' health checks (envoy.filters.http.health_check, no pass-through)."""

from __future__ import annotations

from agent.filters.chain import Placed
from agent.filters.step import RequestStep, Steps
from agent.http.matching import compile_request_headers
from agent.http.request import LocalReply, RequestContext
from agent.table.filter_config import HealthCheckFilter


def compile(placed: Placed) -> Steps | None:
    """Steps for a place in a chain. The log knows them by `health_check_ok`."""
    config: HealthCheckFilter = placed.config
    matches = compile_request_headers(config.headers)
    headers = ((b"x-envoy-upstream-healthchecked-cluster", config.node_cluster.encode()),)
    healthy = LocalReply(200, headers=headers, details="health_check_ok")

    def answer(ctx: RequestContext) -> LocalReply | None:
        if matches is not None and not matches(ctx):
            return None
        return healthy

    step: RequestStep = answer
    return Steps((step,))
