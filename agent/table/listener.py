"""Listeners and filter chains as values (Envoy config.listener.v3). Times in seconds, sizes in bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from agent.table.access_log import AccessLog
from agent.table.route import RouteConfiguration
from agent.table.tls import DownstreamTls


class Direction(Enum):
    """Envoy TrafficDirection."""

    UNSPECIFIED = "unspecified"
    INBOUND = "inbound"
    OUTBOUND = "outbound"


@dataclass(frozen=True, slots=True)
class Address:
    """An IP and port, or a Unix socket's path."""

    host: str = ""
    port: int = 0
    path: str = ""
    ipv4_compat: bool = False


@dataclass(frozen=True, slots=True)
class FilterConfig:
    """One HTTP or network filter: its name in the chain, its kind, and its typed value.

    `kind` is the short name of a module in agent/filters (`rbac`, `cors`, `fault`, `local_rate_limit`,
    `header_mutation`, `router`, …); `value` is that module's configuration class from agent/table/filter_config.py.
    """

    name: str
    kind: str
    value: Any
    disabled: bool = False


@dataclass(frozen=True, slots=True)
class ChainMatch:
    """Envoy FilterChainMatch. Empty means any."""

    destination_port: int | None = None
    prefix_ranges: tuple[IPv4Network | IPv6Network, ...] = ()
    direct_source_ranges: tuple[IPv4Network | IPv6Network, ...] = ()
    source_type: str = "any"
    """`any`, `same_ip_or_loopback` or `external`."""
    source_ranges: tuple[IPv4Network | IPv6Network, ...] = ()
    source_ports: tuple[int, ...] = ()
    server_names: tuple[str, ...] = ()
    transport_protocol: str = ""
    application_protocols: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WeightedTcp:
    """One destination of a TCP proxy."""

    cluster: str
    weight: int
    metadata_match: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TcpProxy:
    """Envoy TcpProxy: the terminal filter of an opaque chain."""

    stat_prefix: str
    clusters: tuple[WeightedTcp, ...]
    idle_timeout: float = 3600.0
    max_downstream_connection_duration: float = 0.0
    max_connect_attempts: int = 1
    access_logs: tuple[AccessLog, ...] = ()
    hash_source_ip: bool = False


@dataclass(frozen=True, slots=True)
class FixedAnswer:
    """The terminal filter of a chain without an upstream: these bytes and an end, or (None) the client's own."""

    data: bytes | None
    access_logs: tuple[AccessLog, ...] = ()


@dataclass(frozen=True, slots=True)
class Upgrade:
    """One entry of upgrade_configs; `type` is lower case (`websocket`, `connect`)."""

    type: str
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class XffDetection:
    """The client's address from X-Forwarded-For, behind `hops` trusted proxies or those of `networks`."""

    hops: int = 0
    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    skip_append: bool = True


@dataclass(frozen=True, slots=True)
class HeaderDetection:
    """The client's address from a header; `reject_status` where it is not there or no address (0: go on)."""

    name: bytes
    trusted: bool = False
    reject_status: int = 0


