"""The way back to the hosts: istiod asks an agent's admin pages over a stream that the agent opened.

Job: the table of attached agents (hostmesh.v1.Debug/Attach) and one request-response exchange on it.
Rule: an attachment speaks for the nodes it names only as far as its certificate goes: the first node must be
of the certificate's own namespace, and every node must be connected by ADS from the same host.
Not for: what the pages contain (the agent's admin server) or who may ask (the admin API).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from istiod.log import fields
from wire.grpc import GrpcError, GrpcStatus, ServerCall
from wire.proto import debug_pb2

log = logging.getLogger("istiod.debug")

PATH = "/hostmesh.v1.Debug/Attach"
ANSWER_SECONDS = 15.0
_MAX_NODES = 64


class NotAttachedError(Exception):
    """No agent is attached for this proxy."""


class NoAnswerError(Exception):
    """The agent did not answer in time, or its stream broke while it was asked."""


@dataclass
class _Attachment:
    """One agent's stream and the questions that wait for its answers."""

    call: ServerCall
    address: str
    nodes: tuple[str, ...]
    sending: trio.Lock = field(default_factory=trio.Lock)
    waiting: dict[int, trio.MemorySendChannel[debug_pb2.DebugResponse]] = field(default_factory=dict)
    last_id: int = 0


class DebugChannels:
    """All attached agents. `host_of` gives the address from which a node (by its key) is connected by ADS."""

    def __init__(self, host_of: Callable[[str], str | None]) -> None:
        self._host_of = host_of
        self._by_node: dict[str, _Attachment] = {}

    def attached(self, node_key: str) -> bool:
        """Whether the proxy's agent can be asked."""
        return self._find(node_key) is not None

    async def attach(self, call: ServerCall) -> None:
        """The gRPC handler: serve one agent until it goes."""
        peer = call.peer.spiffe_id
        if peer is None:
            raise GrpcError(GrpcStatus.UNAUTHENTICATED, "Debug/Attach needs a client certificate")
        keys = _node_keys(call)
        if keys[0].partition("/")[0] != peer.namespace:
            raise GrpcError(GrpcStatus.PERMISSION_DENIED, f"{keys[0]} is not of {peer}'s namespace")
        attachment = _Attachment(call, host_part(call.peer.address), keys)
        for key in keys:
            self._by_node[key] = attachment
        log.info("agent attached", extra=fields(nodes=",".join(keys), peer=peer))
        try:
            while (message := await call.receive()) is not None:
                answer = debug_pb2.DebugResponse.FromString(message)
                channel = attachment.waiting.pop(answer.id, None)
                if channel is not None:
                    channel.send_nowait(answer)
        finally:
            for key in keys:
                if self._by_node.get(key) is attachment:
                    del self._by_node[key]
            for channel in attachment.waiting.values():
                channel.close()
            log.info("agent detached", extra=fields(nodes=",".join(keys)))

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
        attachment = self._by_node.get(node_key)
        if attachment is None or self._host_of(node_key) != attachment.address:
            return None
        return attachment


def host_part(address: str) -> str:
    """The host of `HOST:PORT` or `[HOST]:PORT`."""
    return address.rpartition(":")[0].strip("[]") or address


def _node_keys(call: ServerCall) -> tuple[str, ...]:
    """The nodes that the call's metadata names, as NAMESPACE/NAME."""
    keys = []
    for value in call.metadata.get_all("hostmesh-node"):
        parts = value.split("~")
        workload, _, namespace = parts[2].rpartition(".") if len(parts) == 4 else ("", "", "")
        if not workload or not namespace:
            raise GrpcError(GrpcStatus.INVALID_ARGUMENT, f"hostmesh-node: {value[:200]!r} is not a node id")
        keys.append(f"{namespace}/{workload}")
    if not 0 < len(keys) <= _MAX_NODES:
        raise GrpcError(GrpcStatus.INVALID_ARGUMENT, f"hostmesh-node: 1 to {_MAX_NODES} entries are expected")
    return tuple(keys)
