"""Network filters in front of a chain's terminal: RBAC, connection limit and rate limit.

Rule: `compile_network` gives one gate; a connection that it lets in must be let out again when it closes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from agent.filters.chain import FilterState
from agent.filters.rbac import denial
from agent.filters.rbac_rules import Verdict, compile_rules
from agent.filters.token_bucket import Bucket
from agent.http.headers import Headers
from agent.http.request import ConnectionInfo, RequestContext
from agent.limits.tally import Tally
from agent.table.filter_config import ConnectionLimit, NetworkRateLimit, Rbac
from agent.table.listener import FilterConfig


@dataclass(frozen=True, slots=True)
class Refusal:
    """Close this connection after `delay` seconds; `details` is CONNECTION_TERMINATION_DETAILS."""

    details: str
    delay: float = 0.0


class NetworkGate:
    """All network filters of one chain."""

    __slots__ = ("_buckets", "_limits", "_rules")

    def __init__(
        self,
        rules: Sequence[Verdict],
        limits: Sequence[tuple[ConnectionLimit, Tally]],
        buckets: Sequence[Bucket] = (),
    ) -> None:
        self._rules = tuple(rules)
        self._limits = tuple(limits)
        self._buckets = tuple(buckets)

    def enter(self, connection: ConnectionInfo, now: float = 0.0) -> Refusal | None:
        """Judge a connection whose TLS handshake is over (RBAC reads its peer). None: it is in, call `leave` later.
        `now` is monotonic."""
        ctx = RequestContext(b"", b"", b"", Headers(), connection)
        for verdict in self._rules:
            allowed, policy = verdict(ctx)
            if not allowed:
                return Refusal(denial(policy).details)
        for bucket in self._buckets:
            if not bucket.take(now):
                return Refusal("local_ratelimit_close")
        for position, (limit, active) in enumerate(self._limits):
            if active.total() >= limit.max_connections:
                for _, entered in self._limits[:position]:
                    entered.add(-1)
                return Refusal("connection_limit", limit.delay)
            active.add(1)
        return None

    def leave(self) -> None:
        """A connection that was let in has closed."""
        for _, active in self._limits:
            active.add(-1)


def compile_network(filters: Sequence[FilterConfig], state: FilterState) -> NetworkGate | None:
    """The gate of a chain; None where nothing stands in front of its terminal."""
    rules: list[Verdict] = []
    limits: list[tuple[ConnectionLimit, Tally]] = []
    buckets: list[Bucket] = []
    for config in filters:
        value = config.value
        if isinstance(value, Rbac) and value.rules is not None:
            rules.append(compile_rules(value.rules))
        elif isinstance(value, ConnectionLimit):
            limits.append((value, state.of(value, partial(state.tally, value))))
        elif isinstance(value, NetworkRateLimit):
            buckets.append(state.of(value, partial(state.buckets(value).bucket, value.bucket)))
    return NetworkGate(rules, limits, buckets) if rules or limits or buckets else None
