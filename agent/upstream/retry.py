"""Whether and when to try again (Envoy's RetryStateImpl).

Rule: a pure decision from the route's plan, the client's `x-envoy-*` headers and what happened; the exchange acts on it.
Not for: which host comes next (cluster.py), budgets (breaker.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agent.http.headers import Headers
from agent.http.request import RequestContext, ResponseHead
from agent.http.retry_plan import RetryPlan
from agent.table.matchers import decimal
from agent.upstream.reset import CONNECT_REASONS, OVERFLOW

_GATEWAY: Final = frozenset((502, 503, 504))
_GRPC: Final[Mapping[bytes, str]] = {
    b"1": "cancelled", b"4": "deadline-exceeded", b"13": "internal", b"8": "resource-exhausted", b"14": "unavailable",
}  # fmt: skip
_KNOWN: Final = frozenset((
    "5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "retriable-4xx", "refused-stream",
    "retriable-status-codes", "retriable-headers", "envoy-ratelimited", "http3-post-connect-failure",
))  # fmt: skip
_HEADERS: Final = (
    b"x-envoy-retry-on", b"x-envoy-retry-grpc-on", b"x-envoy-max-retries", b"x-envoy-retriable-status-codes",
    b"x-envoy-retriable-header-names", b"x-envoy-hedge-on-per-try-timeout",
)  # fmt: skip


class RetryState:
    """The retries of one request. Invariant: `left` never grows; `None` in its place means that nothing is retried."""

    __slots__ = ("_extra_headers", "_plain", "attempts", "left", "on", "plan", "statuses", "told_delay")

    def __init__(self, plan: RetryPlan, on: frozenset[str], left: int) -> None:
        self.plan = plan
        self.on = on
        self.left = left
        self.attempts = 0
        """Retries made."""
        self.told_delay = 0.0
        """Seconds that the last response asked us to wait, 0 if it did not."""
        self.statuses = plan.statuses
        self._extra_headers: frozenset[bytes] = frozenset()
        self._plain = "retriable-headers" not in on and "envoy-ratelimited" not in on
        """No header but grpc-status can ask for a retry of a success."""

    def of_reset(self, reason: str, started: bool) -> bool:
        """Does the policy cover this reset? `started`: some of the request went out."""
        on = self.on
        if reason == OVERFLOW:
            return False
        if "reset" in on or "5xx" in on or "gateway-error" in on:
            return True
        if "reset-before-request" in on and not started:
            return True
        return "connect-failure" in on and reason in CONNECT_REASONS

    def of_response(self, head: ResponseHead) -> bool:
        """Does the policy cover this response?"""
        on = self.on
        status = head.status
        headers = head.headers
        if status < 400 and self._plain and b"grpc-status" not in headers and status not in self.statuses:
            return False
        if b"x-envoy-ratelimited" in headers and "envoy-ratelimited" not in on:
            return False
        if 500 <= status < 600 and "5xx" in on:
            return True
        if status in _GATEWAY and "gateway-error" in on:
            return True
        if status == 409 and "retriable-4xx" in on:
            return True
        if status in self.statuses and "retriable-status-codes" in on:
            return True
        if "envoy-ratelimited" in on and b"x-envoy-ratelimited" in headers:
            return True
        if "retriable-headers" in on:
            if self.plan.retriable_headers is not None and self.plan.retriable_headers(head):
                return True
            if any(name in headers for name in self._extra_headers):
                return True
        grpc = headers.get(b"grpc-status")
        return grpc is not None and _GRPC.get(grpc, "-") in on

    def read_reset(self, headers: Headers, wall: float) -> None:
        """Note how long a response says that we should stay away (rate_limited_retry_back_off)."""
        self.told_delay = 0.0
        for name, is_time in self.plan.reset_headers:
            value = headers.get(name)
            number = None if value is None else decimal(value)
            if number is None:
                continue
            seconds = number - int(wall) if is_time else number
            if 0 < seconds <= self.plan.max_reset:
                self.told_delay = float(seconds)
                return

    def delay(self, random: int) -> float:
        """Seconds to wait before the next attempt: full jitter under an exponential bound, or what was told and up to
        half of it more."""
        if self.told_delay:
            return self.told_delay * (1.0 + (random & 0xFFFF) / 0x20000)
        bound = min(self.plan.base_interval * (1 << min(self.attempts, 20)), self.plan.max_interval)
        fraction = ((random >> (self.attempts * 7 % 32)) & 0xFFFFFF) / 0x1000000
        return bound * fraction

    def accept_header_names(self, names: frozenset[bytes]) -> None:
        """x-envoy-retriable-header-names."""
        self._extra_headers = names


_UINT32: Final = 0xFFFFFFFF
_EMPTY: Final = RetryPlan(on=frozenset(), attempts=1)


def begin(plan: RetryPlan | None, ctx: RequestContext) -> RetryState | None:
    """The retry state of a request, None when nothing of it can be retried. Takes Envoy's retry headers away."""
    headers = ctx.headers
    asked = b"x-envoy-retry-on" in headers or b"x-envoy-retry-grpc-on" in headers
    if plan is None and not asked:
        return None
    policy = plan if plan is not None else _EMPTY
    on = policy.on
    left = policy.attempts
    if asked:
        on = on | _names(headers)
    if plan is not None and plan.retriable_request is not None and not plan.retriable_request(ctx):
        on = frozenset()
    if b"x-envoy-max-retries" in headers:
        number = decimal(headers[b"x-envoy-max-retries"])
        if number is not None and 0 <= number <= _UINT32:
            left = number
    if not on:
        return None
    state = RetryState(policy, on, left)
    if asked:
        _extend(state, headers)
    return state


def forget_headers(headers: Headers) -> None:
    """The upstream is not told what was asked of us."""
    for name in _HEADERS:
        if name in headers:
            headers.remove(name)


def _names(headers: Headers) -> frozenset[str]:
    found = set()
    for header in (b"x-envoy-retry-on", b"x-envoy-retry-grpc-on"):
        for word in headers.get(header, b"").split(b","):
            name = word.strip().decode("ascii", "replace")
            if name in _KNOWN or name in _GRPC.values():
                found.add(name)
    return frozenset(found)


def _extend(state: RetryState, headers: Headers) -> None:
    codes = headers.get(b"x-envoy-retriable-status-codes")
    if codes is not None:
        numbers = [decimal(code) for code in codes.split(b",")]
        state.statuses = state.statuses | {code for code in numbers if code is not None}
    names = headers.get(b"x-envoy-retriable-header-names")
    if names is not None:
        state.accept_header_names(frozenset(name.strip().lower() for name in names.split(b",")))
