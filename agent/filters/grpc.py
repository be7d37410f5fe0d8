"""Answers to gRPC requests: trailers-only responses (gRPC over HTTP2 specification; Envoy Grpc::Utility)."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import quote

from agent.http.request import LocalReply, RequestContext

_TO_HTTP = {0: 200, 1: 499, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 400, 10: 409, 11: 400, 12: 501,
            13: 500, 14: 503, 15: 500, 16: 401}  # fmt: skip


def grpc_to_http(status: int) -> int:
    """The HTTP status for a gRPC status (Envoy Grpc::Utility::grpcToHttpStatus)."""
    return _TO_HTTP.get(status, 500)


def grpc_reply(ctx: RequestContext, reply: LocalReply, status: int) -> LocalReply:
    """The reply as it is to an HTTP client; to a gRPC client a trailers-only response with this status."""
    kind = ctx.headers.get(b"content-type", b"")
    if kind != b"application/grpc" and not kind.startswith(b"application/grpc+"):
        return reply
    message = quote(reply.body, safe=" !\"#$&'()*+,-./0123456789:;<=>?@[\\]^_`{|}~").encode()
    return replace(
        reply,
        status=200,
        body=b"",
        headers=(*reply.headers, (b"grpc-status", str(status).encode()), (b"grpc-message", message)),
        content_type=b"application/grpc",
    )
