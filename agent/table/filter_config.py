"""Filters' configuration as values (Envoy extensions.filters.*). Times in seconds.

Rule: one class for each filter, named after it; `FilterConfig.kind` names the module in agent/filters that compiles it.
Not for: state; a token bucket or a count of connections lives in agent/filters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.table.matchers import EVERYTHING, NOTHING, Fraction, HeaderMatch, StringMatch
from agent.table.route import HeaderOption, Substitution


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """envoy.filters.http.router."""

    suppress_envoy_headers: bool = False


@dataclass(frozen=True, slots=True)
class SetFilterState:
    """envoy.filters.network.set_filter_state: each key holds the address that the connection went to, without port."""

    keys: frozenset[str]


@dataclass(frozen=True, slots=True)
class Rule:
    """One node of an RBAC permission or principal tree; the kind says what `value` is.

    `any`: None · `and`, `or`: tuple of Rule · `not`: Rule · `header`: HeaderMatch · `url_path`: StringMatch ·
    `destination_ip`, `source_ip`, `direct_remote_ip`, `remote_ip`: a network · `destination_port`: (start, end) ·
    `metadata`: MetadataMatch · `requested_server_name`: StringMatch · `authenticated`: StringMatch or None (any).
    """

    kind: str
    value: Any = None


@dataclass(frozen=True, slots=True)
class RbacPolicy:
    """Applies when one permission and one principal match."""

    name: str
    permissions: tuple[Rule, ...]
    principals: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class RbacRules:
    """`action` is `allow`, `deny` or `log`; policies in order of their names, as Envoy evaluates them."""

    action: str
    policies: tuple[RbacPolicy, ...] = ()


@dataclass(frozen=True, slots=True)
class Rbac:
    """envoy.filters.http.rbac and, with `stat_prefix`, envoy.filters.network.rbac. Neither rules: off."""

    rules: RbacRules | None = None
    shadow: RbacRules | None = None
    stat_prefix: str = ""
    rules_stat_prefix: str = ""
    shadow_stat_prefix: str = ""


@dataclass(frozen=True, slots=True)
class FaultDelay:
    """A fixed delay or, with `seconds` None, one asked for by x-envoy-fault-delay-request."""

    seconds: float | None
    fraction: Fraction


@dataclass(frozen=True, slots=True)
class FaultAbort:
    """A fixed status (HTTP or gRPC) or, with both None, one asked for by x-envoy-fault-abort-request."""

    status: int | None
    grpc_status: int | None
    fraction: Fraction


@dataclass(frozen=True, slots=True)
class Fault:
    """envoy.filters.http.fault."""

    delay: FaultDelay | None = None
    abort: FaultAbort | None = None
    upstream_cluster: str = ""
    headers: tuple[HeaderMatch, ...] = ()
    max_active: int | None = None
    nodes: frozenset[bytes] = frozenset()
    """Only requests of these nodes (x-envoy-downstream-service-node), if any are named."""


@dataclass(frozen=True, slots=True)
class Cors:
    """envoy.filters.http.cors: says where in the chain CORS happens; the policy is the route's."""


@dataclass(frozen=True, slots=True)
class CorsPolicy:
    """Envoy CorsPolicy. Empty strings and None: not set at this level."""

    allow_origins: tuple[StringMatch, ...] = ()
    allow_methods: str = ""
    allow_headers: str = ""
    expose_headers: str = ""
    max_age: str = ""
    allow_credentials: bool | None = None
    enabled: Fraction | None = None
    allow_private_network: bool | None = None
    forward_not_matching_preflights: bool | None = None


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """Envoy TokenBucket; interval in seconds."""

    max_tokens: int
    tokens_per_fill: int
    fill_interval: float


