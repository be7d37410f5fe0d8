"""What became of one request or one opaque connection: the value that logs, metrics and spans are made from.

The exchange fills one in and hands it to telemetry in its one exit. Times are monotonic seconds as read by
the worker; 0.0 where the point was never reached. Not for: anything still in progress.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
"""No metadata; one object, because telemetry knows metadata by identity."""


class Outcome:
    """Filled during the exchange, read once at its end."""

    __slots__ = (
        "attempted",
        "attempts",
        "bytes_received",
        "bytes_sent",
        "charged",
        "cluster",
        "connection",
        "details",
        "downstream_last_at",
        "duration",
        "finished_at",
        "flags",
        "listener",
        "local_body",
        "peer_uris",
        "plain",
        "protocol",
        "received_at",
        "request",
        "request_done_at",
        "request_headers_bytes",
        "response_code",
        "response_headers",
        "response_headers_bytes",
        "response_trailers",
        "route_metadata",
        "route_name",
        "started_at",
        "stat_prefix",
        "termination_details",
        "upstream_address",
        "upstream_connected_at",
        "upstream_failure",
        "upstream_first_at",
        "upstream_host",
        "upstream_last_at",
        "upstream_local",
        "upstream_metadata",
        "upstream_peer",
        "upstream_picked_at",
        "upstream_sent_first_at",
        "upstream_sent_last_at",
        "upstream_uris",
        "virtual_host",
        "virtual_host_metadata",
    )  # fmt: skip

    def __init__(self) -> None:
        self.request: Any = None
        """agent.http.request.RequestContext, None for opaque TCP."""
        self.connection: Any = None
        """agent.http.request.ConnectionInfo."""
        self.listener: Any = None
        """agent.table.listener.Listener."""
        self.protocol = ""
        """`HTTP/1.1`, `HTTP/1.0`, `HTTP/2`; empty for TCP."""
        self.response_code = 0
        self.response_headers: Any = None
        self.response_trailers: Any = None
        self.flags: list[str] = []
        """Envoy's short response flags, in the order set."""
        self.details = ""
        self.termination_details = ""
        self.route_name = ""
        self.route_metadata: Mapping[str, Any] = NOTHING
        self.virtual_host = ""
        self.virtual_host_metadata: Mapping[str, Any] = NOTHING
        self.stat_prefix = ""
        """The connection manager's or TCP proxy's stat_prefix."""
        self.cluster: Any = None
        """agent.table.cluster.Cluster."""
        self.charged = False
        """The cluster was asked, or would have been: a filter's or the codec's answer is not among its statistics."""
        self.upstream_address = ""
        """`ip:port` of the endpoint."""
        self.upstream_host = ""
        """Its hostname."""
        self.upstream_local = ""
        self.upstream_metadata: Mapping[str, Any] = NOTHING
        self.upstream_peer: Any = None
        """PeerIdentity of the upstream."""
        self.peer_uris: tuple[str, ...] | None = None
        """The client certificate's URI names; None without a certificate."""
        self.upstream_uris: tuple[str, ...] | None = None
        """The same of the upstream's."""
        self.plain = False
        """No flags, not gRPC and not internal: counted with all others of its cluster, status and peers."""
        self.upstream_failure = ""
        """UPSTREAM_TRANSPORT_FAILURE_REASON."""
        self.local_body = b""
        """Of the proxy's own answer, while its format is filled in."""
        self.attempted: list[tuple[str, str]] | None = None
        """Address and name of the hosts of earlier attempts, None for none."""
        self.attempts = 0
        self.bytes_received = 0
        """Body bytes from the client."""
        self.bytes_sent = 0
        """Body bytes to the client."""
        self.request_headers_bytes = 0
        self.response_headers_bytes = 0
        self.received_at = 0.0
        """Wall clock."""
        self.started_at = 0.0
        self.request_done_at = 0.0
        self.upstream_picked_at = 0.0
        self.upstream_connected_at = 0.0
        self.upstream_sent_first_at = 0.0
        self.upstream_sent_last_at = 0.0
        self.upstream_first_at = 0.0
        self.upstream_last_at = 0.0
        self.downstream_last_at = 0.0
        self.finished_at = 0.0
        self.duration = 0.0
