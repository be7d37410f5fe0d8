"""A small HTTP/1.1 server for the agent's own pages: readiness, and whatever the admin module answers.

Rule: one request a connection turn, small limits, no state: enough for a curl, a scraper and a load balancer's
check, and nothing that a slow or hostile client could hold. Not for the data plane.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import h11
import trio

from agent.host.admin.page import Page, Pages

log = logging.getLogger("hostmesh.pages")
_IDLE_SECONDS = 30.0
_MAX_BODY = 1 << 20
_MAX_CONNECTIONS = 64


async def serve(
    listeners: Sequence[trio.SocketListener],
    pages: Pages,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled."""
    open_connections = 0

    async def connection(stream: trio.SocketStream) -> None:
        nonlocal open_connections
        if open_connections >= _MAX_CONNECTIONS:
            await trio.aclose_forcefully(stream)
            return
        open_connections += 1
        try:
            await _requests(stream, pages)
        except (trio.BrokenResourceError, h11.ProtocolError) as error:
            log.debug("a client left: %s", error)
        finally:
            open_connections -= 1
            await trio.aclose_forcefully(stream)

    task_status.started()
    await trio.serve_listeners(connection, list(listeners))


async def _requests(stream: trio.SocketStream, pages: Pages) -> None:
    connection = h11.Connection(h11.SERVER)
    while True:
        with trio.move_on_after(_IDLE_SECONDS) as scope:
            request, body = await _request(stream, connection)
        if scope.cancelled_caught or request is None:
            return
        if body is None:
            page = Page(413, "text/plain", b"too large\n")
        else:
            page = await pages(request.method.decode("ascii"), request.target.decode("ascii"), body)
        headers = [
            ("content-type", page.content_type),
            ("content-length", str(len(page.body))),
            ("cache-control", "no-cache, max-age=0"),
            ("x-content-type-options", "nosniff"),
        ]
        if body is None:
            headers.append(("connection", "close"))
        output = connection.send(h11.Response(status_code=page.status, headers=headers)) or b""
        content = b"" if request.method == b"HEAD" else page.body
        output += connection.send(h11.Data(data=content)) or b"" if content else b""
        output += connection.send(h11.EndOfMessage()) or b""
        with trio.move_on_after(_IDLE_SECONDS) as scope:
            await stream.send_all(output)
        if scope.cancelled_caught or connection.our_state is h11.MUST_CLOSE:
            return
        connection.start_next_cycle()


async def _request(
    stream: trio.SocketStream, connection: h11.Connection
) -> tuple[h11.Request | None, bytes | None]:
    """The next request with its body; no request at the end, no body when it is too large."""
    request: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                proceed = connection.send(h11.InformationalResponse(status_code=100, headers=[]))
                await stream.send_all(proceed or b"")
            connection.receive_data(bytes(await stream.receive_some(65536)))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > _MAX_BODY:
                return request, None
        elif isinstance(event, h11.EndOfMessage):
            return request, bytes(body)
        else:
            return None, None
