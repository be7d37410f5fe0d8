"""Following an upstream's redirect inside the proxy (Envoy internal_redirect_policy).

Rule: the redirected request is a request of its own: it is routed, filtered and logged again, and only its log line says
where it came from. What does not hold (scheme, number of redirects, route) leaves the response as it is.
Not for: redirects that routes answer themselves (agent/routing/redirect).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.http.request import ResponseHead

if TYPE_CHECKING:
    from agent.exchange.exchange import Exchange
    from agent.table.route import InternalRedirect

_NOTE: Final = "internal redirects"


def follow(exchange: Exchange, policy: InternalRedirect, head: ResponseHead) -> bool:
    """Begin the redirected request; False where the response is to be passed on instead."""
    cluster = exchange.cluster
    assert cluster is not None
    stats, slots = cluster.stats, cluster.slots
    if not _begin(exchange, policy, head):
        slots[stats.counter("upstream_internal_redirect_failed_total")] += 1
        return False
    slots[stats.counter("upstream_internal_redirect_succeeded_total")] += 1
    _finish_first(exchange, head)
    exchange.decide()
    return True


def _begin(exchange: Exchange, policy: InternalRedirect, head: ResponseHead) -> bool:
    """Make the request what the Location asks for, if policy and routes allow it."""
    ctx = exchange.ctx
    target = _absolute(head.headers.get(b"location", b""))
    if target is None or not exchange.request_ended:
        return False
    scheme = target[0]
    if scheme != ctx.scheme and not policy.cross_scheme:
        return False
    notes = ctx.filter_notes = ctx.filter_notes if ctx.filter_notes is not None else {}
    taken: tuple[str, ...] = notes.get(_NOTE, ())
    if len(taken) >= policy.most:
        return False
    before = ctx.scheme, ctx.authority, ctx.path, ctx.route, ctx.headers
    ctx.headers = ctx.headers.duplicate()
    for name in policy.headers_to_copy:
        ctx.headers.remove(name)
        for value in head.headers.get_all(name):
            ctx.headers.add(name, value)
    ctx.scheme, ctx.authority, ctx.path = target
    plan = ctx.route = exchange.setting.router.route(ctx)
    if plan is None or not _accepted(policy, plan.name, taken, before[0], scheme):
        ctx.scheme, ctx.authority, ctx.path, ctx.route, ctx.headers = before
        return False
    if head.status == 303 and ctx.method not in (b"GET", b"HEAD"):
        ctx.method = b"GET"
        ctx.headers.remove(b"content-length")
        ctx.headers.remove(b"transfer-encoding")
        exchange.body, exchange.buffered = [], 0
    notes[_NOTE] = (*taken, plan.name)
    ctx.headers.set(b"x-envoy-original-url", b"%s://%s%s" % (before[0], before[1], before[2]))
    exchange.drop_upstream()
    return True


def _accepted(
    policy: InternalRedirect, route: str, taken: tuple[str, ...], before: bytes, scheme: bytes
) -> bool:
    if policy.safe_cross_scheme and before == b"http" and scheme == b"https":
        return False
    if policy.previous_routes and route in taken:
        return False
    return policy.allowed_routes is None or route in policy.allowed_routes


def _absolute(location: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Scheme, authority and path of an absolute URL, without its fragment."""
    scheme, mark, rest = location.partition(b"://")
    scheme = scheme.lower()
    if not mark or scheme not in (b"http", b"https"):
        return None
    end = min(
        (at for at in (rest.find(b"/"), rest.find(b"?"), rest.find(b"#")) if at >= 0), default=len(rest)
    )
    authority, path = rest[:end], rest[end:].partition(b"#")[0]
    if not authority:
        return None
    return scheme, authority, path if path.startswith(b"/") else b"/" + path


def _finish_first(exchange: Exchange, head: ResponseHead) -> None:
    """The first request is told of as one that ended in an internal redirect; the second one starts clean."""
    from agent.exchange.exchange import Exchange as Next

    setting, outcome, ctx, plan = exchange.setting, exchange.outcome, exchange.ctx, exchange.ctx.route
    now = setting.clock.now
    outcome.finished_at = outcome.downstream_last_at = now
    outcome.duration = now - outcome.started_at
    outcome.response_code = head.status
    outcome.response_headers = head.headers
    outcome.details = "internal_redirect"
    setting.record(outcome)
    if plan is not None:  # Envoy's line names where the redirect goes
        outcome.route_name, outcome.virtual_host = plan.name, plan.virtual_host
        outcome.route_metadata = plan.metadata
        cluster = setting.clusters.get(plan.cluster)
        outcome.cluster = None if cluster is None else cluster.config
    for log in setting.logs:
        log(outcome)
    fresh = Next(setting, exchange.client)
    ctx.flags, ctx.details = [], ""
    exchange.outcome = again = fresh.outcome
    again.request, again.flags = ctx, ctx.flags
    again.bytes_received = outcome.bytes_received + exchange.buffered
    exchange.describe(now, setting.clock.wall(), outcome.protocol)
    again.request_done_at = now
    exchange.count_begun()
    setting.slots[setting.stats.downstream_rq_active] -= 1
    exchange.plan = ctx.route
    exchange.step = 0
    exchange.cluster = exchange.host = exchange.retry = None
    if exchange.tried:
        exchange.priority_breaker.add_retries(-1)
    exchange.tried = []
    exchange.total_at = exchange.try_at = fresh.total_at
