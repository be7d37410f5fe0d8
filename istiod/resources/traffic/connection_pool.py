"""Connection pool settings of a DestinationRule or a Sidecar."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from istiod.resources.schema import (
    Bool,
    Duration,
    Int32,
    PositiveDuration,
    Spec,
    UInt32,
    camel_case,
    unsupported,
)

_MAX_KEEPALIVE = 32767.0
"""Seconds: the largest TCP_KEEPIDLE and TCP_KEEPINTVL that Linux takes (tcp(7)); a larger one fails every connect."""
_MAX_CONNECT = 3600.0
KeepaliveTime = Annotated[PositiveDuration, Field(le=_MAX_KEEPALIVE)]


class TcpKeepalive(Spec):
    """SO_KEEPALIVE's three numbers, within what Linux takes."""

    probes: Annotated[UInt32, Field(le=127)] | None = None
    time: KeepaliveTime | None = None
    interval: KeepaliveTime | None = None


class TcpSettings(Spec):
    """Limits of connections to an upstream host."""

    max_connections: Int32 | None = None
    connect_timeout: Annotated[PositiveDuration, Field(le=_MAX_CONNECT)] | None = None
    tcp_keepalive: TcpKeepalive | None = None
    max_connection_duration: PositiveDuration | None = None
    idle_timeout: Duration | None = None


class Http2KeepAlive(Spec):
    """PING interval and timeout of HTTP/2 connections."""

    interval: PositiveDuration | None = None
    timeout: PositiveDuration | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if (self.interval is None) != (self.timeout is None):
            yield "", "interval and timeout must be set together"


class HttpSettings(Spec):
    """Limits of HTTP requests to an upstream host."""

    http1_max_pending_requests: Int32 | None = None
    http2_max_requests: Int32 | None = None
    max_requests_per_connection: Int32 | None = None
    max_retries: Int32 | None = None
    idle_timeout: PositiveDuration | None = None
    h2_upgrade_policy: Literal["DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"] = "DEFAULT"
    use_client_protocol: Bool | None = None
    max_concurrent_streams: Int32 | None = None
    http2_keep_alive: Http2KeepAlive | None = unsupported()

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.use_client_protocol and self.h2_upgrade_policy == "UPGRADE":
            yield "useClientProtocol", "may not be set together with h2UpgradePolicy: UPGRADE"


class ConnectionPool(Spec):
    """Connection pool settings."""

    tcp: TcpSettings | None = None
    http: HttpSettings | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.tcp is None and self.http is None:
            yield "", "at least one of tcp, http must be set"
        parts: tuple[tuple[str, Spec | None], ...] = (("tcp", self.tcp), ("http", self.http))
        for name, part in parts:
            for field, value in part or ():
                if isinstance(value, int) and value < 0:
                    yield f"{name}.{camel_case(field)}", "must not be negative"
