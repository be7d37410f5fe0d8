"""The attempts of an exchange at upstream hosts: connection, retry, what a host is blamed for.

Rule: one attempt at a time; what an attempt takes (a place in a pool's queue, in a breaker's count, in the retry budget)
is given back exactly once. Not for: whether there is an upstream at all, and what the client gets (exchange.py).
"""

from __future__ import annotations

from abc import abstractmethod
from math import inf
from typing import TYPE_CHECKING, cast

from agent.exchange import local_reply as replies
from agent.exchange.reception import Reception
from agent.exchange.target import host_for, server_name, tell_timeout
from agent.routing.rewrite import rewrite_authority
from agent.upstream import reset

if TYPE_CHECKING:
    from agent.exchange.streams import UpstreamStream
    from agent.http.request import ResponseHead
    from agent.upstream.host import Host
    from agent.upstream.retry import RetryState


class Attempts(Reception):
    """See the module."""

    __slots__ = ()

    @abstractmethod
    def upstream_failed(self, reason: str, failure: str, *, started: bool) -> None:
        """An attempt ended without a complete response."""

    def attempt(self, host: Host) -> None:
        """One try at one host: a connection of its pool, now or later."""
        outcome = self.outcome
        outcome.attempts += 1
        outcome.upstream_picked_at = self.setting.clock.now
        endpoint = host.endpoint
        outcome.upstream_address = host.name
        outcome.upstream_failure = ""
        outcome.upstream_host = endpoint.hostname
        outcome.upstream_metadata = endpoint.metadata
        self.host = host
        plan = self.plan
        if plan is not None and plan.auto_host_rewrite and endpoint.hostname:
            rewrite_authority(
                self.ctx,
                endpoint.hostname.encode(),
                append=plan.append_x_forwarded_host,
                original=plan.keep_original,
            )
        if not self.priority_breaker.may_request():
            self._overflowed()
            return
        pool = host.pool
        if self.cluster is not None and self.cluster.config.auto_sni and host.tls is not None:
            pool = pool.by_name(server_name(self.ctx.authority))
        if plan is not None and plan.connect_ends_here and self.ctx.upgrade == b"connect":
            pool = self.setting.raw_pool(host)
        self.waiting_in = pool  # first, so that whatever happens in there is withdrawn with the request
        connection = pool.request(self)
        if connection is False:
            self.waiting_in = None
            self._overflowed()
        elif connection is not True:
            self.upstream_ready(cast("UpstreamStream", connection))

    def _overflowed(self) -> None:
        cluster = self.cluster
        if cluster is not None:
            cluster.slots[cluster.stats.upstream_rq_pending_overflow] += 1
        self.host = None
        self.outcome.upstream_address = self.outcome.upstream_host = ""
        self.upstream_failed(reset.OVERFLOW, "", started=False)

    def upstream_ready(self, connection: UpstreamStream) -> None:
        """The pool has a connection: the head goes out, with what there is of the body."""
        self.waiting_in = None
        host, cluster, ctx = self.host, self.cluster, self.ctx
        assert host is not None and cluster is not None
        self.upstream = connection
        now = self.setting.clock.now
        outcome = self.outcome
        outcome.upstream_connected_at = connection.connected_at
        outcome.upstream_local = connection.local_address
        peer = outcome.upstream_peer = connection.peer
        outcome.upstream_uris = peer.uri_sans if peer is not None else None
        outcome.upstream_sent_first_at = now
        host.active += 1
        host.rq_total += 1
        self.priority_breaker.add_requests(1)
        slots = cluster.slots
        slots[cluster.rq_total] += 1
        slots[cluster.rq_active] += 1
        if self.try_timeout and self.request_ended:
            self.try_at = now + self.try_timeout
            self.arm()
        if self.retry is not None and self.retry.plan.per_try_idle_timeout:
            self.try_idle = self.retry.plan.per_try_idle_timeout
            self.heard_of_try(now)
            self.arm()
        body = self.body
        ended = self.request_ended and not body and self.trailers is None
        connection.begin(self, ctx.method, ctx.path, ctx.authority, ctx.headers, ended, ctx.upgrade)
        if ctx.upgrade:
            return
        for data in body:
            connection.send_data(data)
        if not self.keep_body:
            self.body = []
            self.buffered = 0
        if self.request_ended:
            outcome.upstream_sent_last_at = now
            if not ended:
                connection.send_end(self.trailers)
        self.client.resume()

    def upstream_overflowed(self) -> None:
        """The pool has a connection, but others have used up what the breaker allows."""
        self.waiting_in = None
        self._overflowed()

    def upstream_unavailable(self, reason: str, failure: str) -> None:
        """The pool could not connect."""
        self.waiting_in = None
        self.upstream_failed(reason, failure, started=False)

    # Retries

    def retried(self, state: RetryState, head: ResponseHead, whole: bool) -> bool:
        """Does this response make another attempt begin? Then it counts as a retry's, and goes no further. `whole`: the
        head is all of it."""
        cluster = self.cluster
        assert cluster is not None
        if not state.of_response(head):
            if state.attempts:
                cluster.slots[cluster.stats.upstream_rq_retry_success] += 1
            return False
        if state.plan.reset_headers:
            state.read_reset(head.headers, self.setting.clock.wall())
        if not self.try_again(whole=whole):
            return False
        state.told_delay = 0.0
        host = self.tried[-1]
        if (
            host is not None and not 500 <= head.status < 600
        ):  # a response that is retried is an error of its host, whatever its status
            host.rq_error += 1
            host.rq_success -= 1
        cluster.count_retried(head.status)
        return True

    def try_again(self, *, whole: bool = False) -> bool:
        """Another attempt after a pause, if number and budget allow."""
        state, cluster = self.retry, self.cluster
        assert state is not None and cluster is not None
        slots, stats = cluster.slots, cluster.stats
        if state.left <= 0:
            if state.plan.attempts or state.attempts:
                self.outcome.flags.append("URX")
                slots[stats.upstream_rq_retry_limit_exceeded] += 1
            return False
        if not self.priority_breaker.may_retry():
            slots[stats.upstream_rq_retry_overflow] += 1
            self.outcome.flags.append("UO")
            return False
        state.left -= 1
        slots[stats.upstream_rq_retry] += 1
        if state.told_delay:
            slots[stats.counter("upstream_rq_retry_backoff_ratelimited")] += 1
        else:
            slots[stats.upstream_rq_retry_backoff_exponential] += 1
        delay = state.delay(self.ctx.random)
        state.attempts += 1
        if not self.tried:
            self.priority_breaker.add_retries(1)
        if whole and self.request_ended and self.upstream is not None:
            upstream = self.upstream
            self.left_upstream()
            upstream.let_go()
        else:
            self.drop_upstream()
        self.tried.append(self.host)
        self.try_idle_at = inf
        outcome = self.outcome
        if outcome.upstream_local:
            earlier = outcome.attempted = outcome.attempted or []
            earlier.append((outcome.upstream_address, outcome.upstream_host or outcome.upstream_address))
        self.try_at = inf
        self.resume_at = self.setting.clock.now + delay
        self.arm()
        return True

    def attempt_again(self) -> None:
        """The back-off is over."""
        plan, cluster = self.plan, self.cluster
        assert plan is not None and cluster is not None
        host = host_for(cluster, self.ctx, plan, self.tried, self.retry)
        if host is None:
            self.answer(replies.NO_UPSTREAM)
            return
        if plan.attempt_count_in_request:
            self.ctx.headers.set(b"x-envoy-attempt-count", b"%d" % (self.outcome.attempts + 1))
        if plan.tell_timeout_retry:
            self.ctx.headers.set(b"x-envoy-is-timeout-retry", b"true" if self.try_timed_out else b"false")
        self.try_timed_out = False
        if not self.setting.strip_envoy_headers and self.total_timeout:
            left = (
                max(self.total_at - self.setting.clock.now, 0.001)
                if self.total_at != inf
                else self.total_timeout
            )
            tell_timeout(self.ctx.headers, left, min(self.try_timeout, left))
        self.attempt(host)

    def attempt_timed_out(self, *, idle: bool = False) -> None:
        """See ExchangeState."""
        self.try_at = self.try_idle_at = inf
        cluster = self.cluster
        assert cluster is not None
        stats = cluster.stats
        slot = stats.upstream_rq_per_try_idle_timeout if idle else stats.upstream_rq_per_try_timeout
        cluster.slots[slot] += 1
        if self.host is not None:
            self.host.rq_timeout += 1
        self.blame_host()
        state = self.retry
        self.try_timed_out = True
        if state is not None and state.of_reset(reset.LOCAL_RESET, True) and self.try_again():
            return
        self.time_out(replies.PER_TRY_IDLE if idle else replies.PER_TRY_TIMEOUT)

    # Health of the host

    def judge_host(self, status: int) -> None:
        """Tell outlier detection of a response."""
        host, cluster = self.host, self.cluster
        if host is not None:
            if 500 <= status < 600:
                host.rq_error += 1
            else:
                host.rq_success += 1
        if host is not None and cluster is not None and cluster.detector is not None:
            now, chance = self.setting.clock.now, self.ctx.random % 100
            ejected = cluster.detector.response(host, status, now, chance, len(cluster.hosts))
            if status >= 500:
                cluster.count_outliers()
            if ejected:
                cluster.rebuild()

    def blame_host(self) -> None:
        """Tell outlier detection that there was none."""
        host, cluster = self.host, self.cluster
        if host is not None:
            host.rq_error += 1
        if host is not None and cluster is not None and cluster.detector is not None:
            now, chance = self.setting.clock.now, self.ctx.random % 100
            ejected = cluster.detector.local_failure(host, now, chance, len(cluster.hosts))
            cluster.count_outliers()
            if ejected:
                cluster.rebuild()

    # Leaving

    def drop_upstream(self) -> None:
        """Leave a pool's queue, or a response that nobody wants any more."""
        if self.waiting_in is not None:
            self.waiting_in.withdraw(self)
            self.waiting_in = None
        upstream = self.upstream
        if upstream is not None:
            self.left_upstream()
            upstream.cancel()

    def left_upstream(self) -> None:
        """The attempt is over: give back what it took."""
        if self.upstream is None:
            return
        self.upstream = None
        host, cluster = self.host, self.cluster
        assert host is not None and cluster is not None
        host.active -= 1
        self.priority_breaker.add_requests(-1)
        cluster.slots[cluster.rq_active] -= 1