@dataclass(frozen=True, slots=True)
class RateLimitActions:
    """Envoy route RateLimit: actions that make one descriptor; `(kind, parameters)` each."""

    actions: tuple[tuple[str, Mapping[str, Any]], ...]
    stage: int = 0


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One descriptor with its own bucket. An empty value of an entry matches any value (a bucket for each)."""

    entries: tuple[tuple[str, str], ...]
    bucket: TokenBucket


@dataclass(frozen=True, slots=True)
class LocalRateLimit:
    """envoy.filters.http.local_ratelimit."""

    stat_prefix: str = ""
    status: int = 429
    bucket: TokenBucket | None = None
    enabled: Fraction = NOTHING
    enforced: Fraction = NOTHING
    request_headers: tuple[HeaderOption, ...] = ()
    response_headers: tuple[HeaderOption, ...] = ()
    descriptors: tuple[Descriptor, ...] = ()
    stage: int = 0
    per_connection: bool = False
    ratelimit_headers: bool = False
    vh_rate_limits: str = "override"
    always_consume_default: bool = True
    resource_exhausted: bool = False
    rate_limits: tuple[RateLimitActions, ...] = ()
    max_dynamic_descriptors: int = 20


@dataclass(frozen=True, slots=True)
class Mutation:
    """Envoy HeaderMutation: `remove` a name, `append` an option, or `remove_on_match` a name matcher."""

    kind: str
    value: bytes | HeaderOption | StringMatch


@dataclass(frozen=True, slots=True)
class QueryMutation:
    """Envoy KeyValueMutation on the query string: set or append (`value` None: remove)."""

    name: str
    value: str | None
    action: str = "append"


@dataclass(frozen=True, slots=True)
class HeaderMutation:
    """envoy.filters.http.header_mutation, also its per-route form."""

    request: tuple[Mutation, ...] = ()
    response: tuple[Mutation, ...] = ()
    query: tuple[QueryMutation, ...] = ()
    most_specific_wins: bool = False


@dataclass(frozen=True, slots=True)
class Csrf:
    """envoy.filters.http.csrf."""

    enabled: Fraction = EVERYTHING
    additional_origins: tuple[StringMatch, ...] = ()


@dataclass(frozen=True, slots=True)
class NetworkRateLimit:
    """Envoy network LocalRateLimit: new connections take tokens."""

    stat_prefix: str
    bucket: TokenBucket


@dataclass(frozen=True, slots=True)
class BufferFilter:
    """Envoy Buffer and BufferPerRoute; None: off."""

    max_bytes: int | None


@dataclass(frozen=True, slots=True)
class HealthCheckFilter:
    """envoy.filters.http.health_check."""

    headers: tuple[HeaderMatch, ...] = ()
    node_cluster: str = ""
    """What x-envoy-upstream-healthchecked-cluster says."""
    pass_through: bool = False
    """The upstream answers, not the filter."""
    cache_time: float = 0.0
    """Seconds for which an answer that was passed through stands for later ones."""


@dataclass(frozen=True, slots=True)
class MetadataValue:
    """What a rule of header_to_metadata sets. An empty `value`: the header's own, as `substitution` changes it."""

    namespace: str
    key: str
    value: str = ""
    substitution: Substitution | None = None
    number: bool = False


@dataclass(frozen=True, slots=True)
class MetadataRule:
    """One rule of header_to_metadata: of a header or a cookie, for when it is there and for when it is not."""

    header: bytes
    cookie: bytes = b""
    present: MetadataValue | None = None
    missing: MetadataValue | None = None
    remove: bool = False


@dataclass(frozen=True, slots=True)
class HeaderToMetadata:
    """envoy.filters.http.header_to_metadata."""

    request: tuple[MetadataRule, ...] = ()
    response: tuple[MetadataRule, ...] = ()


@dataclass(frozen=True, slots=True)
class SetMetadata:
    """envoy.filters.http.set_metadata: (namespace, tree, allow_overwrite) each."""

    entries: tuple[tuple[str, Mapping[str, Any], bool], ...] = ()


@dataclass(frozen=True, slots=True)
class ConnectionLimit:
    """envoy.filters.network.connection_limit; `delay` before a refused connection is closed."""

    stat_prefix: str
    max_connections: int
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class BodyFormat:
    """Envoy SubstitutionFormatString for a local reply's body."""

    text: str = ""
    json: Mapping[str, Any] | None = None
    content_type: str = ""
    omit_empty: bool = False


@dataclass(frozen=True, slots=True)
class ReplyMapper:
    """One local_reply_config mapper. `filter` is a value tree of access_log_filter."""

    filter: Any
    status: int | None = None
    body: bytes | None = None
    format: BodyFormat | None = None
    headers: tuple[HeaderOption, ...] = ()


@dataclass(frozen=True, slots=True)
class LocalReplyConfig:
    """Envoy LocalReplyConfig."""

    mappers: tuple[ReplyMapper, ...] = ()
    format: BodyFormat | None = None
