"""The decision about one request: where it goes and what is changed on the way.

A `RoutePlan` is made once per route (and per weighted destination) when the table is built; choosing a
route is choosing one of these objects. Immutable; a request keeps the one it started with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.http.request import LocalReply, RequestContext, ResponseHead
from agent.http.retry_plan import RetryPlan
from agent.table.route import GrpcTimeouts, InternalRedirect


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """One route and destination. Times in seconds, 0 = none. `respond` wins over `cluster`."""

    name: str
    virtual_host: str
    cluster: str = ""
    cluster_header: bytes = b""
    cluster_not_found_status: int = 503
    respond: Callable[[RequestContext], LocalReply] | None = None
    """Redirect or direct response."""
    request_steps: tuple[Callable[[RequestContext], Any], ...] = ()
    response_steps: tuple[Callable[[RequestContext, ResponseHead], None], ...] = ()
    finish_request: Callable[[RequestContext], None] | None = None
    """Path and host rewrite and header changes, applied after the steps, before the upstream."""
    finish_response: Callable[[RequestContext, ResponseHead], None] | None = None
    auto_host_rewrite: bool = False
    """Authority becomes the chosen endpoint's hostname (strict/logical DNS clusters)."""
    append_x_forwarded_host: bool = False
    """With auto_host_rewrite: `append` of agent.routing.rewrite.rewrite_authority."""
    keep_original: bool = True
    """With auto_host_rewrite: `original` of the same function."""
    timeout: float = 15.0
    idle_timeout: float | None = None
    """None: the connection manager's stream idle timeout."""
    max_stream_duration: float | None = None
    grpc_timeouts: GrpcTimeouts | None = None
    retry: RetryPlan | None = None
    internal_redirect: InternalRedirect | None = None
    hash_key: Callable[[RequestContext], int | None] | None = None
    priority: str = "default"
    metadata_match: Mapping[str, Any] = field(default_factory=dict)
    mirrors: tuple[Mirror, ...] = ()
    upgrades: Mapping[bytes, bool] = field(default_factory=dict)
    """Per-route switches over the connection manager's upgrade list."""
    connect_ends_here: bool = False
    """A CONNECT goes on as plain TCP."""
    attempt_count_in_request: bool = False
    attempt_count_in_response: bool = False
    tell_timeout_retry: bool = False
    """A retry says whether the attempt before it timed out (include_is_timeout_retry_header)."""
    buffer_limit: int = -1
    """Bytes of body that may be kept for a retry or a mirror; -1: the listener's limit."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    decorator: str = ""
    virtual_host_metadata: Mapping[str, Any] = field(default_factory=dict)
    virtual_cluster: Callable[[RequestContext], str] | None = None
    """The name of the virtual cluster that a request belongs to, empty for none."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """A share of requests copied to another cluster (Envoy request_mirror_policies)."""

    cluster: str
    cluster_header: bytes
    numerator: int
    denominator: int
    shadow_suffix: bool = True
    """Append `-shadow` to the mirrored request's authority."""
