"""Headers that Envoy keeps as one field however often they come.

Rule: adding to one that is there joins with a comma, and matchers see the joined value.
"""

from __future__ import annotations

from agent.http.headers import Headers

SINGLE = frozenset(
    b"accept-encoding access-control-allow-credentials access-control-allow-headers access-control-allow-methods"
    b" access-control-allow-origin access-control-expose-headers access-control-max-age"
    b" access-control-request-headers access-control-request-method authorization cache-control connection"
    b" content-encoding content-length content-type date etag expect grpc-accept-encoding grpc-message grpc-status"
    b" grpc-timeout keep-alive last-modified location origin pragma proxy-connection proxy-status referer server te"
    b" transfer-encoding upgrade user-agent vary via x-client-trace-id x-envoy-attempt-count x-envoy-original-path"
    b" x-forwarded-client-cert x-forwarded-for x-forwarded-host x-forwarded-port x-forwarded-proto"
    b" x-request-id".split()
)


def add_field(headers: Headers, name: bytes, value: bytes) -> None:
    """Add one field as Envoy's header map does."""
    present = headers.get(name)
    if present is None:
        headers[name] = value
    elif name in SINGLE:
        headers.set(name, (headers.joined(name) or present) + b"," + value)
    else:
        headers.add(name, value)
