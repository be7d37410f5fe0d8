"""Headers that Envoy keeps as one field however often they come (its inline headers, found by probing Envoy 1.40).

Rule: adding to one that is there joins with a comma, and matchers see the joined value. All other headers keep every
occurrence.
"""

from __future__ import annotations

from typing import Final

from agent.http.headers import Headers

_ON_BOTH: Final = frozenset(
    (
        b"connection content-length content-type keep-alive proxy-connection proxy-status "
        b"transfer-encoding upgrade via x-envoy-attempt-count x-envoy-decorator-operation x-request-id "
        b"cache-control content-encoding "
    ).split()
)
SINGLE_IN_REQUESTS: Final = _ON_BOTH | frozenset(
    (
        b"accept accept-encoding access-control-request-headers access-control-request-method "
        b"access-control-request-private-network authorization expect grpc-accept-encoding "
        b"grpc-timeout if-match if-modified-since if-none-match if-range if-unmodified-since origin "
        b"pragma referer te user-agent x-client-trace-id x-envoy-external-address x-envoy-force-trace "
        b"x-envoy-hedge-on-per-try-timeout x-envoy-internal x-envoy-ip-tags x-envoy-is-timeout-retry "
        b"x-envoy-max-retries x-envoy-original-host x-envoy-original-path x-envoy-original-url "
        b"x-envoy-retriable-header-names x-envoy-retriable-status-codes x-envoy-retry-grpc-on "
        b"x-envoy-retry-on x-envoy-upstream-alt-stat-name x-envoy-upstream-rq-per-try-timeout-ms "
        b"x-envoy-upstream-rq-timeout-alt-response x-envoy-upstream-rq-timeout-ms "
        b"x-envoy-upstream-stream-duration-ms x-forwarded-client-cert x-forwarded-for x-forwarded-host "
        b"x-forwarded-port x-forwarded-proto "
    ).split()
)
SINGLE_IN_RESPONSES: Final = _ON_BOTH | frozenset(
    (
        b"access-control-allow-credentials access-control-allow-headers access-control-allow-methods "
        b"access-control-allow-origin access-control-allow-private-network "
        b"access-control-expose-headers access-control-max-age age date etag expires grpc-message "
        b"grpc-status last-modified location server vary x-envoy-degraded "
        b"x-envoy-immediate-health-check-fail x-envoy-ratelimited x-envoy-upstream-canary "
        b"x-envoy-upstream-healthchecked-cluster x-envoy-upstream-service-time "
    ).split()
)


def add_field(headers: Headers, name: bytes, value: bytes, single: frozenset[bytes]) -> None:
    """Add one field as Envoy's header map does."""
    present = headers.get(name)
    if present is None:
        headers[name] = value
    elif name in single:
        headers.set(name, (headers.joined(name) or present) + b"," + value)
    else:
        headers.add(name, value)
