"""What is known of one request while it is being decided on.

`RequestContext` is the single object that filters, routing and the upstream's decisions read and
change; the exchange owns it and the access log reads it at the end. It holds values, never sockets.
Not for: bytes of the body, timers, or anything that must be released.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from agent.http.headers import Headers

RANDOM_BITS: Final = 62
"""As many as a compiled integer holds without an object of its own."""


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """The verified (or merely presented) certificate of a TLS peer, read once per connection."""

    uri_sans: tuple[str, ...] = ()
    dns_sans: tuple[str, ...] = ()
    subject: str = ""
    """RFC 2253, as Envoy prints it: `CN=x,O=y`."""
    issuer: str = ""
    serial: str = ""
    """Lower-case hexadecimal, as Envoy prints it."""
    sha256: str = ""
    """Lower-case hexadecimal digest of the DER certificate."""
    pem: str = ""
    chain_pem: str = ""
    verified: bool = True

    @property
    def principal(self) -> str:
        """What RBAC's `authenticated.principal_name` matches: first URI SAN, else DNS SAN, else subject."""
        if self.uri_sans:
            return self.uri_sans[0]
        return self.dns_sans[0] if self.dns_sans else self.subject


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """One downstream connection, as filters and logs see it. Addresses are (IP text, port)."""

    id: int
    remote: tuple[str, int]
    local: tuple[str, int]
    """Where the client wanted to go: the original destination when the traffic was captured."""
    tls: bool = False
    peer: PeerIdentity | None = None
    local_uri_sans: tuple[str, ...] = ()
    sni: str = ""
    alpn: str = ""
    tls_version: str = ""
    cipher: str = ""
    listener: str = ""
    direct: tuple[str, int] | None = None
    """The peer's own address where `remote` was told by the PROXY protocol."""
    filter_chain: str = ""
    chain_metadata: Any = None
    """The filter chain's metadata, a mapping or None."""
    filter_state: frozenset[str] = frozenset()
    """Keys of the filter state, each of which holds the address of `local`."""

    @property
    def peer_address(self) -> tuple[str, int]:
        """Whose packets these are."""
        return self.direct or self.remote


@dataclass(frozen=True, slots=True)
class LocalReply:
    """An answer made by the proxy itself. `flags` are Envoy's response flags (`UAEX`, `FI`, …)."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    flags: tuple[str, ...] = ()
    details: str = ""
    """Envoy's RESPONSE_CODE_DETAILS, e.g. `rbac_access_denied_matched_policy[none]`."""
    content_type: bytes = b"text/plain"
    reset: bool = False
    """Close the stream without an answer."""


@dataclass(frozen=True, slots=True)
class Delay:
    """A filter wants to wait before the next step (fault injection)."""

    seconds: float
    flag: str = "DI"


@dataclass(frozen=True, slots=True)
class WholeBody:
    """A filter wants the whole body before the next step; more than this many bytes is too much."""

    limit: int


class RequestContext:
    """One request. Header changes made before the upstream is chosen are what the upstream gets."""

    __slots__ = (
        "at_end",
        "authority",
        "clear_route",
        "client",
        "connection",
        "details",
        "dynamic_metadata",
        "filter_notes",
        "flags",
        "headers",
        "health_check",
        "http_version",
        "method",
        "original_path",
        "path",
        "random",
        "received_at",
        "request_id",
        "route",
        "scheme",
        "started_at",
        "upgrade",
    )  # fmt: skip

    def __init__(
        self,
        method: bytes,
        path: bytes,
        authority: bytes,
        headers: Headers,
        connection: ConnectionInfo,
        *,
        scheme: bytes = b"http",
        http_version: bytes = b"1.1",
        random: int = 0,
        started_at: float = 0.0,
        received_at: float = 0.0,
    ) -> None:
        self.health_check = False
        """A load balancer's, that the health check filter let through."""
        self.method = method
        self.path = path
        """Path and query, after normalisation."""
        self.original_path = path
        self.authority = authority
        """Host header or :authority; NOT also present in `headers`."""
        self.headers = headers
        self.connection = connection
        self.scheme = scheme
        self.http_version = http_version
        self.random = random
        """RANDOM_BITS random bits of this request: splits, percentages, hash fall-backs take theirs from here."""
        self.started_at = started_at
        """Monotonic seconds."""
        self.received_at = received_at
        """Wall-clock seconds since the epoch."""
        self.client = connection.remote
        """The client's address after trusted X-Forwarded-For hops."""
        self.route: Any = None
        """The agent.routing.plan.RoutePlan in force."""
        self.flags: list[str] = []
        self.details = ""
        self.request_id = b""
        self.upgrade = b""
        """Lower-case upgrade token (`websocket`, `connect`), empty when none is asked for."""
        self.clear_route = False
        """A filter changed what routing reads: route again before the next step."""
        self.dynamic_metadata: dict[str, dict[str, object]] | None = None
        self.filter_notes: dict[str, Any] | None = None
        """What a filter's request step leaves for its response step."""
        self.at_end: list[Callable[[], None]] | None = None
        """Called once each by the exchange when the request is over, however it ended."""

    def note(self, namespace: str, values: dict[str, object]) -> None:
        """Add to the dynamic metadata."""
        if self.dynamic_metadata is None:
            self.dynamic_metadata = {}
        self.dynamic_metadata.setdefault(namespace, {}).update(values)

    def size(self) -> int:
        """Bytes of the header map with its pseudo-headers, as it is now; 0 for what never became a request."""
        if not self.method:
            return 0
        pseudo = _PSEUDO_NAMES if self.path else _PSEUDO_NAMES - len(":path")
        named = len(self.method) + len(self.scheme) + len(self.path) + len(self.authority)
        return pseudo + named + self.headers.size()


_PSEUDO_NAMES: Final = len(":method:scheme:path:authority")


class ResponseHead:
    """Status and headers on their way to the client."""

    __slots__ = ("headers", "local", "outcome", "status")

    def __init__(self, status: int, headers: Headers, local: bool = False, outcome: Any = None) -> None:
        self.status = status
        self.headers = headers
        self.local = local
        """Made by the proxy, not received from an upstream."""
        self.outcome = outcome
        """agent.telemetry.outcome.Outcome of the exchange so far, for values with operators."""
