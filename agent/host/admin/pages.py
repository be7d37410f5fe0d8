"""A small HTTP/1.1 server for the agent's own pages: readiness, and whatever the admin module answers.

Rule: enough for a curl, a scraper and a load balancer's check, and nothing that a slow or hostile client could hold: a
request has a deadline, and a full house serves the newest connection (`seats`). Not for the data plane.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address

import h11
import trio

from agent.host.admin.page import Page, Pages
from agent.host.admin.seats import Seat, Seats

log = logging.getLogger("hostmesh.pages")
_REQUEST_SECONDS = 15.0
"""For a whole request to arrive, and for an answer to be taken."""
_MAX_BODY = 1 << 20

Guard = Callable[[h11.Request], str | None]
"""Why this request is refused (403); None when it is not."""


def anybody(request: h11.Request) -> str | None:
    """The guard of pages that everyone may read."""
    return None


def programs_on_this_host(request: h11.Request) -> str | None:
    """The guard of a loopback port: no request that a web page made, nor one that came by a name of somebody's DNS."""
    for name, value in request.headers:
        if name == b"host" and not _is_loopback(value.decode("latin-1")):
            return "the Host header is not a loopback address or localhost"
        if name == b"origin":
            return "requests of web pages (with an Origin header) are not answered"
    return None


def _is_loopback(authority: str) -> bool:
    if authority.startswith("["):
        return is_loopback(authority[1:].partition("]")[0])
    return is_loopback(authority.partition(":")[0])


def is_loopback(host: str) -> bool:
    """Whether a host, without a port, is this host's loopback: an address or `localhost`."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


async def serve(
    listeners: Sequence[trio.SocketListener],
    pages: Pages,
    guard: Guard = anybody,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled."""
    seats = Seats()

    async def connection(stream: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            seat = seats.take(_peer(stream), scope.cancel)
            try:
                if seat is not None:
                    await _requests(stream, pages, guard, seat)
            except (trio.BrokenResourceError, h11.ProtocolError) as error:
                log.debug("a client left: %s", error)
            finally:
                if seat is not None:
                    seats.give_back(seat)
                await trio.aclose_forcefully(stream)

    task_status.started()
    await trio.serve_listeners(connection, list(listeners))


def _peer(stream: trio.SocketStream) -> str:
    """The client's address, empty for a Unix socket or a client that left already."""
    try:
        address = stream.socket.getpeername()
    except OSError:
        return ""
    return address[0] if stream.socket.family in (socket.AF_INET, socket.AF_INET6) else ""


async def _requests(stream: trio.SocketStream, pages: Pages, guard: Guard, seat: Seat) -> None:
    connection = h11.Connection(h11.SERVER)
    while True:
        seat.waiting = True
        with trio.move_on_after(_REQUEST_SECONDS) as scope:
            request, body = await _request(stream, connection)
        if scope.cancelled_caught or request is None:
            return
        seat.waiting = False
        refused = guard(request)
        if body is None:
            page = Page(413, "text/plain", b"too large\n")
        elif refused is not None:
            page = Page(403, "text/plain", f"{refused}\n".encode())
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
        # A client that does not take its answer may be displaced like one that does not ask.
        seat.waiting = True
        with trio.move_on_after(_REQUEST_SECONDS) as scope:
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
