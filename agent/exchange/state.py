"""What an exchange remembers, and the clock that it lives by.

Rule: state and deadlines only; the story of a request is exchange.py, its attempts at upstream hosts attempts.py.
All deadlines share the client stream's one timer, which may fire early: it is armed again for the earliest one left.
"""

from __future__ import annotations

from abc import abstractmethod
from math import inf
from typing import TYPE_CHECKING

from agent.exchange import local_reply as replies
from agent.telemetry.header_fields import STATUS_BYTES
from agent.telemetry.labels import passes_through
from agent.telemetry.outcome import Outcome
from agent.upstream.pool import Waiter

if TYPE_CHECKING:
    from agent.exchange.setting import Setting
    from agent.exchange.streams import ClientStream, UpstreamStream
    from agent.http.headers import Headers
    from agent.http.request import LocalReply, RequestContext
    from agent.routing.plan import RoutePlan
    from agent.upstream.breaker import Breaker
    from agent.upstream.cluster import ClusterRuntime
    from agent.upstream.host import Host
    from agent.upstream.pool import Pool
    from agent.upstream.retry import RetryState


class ExchangeState(Waiter):
    """Invariant: at most one of `waiting_in`, `upstream` and a finite `resume_at` is set; `over` never goes back."""

    __slots__ = (
        "body", "buffered", "client", "cluster", "ctx", "head_sent", "host", "idle_at", "idle_timeout", "keep_body",
        "max_at", "outcome", "over", "plan", "priority_breaker", "request_ended", "resume_at", "retry", "setting",
        "step", "total_at", "total_timeout", "trailers", "tried", "try_at", "try_idle", "try_idle_at", "try_timed_out",
        "try_timeout", "tunnel", "upstream", "waiting_in", "whole_body",
    )  # fmt: skip

    def __init__(self, setting: Setting, client: ClientStream) -> None:
        self.setting = setting
        self.client = client
        self.outcome = Outcome()
        self.ctx: RequestContext
        self.plan: RoutePlan | None = None
        self.step = 0
        """The next request step."""
        self.cluster: ClusterRuntime | None = None
        self.priority_breaker: Breaker
        self.host: Host | None = None
        self.upstream: UpstreamStream | None = None
        self.waiting_in: Pool | None = None
        self.retry: RetryState | None = None
        self.tried: list[Host | None] = []
        """Hosts of the attempts that were given up; not empty: a place in the retry budget is taken."""
        self.body: list[bytes] = []
        """Of the request: not sent yet, or kept to be sent again."""
        self.buffered = 0
        self.keep_body = False
        self.trailers: Headers | None = None
        self.request_ended = False
        self.whole_body = -1
        """The most bytes of body that a filter waits for to be complete; -1: none waits."""
        self.head_sent = False
        self.tunnel = False
        self.over = False
        self.idle_timeout = setting.manager.stream_idle_timeout
        self.total_timeout = 0.0
        self.try_timeout = 0.0
        self.try_timed_out = False
        """The last attempt did."""
        self.try_idle = 0.0
        """The route's per_try_idle_timeout."""
        self.idle_at = self.total_at = self.try_at = self.try_idle_at = self.max_at = self.resume_at = inf

    # What the rest of the exchange does when time is up

    @abstractmethod
    def resume(self) -> None:
        """A delay or a back-off is over."""

    @abstractmethod
    def answer(self, reply: LocalReply, *, from_route: bool = False) -> None:
        """End with a response of our own."""

    @abstractmethod
    def attempt_timed_out(self, *, idle: bool = False) -> None:
        """The per-try timeout, or the one for an attempt of which nothing is heard."""

    @abstractmethod
    def cut_off(self, reply: LocalReply) -> None:
        """End a response that has begun, without its rest."""

    @abstractmethod
    def blame_host(self) -> None:
        """The host did not answer in time."""

    # Time

    def start_total_timeout(self) -> None:
        """The whole request's timeout runs from the end of the request, as in Envoy."""
        self.total_at = self.setting.clock.now + self.total_timeout if self.total_timeout else inf
        self.arm()

    def arm(self) -> None:
        """One timer for all deadlines; it may fire early and is armed again."""
        first = self.idle_at
        first = min(first, self.total_at)
        first = min(first, self.try_at)
        first = min(first, self.max_at)
        first = min(first, self.resume_at)
        if self.try_idle:
            first = min(first, self.try_idle_at)
        self.client.timer.set(first)

    def heard_of_try(self, now: float) -> None:
        """Something came of this attempt, or went out to it."""
        if self.try_idle:
            self.try_idle_at = now + self.try_idle

    def timer_fired(self) -> None:
        """Some deadline may have passed."""
        now = self.setting.clock.now
        if self.over:
            return
        if self.resume_at <= now:
            self.resume_at = inf
            self.resume()
        elif self.max_at <= now:
            self.time_out(replies.MAX_DURATION if self.request_ended else replies.REQUEST_MAX_DURATION)
        elif self.total_at <= now:
            cluster = self.cluster
            if cluster is None or not self.request_ended:
                self.time_out(replies.REQUEST_TIMEOUT)
            else:
                cluster.slots[cluster.stats.upstream_rq_timeout] += 1
                if self.host is not None:
                    self.host.rq_timeout += 1
                self.blame_host()
                self.time_out(replies.RESPONSE_TIMEOUT)
        elif self.try_at <= now:
            self.attempt_timed_out()
        elif self.try_idle_at <= now:
            self.attempt_timed_out(idle=True)
        elif self.idle_at <= now:
            self.time_out(replies.RESPONSE_IDLE if self.request_ended else replies.REQUEST_IDLE)
        if not self.over:
            self.arm()

    def time_out(self, reply: LocalReply) -> None:
        """Answer so, or cut off what has begun."""
        if self.head_sent:
            self.cut_off(reply)
        else:
            self.answer(reply)

    def count_begun(self) -> None:
        """One more request, of which one more is in progress."""
        setting = self.setting
        slots = setting.slots
        slots[setting.rq_total] += 1
        slots[setting.rq_active] += 1
        slots[setting.rq_http1] += 1

    def sum_up(self) -> None:
        """Tell the outcome what statistics ask of every request: the size of both heads, and whether it was plain."""
        outcome, headers = self.outcome, self.ctx.headers
        outcome.request_headers_bytes = self.ctx.size()
        answered: Headers | None = outcome.response_headers
        if answered is not None:
            outcome.response_headers_bytes = STATUS_BYTES + answered.size()
        kind = headers.get(b"content-type")
        grpc = kind is not None and kind.startswith(b"application/grpc")
        outcome.plain = not (
            outcome.flags or grpc or b"x-envoy-internal" in headers or passes_through(outcome)
        )

    def name_cluster(self) -> None:
        """An answer of our own before the upstream was asked names the route's cluster all the same, as Envoy's does."""
        plan = self.plan
        if self.cluster is None and plan is not None and plan.respond is None:
            name = plan.cluster
            if plan.cluster_header:
                name = self.ctx.headers.get(plan.cluster_header, b"").decode("latin-1")
            cluster = self.setting.clusters.get(name)
            self.outcome.cluster = None if cluster is None else cluster.config

    def describe(self, now: float, wall: float, protocol: str) -> None:
        """Tell the outcome where and when the request began; `now` is monotonic."""
        outcome, setting = self.outcome, self.setting
        connection = outcome.connection = self.client.connection
        if connection.peer is not None:
            outcome.peer_uris = connection.peer.uri_sans
        outcome.listener = setting.listener
        outcome.stat_prefix = setting.manager.stat_prefix
        outcome.protocol = protocol
        outcome.started_at = now
        outcome.received_at = wall
