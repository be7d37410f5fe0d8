"""One workload's ADS stream: keep it up, bring what comes to the data plane, answer with what became of it.

Rule: a broken stream changes nothing on the host; the next one, to any istiod, goes on from what is held.
What can be used of an update is in use in every worker before the update is answered; the answer names the rest.
Not for: which resources belong together (`config_session`), what workers do (`dataplane`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager

import trio
from google.protobuf.message import DecodeError

from agent.host.control.config_session import Applied, Candidate, ConfigSession, Held
from agent.host.control.control_plane import CONNECTION_ERRORS, ControlPlane, Unreachable
from agent.host.identity.keeper import IdentityKeeper
from agent.host.log import fields
from wire.grpc import ADS_DELTA, Backoff, Channel, ClientCall, GrpcError, open_channel
from wire.xds.client import health_request
from wire.xds.requests import XdsError

log = logging.getLogger("hostmesh.xds")
WARMING_SECONDS = 5.0
"""How long a set may wait for something that it names (Envoy: initial_fetch_timeout, 15 s)."""
_STABLE_SECONDS = 10.0
_CONNECT_ANEW = "connect anew"
"""How istiod ends the reason of a stream that it ends so that the agent comes back (istiod.xds.stream)."""
_ANEW_SECONDS = 1.0
_LEAVING = "leaving"
_GOODBYE_SECONDS = 2.0


_AGAIN_SECONDS = 10.0
"""Before what was refused is tried again, as files and ports of the host may be there now; then twice as long each time."""
_AGAIN_MOST_SECONDS = 300.0


class Rejected(Exception):
    """Nothing of a configuration can be used; the reason goes to istiod."""


Apply = Callable[[Held], Awaitable[Applied]]
"""Bring what can be used of a set into use everywhere; `Rejected` when that is nothing, with the old one still in use."""


class XdsClient:
    """One workload's stream. `connected` says whether it stands; `health` is what istiod is told."""

    def __init__(
        self,
        key: str,
        *,
        session: ConfigSession,
        identity: IdentityKeeper,
        control_plane: ControlPlane,
        apply: Apply,
        chance: Callable[[], float],
    ) -> None:
        self.connected = False
        self.last_error = ""
        self.last_rejection = ""
        self.not_registered = ""
        """Why istiod does not keep the workload in its catalog: callers do not find it."""
        self.has_config = trio.Event()
        self._key, self._session, self._identity = key, session, identity
        self._control_plane, self._apply, self._chance = control_plane, apply, chance
        self._health: tuple[bool | None, str] = None, ""
        self._health_changed = trio.Event()
        self._updated = trio.Event()
        self._leaving = False
        self._rejoining = False
        self._left = trio.Event()
        self._attached: Callable[[Channel], Awaitable[None]] | None = None

    def report(self, healthy: bool | None, reason: str = "") -> None:
        """The workload's health from now on; None: not known yet, the registry keeps what it has."""
        self._health = (healthy, reason)
        self._health_changed.set()

    def with_channel(self, serve: Callable[[Channel], Awaitable[None]]) -> None:
        """Also run this on every connection, beside the stream (the way back for admin pages)."""
        self._attached = serve

    async def leave(self) -> None:
        """Tell istiod that the workload goes; returns when it has been told, or could not be in time."""
        self._leaving = True
        self._health_changed.set()
        if self.connected:
            with trio.move_on_after(_GOODBYE_SECONDS):
                await self._left.wait()

    def rejoin(self) -> None:
        """Leave and come back at once: the session's node is another one now (its address is part of its claim)."""
        if self.connected:
            self._rejoining = True
            self._health_changed.set()

    async def run(self) -> None:
        """Keep a stream up until cancelled or left."""
        backoff = Backoff(self._chance)
        while not self._leaving:
            began = trio.current_time()
            try:
                await self._connection()
                reason = "istiod ended the stream"
            except (GrpcError, XdsError, DecodeError, Unreachable, *CONNECTION_ERRORS) as error:
                reason = str(error) or type(error).__name__
                if reason.endswith(_CONNECT_ANEW) and not self._leaving:
                    # istiod asks for it: the stream is old, or what the workload may serve has changed.
                    log.info("istiod: %s", reason, extra=fields(workload=self._key))
                    self.connected = False
                    await trio.sleep(_ANEW_SECONDS * self._chance())
                    continue
            except Exception as error:
                # A fault of ours must not end the agent: what is in force goes on serving.
                log.exception("the stream failed", extra=fields(workload=self._key))
                reason = repr(error)
            self.connected = False
            if self._leaving:
                return
            if self._rejoining:
                self._rejoining = False
                continue
            if trio.current_time() - began > _STABLE_SECONDS:
                backoff.reset()
            delay = backoff.next_delay()
            if reason != self.last_error:
                log.warning("no stream to istiod: %s", reason, extra=fields(workload=self._key))
            self.last_error = reason
            await trio.sleep(delay)

    async def _connection(self) -> None:
        context = self._identity.context()

        async def connect() -> trio.abc.Stream:
            return await self._control_plane.connect(context)

        async with (
            open_channel(connect, self._control_plane.authority) as channel,
            channel.stream(ADS_DELTA) as call,
            _group() as nursery,
        ):
            sender = _Sender(call)
            for request in self._session.start():
                await sender.send(request)
            log.info(
                "stream to istiod", extra=fields(workload=self._key, istiod=self._control_plane.authority)
            )
            self.connected, self.last_error = True, ""
            nursery.start_soon(self._report_health, sender, call)
            nursery.start_soon(self._use_updates, sender)
            if self._attached is not None:
                nursery.start_soon(self._attached, channel)
            while (message := await call.receive()) is not None:
                self._note_registration(call.initial_metadata.get("hostmesh-not-registered") or "")
                for request in self._session.receive(message):
                    await sender.send(request)
                self._updated.set()
            nursery.cancel_scope.cancel()

    def _note_registration(self, reason: str) -> None:
        if reason and reason != self.not_registered:
            log.error("istiod does not register this workload: %s", reason, extra=fields(workload=self._key))
        self.not_registered = reason

    async def _report_health(self, sender: _Sender, call: ClientCall) -> None:
        while True:
            self._health_changed = trio.Event()
            if self._leaving or self._rejoining:
                await sender.send(health_request(False, _LEAVING))
                await call.end()
                self._left.set()
                if self._leaving:
                    return
                await trio.sleep(_GOODBYE_SECONDS)
                raise XdsError("istiod does not end the stream that was left")
            healthy, reason = self._health
            if healthy is not None:
                await sender.send(health_request(healthy, reason))
            await self._health_changed.wait()

    async def _use_updates(self, sender: _Sender) -> None:
        again = _AGAIN_SECONDS
        while True:
            self._updated = trio.Event()
            try:
                candidate = self._session.candidate()
            except DecodeError as error:
                raise XdsError(f"a resource cannot be decoded: {error}") from error
            if candidate is None:
                if not self._session.pending:
                    waited = again
                    with trio.move_on_after(
                        again if self._session.worth_trying_again else math.inf
                    ) as waiting:
                        await self._updated.wait()
                    again = _AGAIN_SECONDS
                    if waiting.cancelled_caught:
                        again = min(2 * waited, _AGAIN_MOST_SECONDS)
                        await self._use(self._session.once_more(), sender)
                    continue
                with trio.move_on_after(WARMING_SECONDS) as waiting:
                    await self._updated.wait()
                if not waiting.cancelled_caught:
                    continue
                missing = ", ".join(self._session.missing())
                log.warning("using a configuration without %s", missing, extra=fields(workload=self._key))
                candidate = self._session.candidate(complete=False)
            if candidate is not None:
                await self._use(candidate, sender)

    async def _use(self, candidate: Candidate, sender: _Sender) -> None:
        try:
            applied = await self._apply(candidate.resources)
        except Rejected as error:
            rejection = str(error)
            requests = self._session.rejected(candidate, rejection)
        else:
            rejection = "; ".join(map(str, applied.refused))
            requests = self._session.settle(candidate, applied)
            self.has_config.set()
        if rejection and rejection != self.last_rejection:
            log.warning("refused: %s", rejection, extra=fields(workload=self._key))
        self.last_rejection = rejection
        for request in requests:
            await sender.send(request)


class _Sender:
    """Several tasks send on one call, one message at a time."""

    def __init__(self, call: ClientCall) -> None:
        self._call, self._lock = call, trio.Lock()

    async def send(self, request: bytes) -> None:
        async with self._lock:
            await self._call.send(request)


@asynccontextmanager
async def _group():  # type: ignore[no-untyped-def]
    """A nursery whose first failure is raised as itself."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
