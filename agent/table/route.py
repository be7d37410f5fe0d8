"""Route configuration as values (Envoy config.route.v3). Times in seconds; None where Envoy tells unset from zero.

Rule: one class a message, fields in the message's order, nothing interpreted. agent/routing compiles these.
Not for: decisions about requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from agent.table.matchers import (
    EVERYTHING,
    FilterStateMatch,
    Fraction,
    HeaderMatch,
    MetadataMatch,
    QueryMatch,
)

_NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class HeaderOption:
    """Envoy HeaderValueOption. `value` may hold %OPERATORS%."""

    name: bytes
    value: str
    action: str = "append"
    """`append`, `add_if_absent`, `overwrite` or `overwrite_if_exists`."""
    keep_empty: bool = False


@dataclass(frozen=True, slots=True)
class HeaderChanges:
    """Additions and removals at one level; removals come first, as in Envoy's HeaderParser."""

    add: tuple[HeaderOption, ...] = ()
    remove: tuple[bytes, ...] = ()


NO_CHANGES = HeaderChanges()


@dataclass(frozen=True, slots=True)
class FilterOverride:
    """One typed_per_filter_config entry: `value` is the filter's per-route class from filter_config."""

    value: Any = None
    disabled: bool = False


@dataclass(frozen=True, slots=True)
class Substitution:
    """Envoy RegexMatchAndSubstitute: every match of the pattern is replaced; `\\1` names a group."""

    pattern: str
    replacement: str


@dataclass(frozen=True, slots=True)
class RouteMatch:
    """Envoy RouteMatch. `kind`: `prefix`, `path`, `regex`, `separated_prefix`, `connect` or `template`."""

    kind: str
    value: str = ""
    case_sensitive: bool = True
    fraction: Fraction | None = None
    headers: tuple[HeaderMatch, ...] = ()
    query: tuple[QueryMatch, ...] = ()
    grpc: bool = False
    tls_presented: bool | None = None
    tls_validated: bool | None = None
    metadata: tuple[MetadataMatch, ...] = ()
    filter_state: tuple[FilterStateMatch, ...] = ()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Envoy RetryPolicy."""

    on: frozenset[str]
    attempts: int = 1
    per_try_timeout: float = 0.0
    statuses: frozenset[int] = frozenset()
    retriable_headers: tuple[HeaderMatch, ...] = ()
    retriable_request_headers: tuple[HeaderMatch, ...] = ()
    base_interval: float = 0.025
    max_interval: float = 0.25
    previous_hosts: bool = False
    omit_canaries: bool = False
    omit_metadata: tuple[Mapping[str, Any], ...] = ()
    """Hosts whose metadata (namespace `envoy.lb`) holds all of one of these are passed over."""
    previous_priorities: int = 0
    """Leave out the priorities that were tried, reckoned anew after so many attempts; 0: never."""
    reset_headers: tuple[tuple[bytes, bool], ...] = ()
    """Response headers that tell when to come back: in so many seconds, or (true) at a Unix time."""
    max_reset: float = 300.0
    host_selection_attempts: int = 1
    per_try_idle_timeout: float = 0.0


@dataclass(frozen=True, slots=True)
class InternalRedirect:
    """Which redirects of the upstream are followed (Envoy InternalRedirectPolicy)."""

    statuses: frozenset[int] = frozenset((302,))
    most: int = 1
    cross_scheme: bool = False
    headers_to_copy: tuple[bytes, ...] = ()
    previous_routes: bool = False
    """No route twice."""
    allowed_routes: frozenset[str] | None = None
    """None: any."""
    safe_cross_scheme: bool = False
    """Not from plain text to TLS."""


@dataclass(frozen=True, slots=True)
class HashPolicy:
    """Envoy HashPolicy. `kind`: `header`, `cookie`, `source_ip` or `query`."""

    kind: str
    name: str = ""
    terminal: bool = False
    substitution: Substitution | None = None
    cookie: str | None = None
    """What follows name and value in the Set-Cookie of a cookie that is made where there is none."""


@dataclass(frozen=True, slots=True)
class MirrorPolicy:
    """Envoy RequestMirrorPolicy."""

    cluster: str
    fraction: Fraction = EVERYTHING
    shadow_suffix: bool = True
    """Append `-shadow` to the authority."""
    cluster_header: bytes = b""
    """The header that names the cluster, where `cluster` does not."""


@dataclass(frozen=True, slots=True)
class ClusterWeight:
    """One destination of a weighted split."""

    cluster: str
    weight: int
    cluster_header: bytes = b""
    metadata_match: Mapping[str, Any] = field(default_factory=lambda: _NONE)
    request_headers: HeaderChanges = NO_CHANGES
    response_headers: HeaderChanges = NO_CHANGES
    overrides: Mapping[str, FilterOverride] = field(default_factory=lambda: _NONE)
    host_rewrite: str = ""


@dataclass(frozen=True, slots=True)
class GrpcTimeouts:
    """What a request's own grpc-timeout may be. Seconds; `most` None: it does not count, 0: it counts as it is."""

    most: float | None = None
    """RouteAction.max_grpc_timeout, and its offset."""
    offset: float = 0.0
    stream_most: float | None = None
    """max_stream_duration.grpc_timeout_header_max, and its offset."""
    stream_offset: float = 0.0


