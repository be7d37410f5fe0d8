"""Requests whole before the upstream hears of them (envoy.filters.http.buffer).

Rule: the filter only says how much it takes; the exchange keeps the body, tells its length in content-length, and
answers 413 to more.
"""

from __future__ import annotations

from agent.filters.chain import Placed, most_specific
from agent.filters.step import RequestStep, Steps
from agent.http.request import RequestContext, WholeBody
from agent.table.filter_config import BufferFilter


def compile(placed: Placed) -> Steps | None:
    """Steps for a place in a chain; None where a route switches it off."""
    config = most_specific(placed, BufferFilter)
    if config.max_bytes is None:
        return None
    wanted = WholeBody(config.max_bytes)

    def whole(ctx: RequestContext) -> WholeBody:
        return wanted

    step: RequestStep = whole
    return Steps((step,))
