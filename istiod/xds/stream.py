"""One ADS stream: from the first request to the end of the proxy's connection.

Job: read requests into the session, compile the newest snapshot for this proxy, send what the session gives,
keep the proxy's status and its registration.
Rule: at most one push is pending: however many snapshots come while the proxy is slow, only the newest is
compiled next. Sending and receiving are two tasks; only the sending one compiles and sends.
Not for: protocol state (`wire.xds`), what a proxy gets (`istiod.compile`), order (`istiod.xds.phases`).
"""

from __future__ import annotations

import logging
import math
import random

import trio

from istiod.compile import ProxyResources
from istiod.compile.failure import with_last_good
from istiod.log import fields
from istiod.xds.intake import Intake
from istiod.xds.node import NodeError, ProxyNode, check_identity, parse_node
from istiod.xds.phases import Content, PhasedContent, Session
from istiod.xds.plane import Plane
from istiod.xds.standing import Standing
from istiod.xds.status import SHORT_NAMES, ProxyStatus
from wire.grpc import GrpcError, GrpcStatus, ServerCall
from wire.xds import HEALTH, DeltaSession, Kind, Received, SotwSession, XdsError

log = logging.getLogger("istiod.xds")
_MOST_REASON = 2000
"""Characters of what an agent says of its health."""

DELTA_PATH = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
SOTW_PATH = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"

AGE_JITTER = 0.1
"""So much of `limits.streamMaxAge` a stream may live longer or shorter, lest all come back at once."""
AGED = "this stream is as old as streams may get: connect anew"
REFUSED_HEADER = b"hostmesh-not-registered"
"""In the response's headers: why the agent's workload is not in the catalog."""
FIRST_REQUEST_SECONDS = 15.0
PATIENCE = 2.0
"""Seconds for which listeners and routes wait for a proxy to take the clusters they need."""
RETRY_SECONDS = 30.0
"""Between two attempts to have a proxy take what it refuses, without that having changed."""
LEAVING = "leaving"
"""The error text of the last health report of an agent that stops."""


async def serve_delta(plane: Plane, call: ServerCall) -> None:
    """The handler of DeltaAggregatedResources."""
    await _serve(plane, call, DeltaSession(control_plane=plane.identifier), "delta")


async def serve_sotw(plane: Plane, call: ServerCall) -> None:
    """The handler of StreamAggregatedResources."""
    await _serve(plane, call, SotwSession(control_plane=plane.identifier), "sotw")


async def _serve(plane: Plane, call: ServerCall, session: Session, protocol: str) -> None:
    with trio.move_on_after(FIRST_REQUEST_SECONDS) as scope:
        data = await call.receive()
    if scope.cancelled_caught:
        raise GrpcError(GrpcStatus.DEADLINE_EXCEEDED, "no request came")
    if data is None:
        return
    intake = Intake(session)
    received = _understood(intake, data)
    if received is None:
        raise GrpcError(GrpcStatus.INVALID_ARGUMENT, "the first request is of a type that is not served")
    asked = _identified(plane, call, received)
    with plane.counted(call.peer):
        await _serve_identified(plane, call, session, protocol, intake, received, asked)


async def _serve_identified(
    plane: Plane,
    call: ServerCall,
    session: Session,
    protocol: str,
    intake: Intake,
    received: Received,
    asked: ProxyNode,
) -> None:
    standing = await plane.judge.begin(asked, call.peer)
    if standing.refused:
        call.headers.append((REFUSED_HEADER, ascii_text(standing.refused)))
    status = ProxyStatus(
        number=plane.table.next_number(),
        node=standing.node,
        refused=standing.refused,
        peer=call.peer.spiffe_id,
        address=call.peer.address,
        protocol=protocol,
        connected_at=trio.current_time(),
    )
    age = plane.limits.stream_max_age * (1 + AGE_JITTER * random.uniform(-1, 1))  # noqa: S311 - spreads reconnections
    stream = _Stream(plane, call, session, status, standing, asked, intake)
    with trio.move_on_after(age) as life:
        stream.ends_at = life.deadline
        await stream.run(received)
    if life.cancelled_caught:
        # Agents connect anew: certificates and grants are checked again, and no istiod keeps them all for ever.
        raise GrpcError(GrpcStatus.UNAVAILABLE, AGED)


def ascii_text(text: str) -> bytes:
    """A text as a header's value."""
    return text.encode("ascii", "backslashreplace")[:1024]


