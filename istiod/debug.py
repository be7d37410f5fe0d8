"""The way back to the hosts: istiod asks an agent's admin pages over a stream that the agent opened.

Job: the table of attached agents (hostmesh.v1.Debug/Attach) and one request-response exchange on it.
Rule: an attachment speaks for the proxies whose ADS streams are on its own connection, and for no others: whatever
nodes a peer names, it answers for itself only.
Not for: what the pages contain (the agent's admin server) or who may ask (the admin API).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import trio
from google.protobuf.message import DecodeError

from istiod.log import fields
from wire.grpc import GrpcError, GrpcStatus, ServerCall
from wire.proto import debug_pb2

log = logging.getLogger("istiod.debug")

PATH = "/hostmesh.v1.Debug/Attach"
ANSWER_SECONDS = 15.0


class NotAttachedError(Exception):
    """No agent is attached for this proxy."""


class NoAnswerError(Exception):
    """The agent did not answer in time, or its stream broke while it was asked."""


@dataclass
class _Attachment:
    """One agent's stream and the questions that wait for its answers."""

    call: ServerCall
    sending: trio.Lock = field(default_factory=trio.Lock)
    waiting: dict[int, trio.MemorySendChannel[debug_pb2.DebugResponse]] = field(default_factory=dict)
    last_id: int = 0


class DebugChannels:
    """All attached agents, one for each connection. `connection_of` gives the address and port at the other end of a
    node's ADS stream (by the node's key): no two connections have the same."""

    def __init__(self, connection_of: Callable[[str], str | None]) -> None:
        self._connection_of = connection_of
        self._by_connection: dict[str, _Attachment] = {}

    def attached(self, node_key: str) -> bool:
        """Whether the proxy's agent can be asked."""
        return self._find(node_key) is not None

    async def attach(self, call: ServerCall) -> None:
        """The gRPC handler: serve one agent until it goes."""
        peer = call.peer.spiffe_id
        if peer is None:
            raise GrpcError(GrpcStatus.UNAUTHENTICATED, "Debug/Attach needs a client certificate")
        connection = call.peer.address
        if connection in self._by_connection:
            raise GrpcError(GrpcStatus.ALREADY_EXISTS, "this connection is attached already")
        attachment = self._by_connection[connection] = _Attachment(call)
        log.debug("agent attached", extra=fields(peer=call.peer))
        try:
            while (message := await call.receive()) is not None:
                try:
                    answer = debug_pb2.DebugResponse.FromString(message)
                except DecodeError as error:
                    raise GrpcError(GrpcStatus.INVALID_ARGUMENT, "not a DebugResponse") from error
                channel = attachment.waiting.pop(answer.id, None)
                if channel is not None:
                    channel.send_nowait(answer)
        finally:
            del self._by_connection[connection]
            for channel in attachment.waiting.values():
                channel.close()
            log.debug("agent detached", extra=fields(peer=call.peer))

    async def ask(self, node_key: str, path: str) -> debug_pb2.DebugResponse:
        """One page of the agent's admin. Raises `NotAttachedError` or `NoAnswerError`."""
        attachment = self._find(node_key)
        if attachment is None:
            raise NotAttachedError(node_key)
        attachment.last_id += 1
        number = attachment.last_id
        send, receive = trio.open_memory_channel[debug_pb2.DebugResponse](1)
        attachment.waiting[number] = send
        request = debug_pb2.DebugRequest(id=number, method="GET", path=path)
        try:
            with trio.fail_after(ANSWER_SECONDS):
                async with attachment.sending:
                    await attachment.call.send(request.SerializeToString())
                return await receive.receive()
        except trio.TooSlowError:
            raise NoAnswerError(f"{node_key} did not answer within {ANSWER_SECONDS:g} s") from None
        except (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError, GrpcError) as error:
            raise NoAnswerError(f"{node_key} went away while it was asked") from error
        finally:
            attachment.waiting.pop(number, None)

    def _find(self, node_key: str) -> _Attachment | None:
        connection = self._connection_of(node_key)
        return self._by_connection.get(connection) if connection is not None else None
