"""What happens to every response's headers before it is written (Envoy ConnectionManagerUtility::mutateResponseHeaders).

Rule: hop-by-hop fields of the upstream end here; `server` and `date` are ours as the connection manager says.
Not for: framing (h1_encode), changes that routes or filters ask for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from agent.http.headers import Headers
from agent.http.request import RequestContext, ResponseHead
from agent.table.listener import HttpManager

Outgoing: TypeAlias = Callable[[RequestContext, ResponseHead, bytes], None]


def compile_outgoing(manager: HttpManager) -> Outgoing:
    """The function that completes a response; its third argument is the time as an HTTP date."""
    policy = manager.server_header
    name = manager.server_name
    via = manager.via
    always_id = manager.always_set_request_id_in_response

    def outgoing(ctx: RequestContext, head: ResponseHead, date: bytes) -> None:
        headers = head.headers
        first = headers.first
        if not head.local and not _HOP_BY_HOP.isdisjoint(first):
            drop_hop_by_hop(headers, head.status == 101)
        if via:
            headers.set(b"via", headers[b"via"] + b", " + via if b"via" in headers else via)
        if always_id and ctx.request_id:
            headers.set(b"x-request-id", ctx.request_id)
        if b"date" not in first:
            first[b"date"] = date
        if policy == "overwrite" or ((policy == "append_if_absent" or head.local) and b"server" not in first):
            first[b"server"] = name

    return outgoing


_HOP_BY_HOP: Final = frozenset((b"transfer-encoding", b"connection", b"keep-alive", b"proxy-connection"))


def drop_hop_by_hop(headers: Headers, upgraded: bool) -> None:
    """Remove what belongs to the upstream's connection."""
    headers.pop(b"transfer-encoding", None)
    if b"connection" in headers and not upgraded:
        headers.remove(b"connection")
        headers.remove(b"upgrade")
    if b"keep-alive" in headers:
        headers.remove(b"keep-alive")
    if b"proxy-connection" in headers:
        headers.remove(b"proxy-connection")