def _understood(intake: Intake, data: bytes) -> Received | None:
    try:
        return intake.take(data, trio.current_time())
    except XdsError as error:
        raise GrpcError(GrpcStatus.INVALID_ARGUMENT, str(error)) from error


def _identified(plane: Plane, call: ServerCall, received: Received) -> ProxyNode:
    """The node of the first request, checked against the certificate; refusals are logged."""
    reason = "node"
    try:
        if received.node is None:
            raise NodeError("the first request names no node")
        node = parse_node(received.node)
        if call.peer.spiffe_id is not None:
            reason = "identity"
            check_identity(node, call.peer.spiffe_id, plane.trust_domains)
    except NodeError as error:
        plane.metrics.refused.labels(reason).inc()
        log.warning("ADS stream refused: %s", error, extra=fields(peer=call.peer))
        status = GrpcStatus.PERMISSION_DENIED if reason == "identity" else GrpcStatus.INVALID_ARGUMENT
        raise GrpcError(status, str(error)) from error
    return node


class _Stream:
    """The state of one stream. `status.settled` is the newest snapshot that the proxy has answered whole."""

    def __init__(
        self,
        plane: Plane,
        call: ServerCall,
        session: Session,
        status: ProxyStatus,
        standing: Standing,
        asked: ProxyNode,
        intake: Intake,
    ) -> None:
        self.ends_at = math.inf
        """When it is as old as a stream may get (trio's clock)."""
        self._judged_anew = False
        self._intake = intake
        self._standing = standing
        self._asked = asked
        """The node as the proxy names itself."""
        self._access = plane.feed.snapshot.access
        self._lost = trio.Event()
        self._plane = plane
        self._call = call
        self._session = session
        self._status = status
        self._info = status.node.info()
        self._phases = PhasedContent(session)
        self._made: ProxyResources | None = None
        self._retried_at = -math.inf
        self._content: Content = {}
        self._number = 0
        self._pushed = False
        self._held_since = math.inf
        self._wake = trio.Event()
        self._left = False
        self._ending = False
        self._instance = standing.instance

    async def run(self, first: Received) -> None:
        """Serve until the client ends the stream or goes away."""
        plane, status, node = self._plane, self._status, self._status.node
        plane.table.add(status)
        plane.contents[status.number] = self._phases
        plane.metrics.connections.inc()
        about = fields(proxy=node.key, peer=self._call.peer, protocol=status.protocol, version=node.version)
        log.info("proxy connected", extra=about)
        if self._instance is not None:
            plane.registration.connected(self._instance, status.number, self._lost.set)
        try:
            async with trio.open_nursery() as nursery:
                self._take(first)
                nursery.start_soon(self._send, nursery.cancel_scope)
                nursery.start_soon(self._follow_snapshots)
                nursery.start_soon(self._end_when_lost)
                while (data := await self._call.receive()) is not None:
                    if (received := _understood(self._intake, data)) is not None:
                        self._take(received)
                # Who asks and says no more (grpcurl) still gets what was asked for.
                self._ending = True
                self._wake.set()
        finally:
            plane.table.remove(status)
            plane.contents.pop(status.number, None)
            plane.metrics.connections.dec()
            if self._instance is not None and not self._left:
                expected = self._judged_anew or trio.current_time() >= self.ends_at
                plane.registration.lost(self._instance.id, status.number, ended_by_us=expected)
            log.info("proxy disconnected", extra=fields(proxy=node.key, clean=self._left))

    def _take(self, received: Received) -> None:
        """One request: a report of health, an answer, or a changed subscription."""
        if received.type_url == HEALTH:
            self._report(received)
            return
        if received.kind in (Kind.ACK, Kind.NACK):
            state = self._session.state(received.type_url)
            status = self._status.of_type(received.type_url)
            fresh = status.answered(trio.current_time(), state.outstanding, state.refused)
            short = SHORT_NAMES.get(received.type_url, received.type_url)
            if received.nack is not None:
                self._plane.metrics.rejects.labels(short).inc()
            for one in fresh:
                log.warning(
                    "proxy refused its configuration",
                    extra=fields(
                        proxy=self._status.node.key, type=short, resource=one.name, reason=one.reason[:2000]
                    ),
                )
        else:
            self._status.of_type(received.type_url)
        self._wake.set()

    def _report(self, received: Received) -> None:
        registration, error = self._plane.registration, received.error
        if error is not None and error[1] == LEAVING:
            self._left, self._status.health = True, "LEAVING"
            if self._instance is not None:
                registration.left(self._instance.id, self._status.number)
            return
        self._status.health = "HEALTHY" if error is None else "UNHEALTHY"
        self._status.health_reason = error[1][:_MOST_REASON] if error is not None else ""
        if self._instance is not None:
            registration.reported(
                self._instance.id, self._status.number, error is None, self._status.health_reason
            )

    async def _follow_snapshots(self) -> None:
        feed = self._plane.feed
        number = feed.number
        while True:
            await feed.newer_than(number)
            number = feed.number
            if self._access is not feed.snapshot.access:
                self._access = feed.snapshot.access
                self._check_standing()
            self._wake.set()

    def _check_standing(self) -> None:
        """Raise GrpcError when the peer's standing is not what it was; what it may not serve leaves at once."""
        try:
            self._plane.judge.changed(self._standing, self._asked, self._call.peer)
        except GrpcError:
            self._judged_anew = True
            if self._instance is not None and not self._access.may_serve(self._instance):
                self._left = True
                self._plane.registration.left(self._instance.id, self._status.number)
            raise

    async def _end_when_lost(self) -> None:
        await self._lost.wait()
        raise GrpcError(GrpcStatus.UNAVAILABLE, "another host has registered under this name: connect anew")

    async def _send(self, stream: trio.CancelScope) -> None:
        """The one task that compiles and sends; ends the stream when the client has ended its side."""
        while True:
            self._wake = trio.Event()
            await self._compile_newest()
            while (message := self._session.next_response()) is not None:
                self._note_sent()
                await self._call.send(message)
            if self._ending:
                stream.cancel()
            now = trio.current_time()
            if self._phases.waiting:
                self._held_since = min(self._held_since, now)
                if self._phases.step(patience_over=now >= self._held_since + PATIENCE):
                    self._held_since = math.inf
                    continue
            self._note_settled()
            with trio.move_on_at(self._held_since + PATIENCE):
                await self._wake.wait()

    async def _compile_newest(self) -> None:
        feed = self._plane.feed
        if feed.number == self._number:
            return
        # One after the other: between two compiles the loop looks at its sockets, however many proxies wait.
        async with self._plane.compiling:
            self._compile()

    def _compile(self) -> None:
        self._number = self._plane.feed.number
        if not self._phases.waiting:
            self._held_since = math.inf
        made = self._plane.compile(self._info)
        if self._made is not None and made.types is self._made.types:
            return
        self._made = made
        self._status.not_compiled(made.failures, self._number)
        content = with_last_good(made.types, made.failures, self._content)
        if content:
            # Nothing at all is not sent: an agent would take it for a configuration.
            self._content = content
            self._phases.replace(content)
            self._retry_refused()

    def _retry_refused(self) -> None:
        """New content may be what a refused resource lacked: try it again, seldom enough to harm nobody."""
        now = trio.current_time()
        if now >= self._retried_at + RETRY_SECONDS and self._session.retry_refused():
            self._retried_at = now

    def _note_sent(self) -> None:
        """Find which type the response is of: the one whose nonce is new."""
        now = trio.current_time()
        for type_url in self._session.types:
            state = self._session.state(type_url)
            status = self._status.of_type(type_url)
            if state.nonce != status.nonce:
                given = self._phases.given.get(type_url, {})
                wanted = sum(
                    state.interest.covers(name, by_wildcard=resource.wildcard)
                    for name, resource in given.items()
                )
                status.sent(now, state.nonce, state.sent, wanted, self._number)
                self._plane.metrics.pushes.labels(SHORT_NAMES.get(type_url, type_url)).inc()
                self._pushed = True

    def _note_settled(self) -> None:
        """Nothing is left to send: if nothing is unanswered either, the proxy has taken this snapshot."""
        if self._phases.waiting or any(self._session.state(url).outstanding for url in self._session.types):
            return
        for type_url in self._session.types:
            self._status.of_type(type_url).stand(self._session.state(type_url).refused)
        if self._status.settled < self._number:
            if self._pushed and self._plane.feed.changed_at > self._status.connected_at:
                self._plane.metrics.convergence.observe(trio.current_time() - self._plane.feed.changed_at)
            self._pushed = False
            self._status.settled = self._number
            for type_url in self._session.types:
                self._status.of_type(type_url).current = True
            self._plane.table.progressed()