@dataclass(frozen=True, slots=True)
class HttpManager:
    """Envoy HttpConnectionManager; defaults are Envoy's."""

    stat_prefix: str
    route: RouteConfiguration | str
    """The configuration itself, or the name under which RDS delivers it."""
    filters: tuple[FilterConfig, ...] = ()
    """In order, without the router at the end."""
    codec: str = "auto"
    """`auto`, `http1` or `http2`."""
    access_logs: tuple[AccessLog, ...] = ()
    server_name: bytes = b"envoy"
    server_header: str = "overwrite"
    """`overwrite`, `append_if_absent` or `pass_through`."""
    use_remote_address: bool = False
    xff_trusted_hops: int = 0
    skip_xff_append: bool = False
    internal_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    """Requests from these are internal ones; without internal_address_config, none are."""
    via: bytes = b""
    generate_request_id: bool = True
    preserve_external_request_id: bool = False
    always_set_request_id_in_response: bool = False
    forward_client_cert: str = "sanitize"
    """`sanitize`, `forward_only`, `append_forward`, `sanitize_set`, `always_forward_only`."""
    client_cert_details: frozenset[str] = frozenset()
    """Of `subject`, `cert`, `chain`, `dns`, `uri`."""
    normalize_path: bool = False
    merge_slashes: bool = False
    escaped_slashes: str = "keep"
    """`keep`, `reject`, `unescape_redirect`, `unescape_forward`."""
    strip_matching_host_port: bool = False
    strip_any_host_port: bool = False
    strip_trailing_host_dot: bool = False
    upgrades: tuple[Upgrade, ...] = ()
    idle_timeout: float = 3600.0
    stream_idle_timeout: float = 300.0
    request_timeout: float = 0.0
    request_headers_timeout: float = 0.0
    drain_timeout: float = 5.0
    delayed_close_timeout: float = 1.0
    max_connection_duration: float = 0.0
    max_stream_duration: float = 0.0
    max_requests_per_connection: int = 0
    max_headers_count: int = 100
    max_request_headers_kb: int = 60
    underscores: str = "allow"
    """`allow`, `reject_request` or `drop_header`."""
    accept_http_10: bool = False
    default_host_for_http_10: bytes = b""
    enable_trailers: bool = False
    allow_absolute_url: bool = True
    allow_chunked_length: bool = False
    allow_custom_methods: bool = False
    proper_case_headers: bool = False
    preserve_case: str = ""
    """How names of requests are written upstream: `keep` as the client did, `proper` for those of the proxy's own."""
    keep_after_bad_request: bool = False
    """A 400 of the proxy's own leaves the connection open (stream_error_on_invalid_http_message)."""
    proxy_100_continue: bool = False
    local_reply: Any = None
    """agent.table.filter_config.LocalReplyConfig or None."""
    router: Any = None
    """agent.table.filter_config.RouterConfig (suppress_envoy_headers, strict header checks, upstream log)."""
    user_agent: bytes | None = None
    """The node's cluster, where add_user_agent says so; and its id."""
    user_node: bytes = b""
    ip_detection: tuple[XffDetection | HeaderDetection, ...] = ()
    append_x_forwarded_port: bool = False
    scheme_overwrite: bytes = b""
    http2: Any = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FilterChain:
    """What happens to connections that match: network filters in order, then one terminal."""

    name: str
    match: ChainMatch
    terminal: HttpManager | TcpProxy | FixedAnswer
    network_filters: tuple[FilterConfig, ...] = ()
    """For example network RBAC, connection limit."""
    filter_state: frozenset[str] = frozenset()
    """The keys under which a connection's destination is noted (filter_config.SetFilterState)."""
    tls: DownstreamTls | None = None
    handshake_timeout: float = 15.0
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listener:
    """One listener. `bind` false: only reached through another listener's original destination."""

    name: str
    address: Address
    additional_addresses: tuple[Address, ...] = ()
    bind: bool = True
    use_original_dst: bool = False
    """Hand the connection to the listener that owns the original destination, if there is one."""
    original_dst: bool = False
    """The original_dst listener filter: `local` becomes the address before redirection."""
    tls_inspector: bool = False
    http_inspector: bool = False
    proxy_protocol: str = ""
    """The proxy_protocol listener filter: empty (none), `required` or `optional`."""
    inspector_exceptions: tuple[tuple[str, tuple[tuple[int, int], ...]], ...] = ()
    """Listener filters that are off on some destination ports: (`TlsInspector` or `HttpInspector`, [start, end))."""
    inspection_timeout: float = 15.0
    continue_on_inspection_timeout: bool = False
    direction: Direction = Direction.UNSPECIFIED
    chains: tuple[FilterChain, ...] = ()
    default_chain: FilterChain | None = None
    access_logs: tuple[AccessLog, ...] = ()
    backlog: int = 4096
    buffer_limit: int = 1 << 20
    transparent: bool = False
    stat_prefix: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
