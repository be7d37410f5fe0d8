"""The life of one request, from its head to the line in the access log. Read it from top to bottom.

    begin          head → cleaned (intake) → path normalised (reception.py) → route
    decide         request steps (filters), which may answer or wait
    forward        the decision: cluster, timeouts, retries; then an attempt at a host (attempts.py)
    request_*      the client's body: passed on, kept for a retry, or kept back while nothing can take it
    upstream_*     the response: retried, or through the response steps to the client
    answer         a response of our own instead
    finish         the one exit: outcome, statistics, access log

Rule: decide first, act after; every way out leads to `finish`, once. No socket and no clock in here: streams and the
time are given (streams.py, setting.py), deadlines are in state.py.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from agent.exchange import grpc_timeouts
from agent.exchange import local_reply as replies
from agent.exchange.attempts import Attempts
from agent.exchange.mirror import send_mirrors
from agent.exchange.redirects import follow
from agent.exchange.target import host_for, tell_timeout, timeouts
from agent.http.h1_message import H1Violation, InboundResponse, RequestHead
from agent.http.headers import Headers
from agent.http.request import Delay, LocalReply, RequestContext, ResponseHead, WholeBody
from agent.upstream import reset, retry

if TYPE_CHECKING:
    from agent.routing.plan import RoutePlan


class Exchange(Attempts):
    """One request and its response; what it remembers is in ExchangeState."""

    __slots__ = ()

    # A request arrives

    def begin(self, head: RequestHead) -> None:
        """The head is complete. What the body and the upstream do next comes in by the other methods."""
        setting = self.setting
        clock = setting.clock
        now = clock.now
        client = self.client
        ctx = self.ctx = RequestContext(
            head.method, head.path, head.authority, head.headers, client.connection,
            http_version=b"1.0" if head.old else b"1.1", random=setting.random(), started_at=now,
            received_at=clock.wall(),
        )  # fmt: skip
        ctx.upgrade = head.upgrade
        outcome = self.outcome
        outcome.request = ctx
        outcome.flags = ctx.flags
        self.describe(now, ctx.received_at, "HTTP/1.0" if head.old else "HTTP/1.1")
        self.count_begun()
        manager = setting.manager
        if self.idle_timeout:
            self.idle_at = now + self.idle_timeout
        if manager.max_stream_duration:
            self.max_at = now + manager.max_stream_duration
        if manager.request_timeout and not head.ended:
            self.total_at = now + manager.request_timeout
        self.request_ended = head.ended and not head.upgrade
        if not self.request_ended:
            self.arm()
        if not head.keep_alive:
            client.closing = True
        if head.expects_continue and not manager.proxy_100_continue:
            client.send_continue()
        elif head.expects_continue:
            ctx.headers[b"expect"] = b"100-continue"
        if self.refused_as_it_is(head):
            return
        plan = self.plan = ctx.route = setting.router.route(ctx)
        if head.upgrade and not self.upgrade_allowed(head.upgrade, plan):
            return
        if plan is not None and plan.idle_timeout is not None:
            self.idle_timeout = plan.idle_timeout
            self.idle_at = now + plan.idle_timeout if plan.idle_timeout else inf
            self.arm()
        self.decide()

    def resume(self) -> None:
        """A filter's delay or a retry's back-off is over."""
        if self.cluster is None:
            self.decide()
        else:
            self.attempt_again()

    def decide(self) -> None:
        """Run the request steps from where they stand, then answer or forward."""
        ctx = self.ctx
        plan = self.plan
        steps = plan.request_steps if plan is not None else self.setting.router.no_route_steps.request
        while self.step < len(steps):
            step = steps[self.step]
            self.step += 1
            verdict = step(ctx)
            if verdict is None:
                if ctx.clear_route:
                    ctx.clear_route = False
                    plan = self.plan = ctx.route = self.setting.router.route(ctx)
                    steps = (
                        plan.request_steps if plan is not None else self.setting.router.no_route_steps.request
                    )
            elif isinstance(verdict, Delay):
                ctx.flags.append(verdict.flag)
                self.resume_at = self.setting.clock.now + verdict.seconds
                self.arm()
                return
            elif isinstance(verdict, WholeBody):
                if not self.request_ended and not ctx.upgrade:
                    self.whole_body = verdict.limit
                    return
            else:
                self.answer(verdict)
                return
        setting = self.setting
        slots = setting.slots
        slots[setting.rq_routed] += 1
        if plan is None:
            slots[setting.stats.no_route] += 1
            self.answer(replies.NO_ROUTE)
        elif plan.respond is not None:
            slots[setting.stats.rq_direct_response] += 1
            self.answer(plan.respond(ctx), from_route=True)
        else:
            self.forward(plan)

    # To the upstream

    def forward(self, plan: RoutePlan) -> None:
        """The route names a cluster: fix timeouts and retries, change the headers, make the first attempt."""
        setting = self.setting
        ctx = self.ctx
        name = plan.cluster
        if plan.cluster_header:
            name = ctx.headers.get(plan.cluster_header, b"").decode("latin-1")
        cluster = setting.clusters.get(name)
        if cluster is None:
            setting.slots[setting.stats.no_cluster] += 1
            self.answer(LocalReply(plan.cluster_not_found_status, flags=("NC",), details="cluster_not_found"))
            return
        self.cluster = cluster
        self.outcome.cluster, self.outcome.charged = cluster.config, True
        self.priority_breaker = cluster.breakers[1 if plan.priority == "high" else 0]
        headers = ctx.headers
        host = host_for(cluster, ctx, plan, self.tried, None)
        if host is None:
            self.outcome.attempts = 1  # as Envoy counts what did not come to an attempt
            self.answer(replies.NO_UPSTREAM)
            return
        self.total_timeout, self.try_timeout = timeouts(plan, headers)
        if not setting.strip_envoy_headers:
            tell_timeout(headers, self.total_timeout, self.try_timeout)
        if plan.grpc_timeouts is not None:
            grpc_timeouts.tell(plan.grpc_timeouts, headers, self.try_timeout or self.total_timeout)
        self.retry = retry.begin(plan.retry, ctx)
        retry.forget_headers(headers)
        if plan.finish_request is not None:
            plan.finish_request(ctx)
        if plan.attempt_count_in_request:
            headers.set(b"x-envoy-attempt-count", b"1")
        if ctx.upgrade:
            self.total_timeout = 0.0
        duration = plan.max_stream_duration or None
        if plan.grpc_timeouts is not None:
            duration = grpc_timeouts.stream(plan.grpc_timeouts, headers, duration)
        if duration is not None:
            self.max_at = min(self.max_at, setting.clock.now + duration)
            self.arm()
        self.keep_body = (self.retry is not None or plan.internal_redirect is not None) and not ctx.upgrade
        if self.request_ended:
            self.start_total_timeout()
        if plan.mirrors and not ctx.upgrade:
            if self.request_ended:
                send_mirrors(self, plan)
            else:
                self.keep_body = True
        self.attempt(host)

    # The client's body

    def request_data(self, data: bytes) -> None:
        """A piece of the body."""
        self.outcome.bytes_received += len(data)
        if self.idle_timeout:
            self.idle_at = self.setting.clock.now + self.idle_timeout
        upstream = self.upstream
        if upstream is not None and (self.tunnel or not self.ctx.upgrade):
            upstream.send_data(data)
            if upstream.full():
                self.client.pause()
            if not self.keep_body:
                return
        self.body.append(data)
        self.buffered += len(data)
        if self.whole_body >= 0:
            if self.buffered > self.whole_body:
                self.whole_body = -1
                self.answer(replies.TOO_LARGE)
            return
        if self.keeps_too_much():
            return
        if self.buffered > self.setting.listener.buffer_limit:
            if upstream is None or self.ctx.upgrade:
                self.client.pause()
            else:
                self.keep_body = False
                self.retry = None
                self.body = []
                self.buffered = 0

    def request_end(self, trailers: Headers | None) -> None:
        """The body is complete."""
        now = self.setting.clock.now
        self.outcome.request_done_at = now
        if self.request_ended:
            return
        self.request_ended = True
        self.total_at = inf
        self.trailers = trailers
        if self.tunnel:
            if self.upstream is not None:
                self.upstream.send_end(None)
            return
        if self.whole_body >= 0:
            self.complete_body()
            return
        if self.total_timeout:
            self.start_total_timeout()
        if self.keep_body and self.plan is not None and self.plan.mirrors:
            send_mirrors(self, self.plan)
        if self.upstream is not None:
            self.outcome.upstream_sent_last_at = now
            self.upstream.send_end(trailers)
            if self.try_timeout:
                self.try_at = now + self.try_timeout
                self.arm()

    def request_invalid(self, violation: H1Violation) -> None:
        """What came after the head was not HTTP."""
        self.client.closing = True
        if self.head_sent:
            self.cut_off(LocalReply(violation.status, flags=("DPE",), details=violation.details))
        else:
            self.answer(replies.protocol_error(violation.status, violation.details))

    def client_gone(self) -> None:
        """The client closed its connection before the response was complete."""
        if self.over:
            return
        self.outcome.flags.append("DC")
        self.ctx.details = "downstream_remote_disconnect"
        self.drop_upstream()
        self.finish()

    # The response

    def upstream_informational(self, status: int, headers: Headers) -> None:
        """A 1xx: 101 begins a tunnel, 100 is passed on if we left it to the upstream, others end here, as in Envoy."""
        if status == 101:
            self._switch_protocols(headers)
        elif status == 100 and self.setting.manager.proxy_100_continue:
            self.client.send_continue()

    def upstream_head(self, inbound: InboundResponse) -> None:
        """The response begins."""
        setting = self.setting
        now = setting.clock.now
        outcome = self.outcome
        outcome.upstream_first_at = now
        self.try_at = inf
        self.heard_of_try(now)
        if self.idle_timeout:
            self.idle_at = now + self.idle_timeout
        status, headers = inbound.status, inbound.headers
        head = ResponseHead(status, headers, False, outcome)
        self.judge_host(status)
        ctx, plan = self.ctx, self.plan
        assert plan is not None
        state = self.retry
        if state is not None and self.retried(state, head, inbound.length == 0):
            return
        if ctx.upgrade and ctx.upgrade != b"connect" and 200 <= status < 300:
            self.client.closing = True
            headers.pop(b"content-length", None)
            kept = tuple(headers.every())
            self.answer(LocalReply(status, headers=kept, details="websocket_handshake_unsuccessful"))
            return
        redirect = plan.internal_redirect
        if redirect is not None and status in redirect.statuses and follow(self, redirect, head):
            return
        self.keep_body = False
        self.retry = None
        if self.request_ended:
            if not setting.strip_envoy_headers:
                took = (now - (outcome.request_done_at or outcome.started_at)) * 1000.0
                headers.set(b"x-envoy-upstream-service-time", b"%d" % took)
            self.body = []
        else:
            self.client.closing = True
        if plan.attempt_count_in_response:
            headers.set(b"x-envoy-attempt-count", b"%d" % outcome.attempts)
        ctx.details = "via_upstream"
        if plan.finish_response is not None:
            plan.finish_response(ctx, head)
        for step in plan.response_steps:
            step(ctx, head)
        setting.outgoing(ctx, head, setting.clock.http_date())
        self.head_sent = True
        outcome.response_code = head.status
        outcome.response_headers = headers
        tunnel = ctx.upgrade == b"connect" and status == 200
        if tunnel:
            self._begin_tunnel()
        self.client.send_head(head, ctx.method, inbound.length == 0 and not tunnel, tunnel)

    def upstream_data(self, data: bytes) -> None:
        """A piece of the response's body."""
        self.outcome.bytes_sent += len(data)
        if self.try_idle:
            self.heard_of_try(self.setting.clock.now)
        if self.idle_timeout:
            self.idle_at = self.setting.clock.now + self.idle_timeout
        client = self.client
        client.send_data(data)
        if client.full() and self.upstream is not None:
            self.upstream.pause()

    def upstream_end(self, trailers: Headers | None) -> None:
        """The response is complete; its connection has gone back to the pool."""
        outcome = self.outcome
        outcome.upstream_last_at = self.setting.clock.now
        outcome.response_trailers = trailers
        self.left_upstream()
        if self.head_sent:
            self.client.send_end(trailers)
            self.finish()

    def upstream_reset(self, reason: str, failure: str) -> None:
        """The upstream broke off."""
        started = self.upstream is not None
        self.left_upstream()
        self.upstream_failed(reason, failure, started=started)

    def upstream_failed(self, reason: str, failure: str, *, started: bool) -> None:
        """No response, or not all of it: try again, answer, or cut the client off."""
        outcome = self.outcome
        outcome.upstream_failure = failure
        told = reason.replace(" ", "_") + (f"|{failure.replace(' ', '_')}" if failure else "")
        flag = reset.FLAGS[reason]
        if self.head_sent:
            if self.tunnel:
                self.client.closing = True
                self.client.send_end(None)
                self.finish()
                return
            details = f"upstream_reset_after_response_started{{{told}}}"
            self.cut_off(LocalReply(0, flags=(flag,), details=details))
            return
        self.blame_host()
        state = self.retry
        if state is not None and state.of_reset(reason, started) and self.try_again():
            return
        status = reset.status_for(reason)
        self.answer(replies.reset_reply(reason, failure, flag, status, retried=bool(self.tried)))

    def _switch_protocols(self, headers: Headers) -> None:
        """101: from here on both sides are bytes."""
        head = ResponseHead(101, headers, False, self.outcome)
        ctx, plan = self.ctx, self.plan
        assert plan is not None
        ctx.details = "via_upstream"
        if plan.finish_response is not None:
            plan.finish_response(ctx, head)
        for step in plan.response_steps:
            step(ctx, head)
        self.setting.outgoing(ctx, head, self.setting.clock.http_date())
        self.head_sent = True
        self.outcome.response_code = 101
        self.outcome.response_headers = headers
        self._begin_tunnel()
        self.client.send_head(head, ctx.method, False, True)

    def _begin_tunnel(self) -> None:
        """What the client sent too early follows now; nothing of it went out before."""
        self.tunnel = True
        self.keep_body = False
        self.retry = None
        self.total_at = self.try_at = self.try_idle_at = inf
        self.try_idle = 0.0
        early, self.body = self.body, []
        if self.upstream is not None:
            for data in early:
                self.upstream.send_data(data)
        self.client.resume()

    # The end

    def answer(self, reply: LocalReply, *, from_route: bool = False) -> None:
        """The proxy's own response; whatever the upstream was doing for this request is over."""
        self.drop_upstream()
        ctx, plan, setting, outcome = self.ctx, self.plan, self.setting, self.outcome
        if reply.reset:
            self.cut_off(reply)
            return
        outcome.flags.extend([flag for flag in reply.flags if flag not in outcome.flags])
        ctx.details = reply.details
        self.name_cluster()
        if not self.request_ended or (reply.status == 400 and not setting.manager.keep_after_bad_request):
            # A 400 of the proxy's own speaks of a client that is not understood: Envoy ends its connection, always.
            self.client.closing = True
        head, body = replies.build(ctx, reply, outcome, setting.rewrite)
        if plan is not None:
            if plan.attempt_count_in_response and outcome.attempts:
                head.headers.set(b"x-envoy-attempt-count", b"%d" % outcome.attempts)
            if from_route and plan.finish_response is not None:
                plan.finish_response(ctx, head)
            for step in plan.response_steps:
                step(ctx, head)
        else:
            for step in setting.router.no_route_steps.response:
                step(ctx, head)
        setting.outgoing(ctx, head, setting.clock.http_date())
        self._send_own(head, body, ctx.method)

    def refuse(self, reply: LocalReply) -> None:
        """An answer to bytes that never became a request; there is no context."""
        setting, outcome = self.setting, self.outcome
        ctx = self.ctx = RequestContext(b"", b"", b"", Headers(), self.client.connection)
        outcome.flags = ctx.flags
        now = setting.clock.now
        self.describe(now, setting.clock.wall(), "HTTP/1.1")
        self.count_begun()
        ctx.details = reply.details
        self.client.closing = True
        head, body = replies.build(ctx, reply, outcome, setting.rewrite)
        outcome.flags.extend(reply.flags)  # unknown to a rewrite's filters, as in Envoy
        setting.outgoing(ctx, head, setting.clock.http_date())
        self._send_own(head, body, b"GET")

    def _send_own(self, head: ResponseHead, body: bytes, method: bytes) -> None:
        outcome = self.outcome
        outcome.response_code = head.status
        outcome.response_headers = head.headers
        self.head_sent = True
        client = self.client
        bodiless = not body or method == b"HEAD"
        client.send_head(head, method, bodiless, False)
        if not bodiless:
            outcome.bytes_sent += len(body)
            client.send_data(body)
        client.send_end(None)
        self.finish()

    def cut_off(self, reply: LocalReply) -> None:
        """End a response that has begun, or a request that gets none; flags and details are the reply's."""
        self.drop_upstream()
        self.outcome.flags.extend(reply.flags)
        self.ctx.details = reply.details
        self.client.closing = True
        self.client.abort()
        self.finish()

    def finish(self) -> None:
        """The one exit: release, record, log."""
        if self.over:
            return
        self.over = True
        setting, outcome = self.setting, self.outcome
        self.client.timer.set(inf)
        if self.tried:
            self.priority_breaker.add_retries(-1)
        now = setting.clock.now
        outcome.finished_at = outcome.downstream_last_at = now
        outcome.duration = now - outcome.started_at
        outcome.details = self.ctx.details
        if self.ctx.at_end is not None:
            for release in self.ctx.at_end:
                release()
        plan = self.plan
        if plan is not None:
            outcome.route_name = plan.name
            outcome.virtual_host = plan.virtual_host
            outcome.route_metadata = plan.metadata
            outcome.virtual_host_metadata = plan.virtual_host_metadata
        setting.slots[setting.rq_active] -= 1
        self.sum_up()
        setting.record(outcome)
        for log in setting.logs:
            log(outcome)
        self.client.exchange_over()
