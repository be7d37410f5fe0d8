"""Answers to gRPC requests: trailers-only responses (gRPC over HTTP2 specification; Envoy Grpc::Utility)."""

from __future__ import annotations

from dataclasses import replace

from agent.http.grpc import percent_encoded
from agent.http.request import LocalReply, RequestContext


def grpc_reply(ctx: RequestContext, reply: LocalReply, status: int) -> LocalReply:
    """The reply as it is to an HTTP client; to a gRPC client a trailers-only response with this status."""
    kind = ctx.headers.get(b"content-type", b"")
    if kind != b"application/grpc" and not kind.startswith(b"application/grpc+"):
        return reply
    message = percent_encoded(reply.body)
    return replace(
        reply,
        status=200,
        body=b"",
        headers=(*reply.headers, (b"grpc-status", str(status).encode()), (b"grpc-message", message)),
        content_type=b"application/grpc",
    )
