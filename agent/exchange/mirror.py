"""Copies of requests to other clusters (Envoy request_mirror_policies): sent, never waited for.

Rule: a mirror is an exchange of its own whose client listens to nothing and whose end nobody records; its failure is
nobody's. It starts when the request is complete; one that did not fit the buffer is not mirrored.
Not for: deciding about the original.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.exchange.streams import ClientStream
from agent.http.headers import Headers
from agent.http.request import ConnectionInfo, RequestContext, ResponseHead
from agent.routing.plan import RoutePlan

if TYPE_CHECKING:
    from agent.exchange.exchange import Exchange
    from agent.exchange.setting import Timer


class _NoClient(ClientStream):
    """A client that throws everything away."""

    certificate_element: bytes | None = None
    closing = False
    timer: Timer

    def __init__(self, connection: ConnectionInfo) -> None:
        self.connection = connection

    def full(self) -> bool:
        return False

    def send_continue(self) -> None: ...

    def send_informational(self, status: int, headers: Headers) -> None: ...

    def send_head(self, head: ResponseHead, method: bytes, ended: bool, tunnel: bool) -> None: ...

    def send_data(self, data: bytes) -> None: ...

    def send_end(self, trailers: Headers | None) -> None: ...

    def abort(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def exchange_over(self) -> None:
        self.timer.close()


def send_mirrors(exchange: Exchange, plan: RoutePlan) -> None:
    """Start the copies that the dice allow."""
    from agent.exchange.exchange import Exchange as Copy

    original = exchange.ctx
    for number, mirror in enumerate(plan.mirrors):
        if (original.random >> (number * 5 + 1)) % mirror.denominator >= mirror.numerator:
            continue
        cluster = mirror.cluster
        if mirror.cluster_header:
            cluster = original.headers.get(mirror.cluster_header, b"").decode("latin-1")
        if cluster not in exchange.setting.clusters:
            continue
        client = _NoClient(original.connection)
        copy = Copy(exchange.setting.silent(), client)
        client.timer = exchange.setting.clock.timer(copy.timer_fired)
        ctx = copy.ctx = RequestContext(
            original.method,
            original.path,
            _shadow(original.authority) if mirror.shadow_suffix else original.authority,
            original.headers.duplicate(),
            original.connection,
            random=original.random,
            started_at=exchange.setting.clock.now,
        )
        ctx.headers.set(b"x-envoy-internal", b"true")  # what Envoy's own client says of itself
        host_address = exchange.setting.host_address
        if host_address:
            forwarded = ctx.headers.joined(b"x-forwarded-for")
            own = host_address.encode()
            ctx.headers.set(b"x-forwarded-for", own if not forwarded else forwarded + b"," + own)
        copy.outcome.request = ctx
        copy.outcome.flags = ctx.flags
        copy.request_ended = True
        copy.body = list(exchange.body)
        copy.trailers = exchange.trailers
        copy.plan = ctx.route = RoutePlan("", "", cluster=cluster, timeout=plan.timeout)
        copy.forward(copy.plan)


def _shadow(authority: bytes) -> bytes:
    """`host-shadow:port`."""
    host, colon, port = authority.rpartition(b":")
    if colon and port.isdigit() and not host.endswith(b":"):
        return host + b"-shadow:" + port
    return authority + b"-shadow"
