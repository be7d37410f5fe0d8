"""How meshctl reaches this host's admin pages: the agent dials istiod and answers what comes down that stream.

Rule: only this host's own pages are served, by the same code that serves them on 127.0.0.1:15000, and only
reading ones: what changes the host is for people on it. Source: hostmesh.v1.Debug/Attach (wire/proto/debug.proto).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from agent.host.admin.page import Pages
from wire.grpc import DEBUG_ATTACH, Channel, ClientCall, GrpcError, GrpcStatus
from wire.proto import debug_pb2

log = logging.getLogger("hostmesh.debug")
_AT_ONCE = 8
_RETRY_SECONDS = 5.0


async def serve(channel: Channel, node_ids: Sequence[str], pages: Pages) -> None:
    """Answer istiod's questions for as long as the channel lives."""
    metadata = [("hostmesh-node", node_id) for node_id in node_ids]
    while channel.usable:
        try:
            async with channel.stream(DEBUG_ATTACH, metadata) as call:
                await _answer_all(call, pages)
        except GrpcError as error:
            log.debug("istiod ended the debug stream: %s", error)
            if error.status is GrpcStatus.UNIMPLEMENTED:
                return
        # Attaching is refused until istiod knows the node's ADS stream; that one has just begun.
        await trio.sleep(_RETRY_SECONDS if channel.usable else 0)


async def _answer_all(call: ClientCall, pages: Pages) -> None:
    limit, sending = trio.CapacityLimiter(_AT_ONCE), trio.Lock()
    lost: GrpcError | None = None

    async def answer(request: debug_pb2.DebugRequest) -> None:
        nonlocal lost
        async with limit:
            page = await pages(request.method, request.path, request.body)
            response = debug_pb2.DebugResponse(
                id=request.id, status=page.status, content_type=page.content_type, body=page.body
            )
            try:
                async with sending:
                    await call.send(response.SerializeToString())
            except GrpcError as error:
                lost = error

    async with trio.open_nursery() as nursery:
        try:
            while (message := await call.receive()) is not None:
                nursery.start_soon(answer, debug_pb2.DebugRequest.FromString(message))
        except GrpcError as error:
            lost = error
        nursery.cancel_scope.cancel()
    if lost is not None:
        raise lost
