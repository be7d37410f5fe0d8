"""Fault injection (envoy.filters.http.fault): delays and aborts.

Rule: a request that the filter takes may first be delayed, then aborted; each has its own draw. Header-controlled
faults take value and share from the request, the share at most as configured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agent.filters.chain import Placed, most_specific
from agent.filters.chance import ABORT, DELAY, draw
from agent.filters.grpc import grpc_reply
from agent.filters.step import RequestStep, Steps
from agent.http.matching import RequestPredicate, compile_request_headers
from agent.http.request import Delay, LocalReply, RequestContext
from agent.limits.tally import Tally
from agent.table.filter_config import Fault, FaultAbort, FaultDelay
from agent.table.matchers import Fraction, decimal

DELAY_HEADER: Final = b"x-envoy-fault-delay-request"
ABORT_HEADER: Final = b"x-envoy-fault-abort-request"
GRPC_HEADER: Final = b"x-envoy-fault-abort-grpc-request"
BODY: Final = b"fault filter abort"


class ActiveFaults:
    """How many requests are under a fault; the bound is the filter's max_active_faults."""

    __slots__ = ("count",)

    def __init__(self, count: Tally) -> None:
        self.count = count

    def end(self) -> None:
        """A request that was under a fault is over."""
        self.count.add(-1)


def compile(placed: Placed) -> Steps | None:
    """Steps for a place in a chain; None where nothing is injected."""
    config = most_specific(placed, Fault)
    applies = _applies(config)
    limit = config.max_active
    active = (
        placed.state.of(config, lambda: ActiveFaults(placed.state.tally(config)))
        if limit is not None
        else None
    )
    steps: list[RequestStep] = []
    if config.delay is not None:
        steps.append(_delay_step(config.delay, applies, active, limit, placed))
    if config.abort is not None:
        steps.append(_abort_step(config.abort, applies, active, limit, placed))
    return Steps(tuple(steps)) if steps else None


def _applies(config: Fault) -> RequestPredicate | None:
    headers = compile_request_headers(config.headers)
    cluster, nodes = config.upstream_cluster, config.nodes
    if not cluster and not nodes:
        return headers

    def applies(ctx: RequestContext) -> bool:
        if nodes and ctx.headers.get(b"x-envoy-downstream-service-node", b"") not in nodes:
            return False
        if not cluster:
            return headers is None or headers(ctx)
        plan = ctx.route
        return plan is not None and plan.cluster == cluster and (headers is None or headers(ctx))

    return applies


def _delay_step(
    config: FaultDelay, applies: RequestPredicate | None, active: ActiveFaults | None, limit: int | None, placed: Placed,
) -> RequestStep:  # fmt: skip
    injected = placed.count(f"{placed.stats}fault.delays_injected")
    overflow = placed.count(f"{placed.stats}fault.faults_overflow")
    fixed, fraction = config.seconds, config.fraction
    constant = None if fixed is None else Delay(fixed)

    def delay(ctx: RequestContext) -> Delay | None:
        if applies is not None and not applies(ctx):
            return None
        share = fraction if constant is not None else _asked_share(ctx, DELAY_HEADER, fraction)
        if not share.takes(draw(ctx, DELAY)):
            return None
        waiting = constant
        if waiting is None:
            milliseconds = decimal(ctx.headers.get(DELAY_HEADER, b""))
            waiting = Delay(milliseconds / 1000) if milliseconds is not None else None
        if waiting is None or waiting.seconds <= 0:
            return None
        if not _enter(ctx, active, limit):
            overflow()
            return None
        injected()
        return waiting

    return delay


def _abort_step(
    config: FaultAbort, applies: RequestPredicate | None, active: ActiveFaults | None, limit: int | None, placed: Placed,
) -> RequestStep:  # fmt: skip
    injected = placed.count(f"{placed.stats}fault.aborts_injected")
    overflow = placed.count(f"{placed.stats}fault.faults_overflow")
    reply_for = _reply_maker(config)
    by_header = config.status is None and config.grpc_status is None

    def abort(ctx: RequestContext) -> LocalReply | None:
        if applies is not None and not applies(ctx):
            return None
        share = _asked_share(ctx, ABORT_HEADER, config.fraction) if by_header else config.fraction
        if not share.takes(draw(ctx, ABORT)):
            return None
        reply = reply_for(ctx)
        if reply is None:
            return None
        if not _enter(ctx, active, limit):
            overflow()
            return None
        injected()
        return reply

    return abort


def _enter(ctx: RequestContext, active: ActiveFaults | None, limit: int | None) -> bool:
    """Count this request as under a fault until it ends; False where there are too many."""
    if active is None or limit is None:
        return True
    if ctx.at_end is None:
        ctx.at_end = []
    if active.end in ctx.at_end:
        return True
    if active.count.total() >= limit:
        return False
    active.count.add(1)
    ctx.at_end.append(active.end)
    return True


def _asked_share(ctx: RequestContext, header: bytes, configured: Fraction) -> Fraction:
    asked = decimal(ctx.headers.get(header + b"-percentage", b""))
    if asked is None or asked < 0:
        return configured
    return Fraction(min(asked, configured.numerator), configured.denominator)


def _reply_maker(config: FaultAbort) -> Callable[[RequestContext], LocalReply | None]:
    if config.status is not None:
        reply = _http_abort(config.status)
        return lambda ctx: reply
    if config.grpc_status is not None:
        grpc_status = config.grpc_status
        return lambda ctx: _grpc_abort(ctx, grpc_status)

    def asked(ctx: RequestContext) -> LocalReply | None:
        status = decimal(ctx.headers.get(ABORT_HEADER, b""))
        if status is not None:
            return _http_abort(status) if 200 <= status < 600 else None
        grpc = decimal(ctx.headers.get(GRPC_HEADER, b""))
        return _grpc_abort(ctx, grpc) if grpc is not None and grpc >= 0 else None

    return asked


def _http_abort(status: int) -> LocalReply:
    return LocalReply(status, BODY, flags=("FI",), details="fault_filter_abort")


def _grpc_abort(ctx: RequestContext, status: int) -> LocalReply:
    reply = LocalReply(200, BODY, flags=("FI",), details="fault_filter_abort")
    return grpc_reply(ctx, reply, status)