@dataclass(frozen=True, slots=True)
class Forward:
    """Envoy RouteAction. Exactly one of `cluster`, `cluster_header`, `weighted` is set."""

    cluster: str = ""
    cluster_header: bytes = b""
    weighted: tuple[ClusterWeight, ...] = ()
    weight_header: bytes = b""
    """Header that carries the random value of the split (tests), if any."""
    weight_by_hash: bool = False
    cluster_not_found_status: int = 503
    metadata_match: Mapping[str, Any] = field(default_factory=lambda: _NONE)
    prefix_rewrite: str = ""
    regex_rewrite: Substitution | None = None
    path_rewrite: str = ""
    """The whole new path, with %OPERATORS%."""
    template_rewrite: str = ""
    host_rewrite: str = ""
    host_rewrite_format: str = ""
    """As host_rewrite, with %OPERATORS%."""
    host_rewrite_header: bytes = b""
    host_rewrite_path: Substitution | None = None
    auto_host_rewrite: bool = False
    append_x_forwarded_host: bool = False
    timeout: float = 15.0
    idle_timeout: float | None = None
    max_stream_duration: float | None = None
    grpc_timeouts: GrpcTimeouts | None = None
    retry: RetryPolicy | None = None
    internal_redirect: InternalRedirect | None = None
    mirrors: tuple[MirrorPolicy, ...] = ()
    priority: str = "default"
    rate_limits: tuple[Any, ...] = ()
    """filter_config.RateLimitActions, for the local rate limit's descriptors."""
    include_vhost_rate_limits: bool = False
    hash_policies: tuple[HashPolicy, ...] = ()
    cors: Any = None
    """filter_config.CorsPolicy, the deprecated place for it."""
    upgrades: Mapping[str, bool] = field(default_factory=dict)
    connect_ends_here: bool = False
    """CONNECT is answered, and what follows goes to the cluster over TCP."""


@dataclass(frozen=True, slots=True)
class Redirect:
    """Envoy RedirectAction; empty means keep."""

    scheme: str = ""
    host: str = ""
    port: int = 0
    path: str = ""
    prefix_rewrite: str = ""
    regex_rewrite: Substitution | None = None
    status: int = 301
    strip_query: bool = False


@dataclass(frozen=True, slots=True)
class Direct:
    """Envoy DirectResponseAction; the body was read when the table was built."""

    status: int
    body: bytes = b""
    body_format: Any = None
    """filter_config.BodyFormat or None."""


@dataclass(frozen=True, slots=True)
class NonForwarding:
    """Envoy NonForwardingAction: no proxy may use this route; a request that meets it is an error."""


@dataclass(frozen=True, slots=True)
class Route:
    """Envoy Route."""

    match: RouteMatch
    action: Forward | Redirect | Direct | NonForwarding
    name: str = ""
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: _NONE)
    decorator: str = ""
    overrides: Mapping[str, FilterOverride] = field(default_factory=lambda: _NONE)
    request_headers: HeaderChanges = NO_CHANGES
    response_headers: HeaderChanges = NO_CHANGES
    stat_prefix: str = ""
    buffer_limit: int | None = None
    """per_request_buffer_limit_bytes; None: the virtual host's."""


@dataclass(frozen=True, slots=True)
class VirtualCluster:
    """Envoy VirtualCluster: a name for requests whose headers match all of these."""

    name: str
    headers: tuple[HeaderMatch, ...]


@dataclass(frozen=True, slots=True)
class VirtualHost:
    """Envoy VirtualHost."""

    name: str
    domains: tuple[str, ...]
    routes: tuple[Route, ...] = ()
    require_tls: str = "none"
    """`none`, `external_only` or `all`."""
    request_headers: HeaderChanges = NO_CHANGES
    response_headers: HeaderChanges = NO_CHANGES
    overrides: Mapping[str, FilterOverride] = field(default_factory=lambda: _NONE)
    cors: Any = None
    attempt_count_in_request: bool = False
    attempt_count_in_response: bool = False
    tell_timeout_retry: bool = False
    buffer_limit: int | None = None
    retry: RetryPolicy | None = None
    rate_limits: tuple[Any, ...] = ()
    mirrors: tuple[MirrorPolicy, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=lambda: _NONE)
    virtual_clusters: tuple[VirtualCluster, ...] = ()


@dataclass(frozen=True, slots=True)
class RouteConfiguration:
    """Envoy RouteConfiguration."""

    name: str
    virtual_hosts: tuple[VirtualHost, ...] = ()
    request_headers: HeaderChanges = NO_CHANGES
    response_headers: HeaderChanges = NO_CHANGES
    most_specific_wins: bool = False
    validate_clusters: bool | None = None
    max_direct_response_body: int = 4096
    ignore_port: bool = False
    ignore_path_parameters: bool = False
    vhost_header: bytes = b""
    internal_only_headers: tuple[bytes, ...] = ()
    """Request headers that only internal clients may send, in lower case."""
    mirrors: tuple[MirrorPolicy, ...] = ()
    overrides: Mapping[str, FilterOverride] = field(default_factory=lambda: _NONE)
    metadata: Mapping[str, Any] = field(default_factory=lambda: _NONE)


@dataclass(frozen=True, slots=True)
class RouteScope:
    """What HTTP filters may know of the route in force when their steps are compiled.

    `overrides` holds, for each filter name, the entries of all levels, the least specific first.
    `cors` and `rate_limits` hold the route's own and then the virtual host's.
    """

    overrides: Mapping[str, tuple[FilterOverride, ...]] = field(default_factory=lambda: _NONE)
    cors: tuple[Any, ...] = ()
    rate_limits: tuple[tuple[Any, ...], ...] = ()
    both_rate_limits: bool = False
    """Envoy include_vh_rate_limits."""
    forwards: bool = False
    """To a cluster, as opposed to an answer of the route's own."""


NO_ROUTE = RouteScope()
