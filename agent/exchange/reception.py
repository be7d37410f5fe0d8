"""A request's reception: what is judged before it is routed or becomes a tunnel, and its body while that comes in.

Rule: what cannot be received is answered here; everything else is left as the story in exchange.py goes on.
Not for: state and deadlines (state.py), upstream hosts (attempts.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.exchange import local_reply as replies
from agent.exchange.state import ExchangeState

if TYPE_CHECKING:
    from agent.http.h1_message import RequestHead
    from agent.routing.plan import RoutePlan


class Reception(ExchangeState):
    """See the module."""

    __slots__ = ()

    def refused_as_it_is(self, head: RequestHead) -> bool:
        """Clean headers, path and host; answers where that cannot be done."""
        setting = self.setting
        if not head.has_host:
            self.answer(replies.MISSING_HOST)
            return True
        if head.path[:1] != b"/" and not head.upgrade:
            self.answer(replies.ABSOLUTE_PATH)
            return True
        if head.method == b"QUERY" and not self.ctx.headers.get(b"content-type"):
            self.client.closing = True
            self.answer(replies.QUERY_WITHOUT_TYPE)
            return True
        refused = setting.intake(self.ctx, head, self.client.certificate_element)
        if refused is not None:
            setting.slots[setting.stats.downstream_rq_rejected_via_ip_detection] += 1
        else:
            if setting.router.internal_only:
                self._drop_internal_only(setting.router.internal_only)
            refused = setting.normalise(self.ctx)
            if refused is None:
                return False
            self.count_refused_path(refused.status)
        self.answer(refused)
        return True

    def _drop_internal_only(self, names: tuple[bytes, ...]) -> None:
        """Envoy RouteConfiguration.internal_only_headers: others than internal clients cannot send them."""
        headers = self.ctx.headers
        if b"x-envoy-internal" not in headers:
            for name in names:
                if name in headers:
                    headers.remove(name)

    def count_refused_path(self, status: int) -> None:
        """The path was answered before it was routed."""
        slots, stats = self.setting.slots, self.setting.stats
        if status == 307:
            slots[stats.downstream_rq_redirected_with_normalized_path] += 1
        else:
            slots[stats.downstream_rq_failed_path_normalization] += 1

    def upgrade_allowed(self, token: bytes, plan: RoutePlan | None) -> bool:
        """May this connection become a tunnel? Answers where it may not."""
        allowed = self.setting.upgrades.get(token)
        if plan is not None and token in plan.upgrades:
            allowed = plan.upgrades[token]
        if allowed or (token == b"connect" and plan is None):
            return True
        self.client.closing = True
        self.answer(replies.UPGRADE_FAILED)
        return False

    # The body

    def complete_body(self) -> None:
        """The body that a filter waited for is here: its length is known, and the next step's turn has come."""
        self.whole_body = -1
        self.ctx.headers.set(b"content-length", b"%d" % self.buffered)
        self.ctx.headers.remove(b"transfer-encoding")
        self.resume()

    def keeps_too_much(self) -> bool:
        """Is there more body than the route keeps? Then it is sent once, and neither retried nor mirrored."""
        plan = self.plan
        if plan is None or not self.keep_body or not 0 <= plan.buffer_limit < self.buffered:
            return False
        self.keep_body = False
        self.retry = None
        if self.upstream is not None:
            self.body = []
            self.buffered = 0
        return True

    # Output has room again

    def client_drained(self) -> None:
        """Towards the client."""
        if self.upstream is not None:
            self.upstream.resume()

    def upstream_drained(self) -> None:
        """Towards the upstream."""
        self.client.resume()
