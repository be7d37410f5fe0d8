"""Access-log filters as a tree of values (Envoy config.accesslog.v3.AccessLogFilter).

Rule: one class a filter kind; agent/telemetry turns the tree into a predicate over outcomes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from agent.table.matchers import Fraction, HeaderMatch, MetadataMatch


@dataclass(frozen=True, slots=True)
class Comparison:
    """status_code_filter, duration_filter (milliseconds): `op` is `eq`, `ge`, `le` or `ne`."""

    subject: str
    """`status_code` or `duration`."""
    op: str
    value: int


@dataclass(frozen=True, slots=True)
class NotHealthCheck:
    """not_health_check_filter: all but answers of the health_check filter."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """runtime_filter without a runtime layer: a share of all requests."""

    fraction: Fraction


@dataclass(frozen=True, slots=True)
class Every:
    """and_filter."""

    filters: tuple[AccessLogFilter, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """or_filter."""

    filters: tuple[AccessLogFilter, ...]


@dataclass(frozen=True, slots=True)
class RequestHeader:
    """header_filter on the request."""

    match: HeaderMatch


@dataclass(frozen=True, slots=True)
class Flags:
    """response_flag_filter: one of these short flags is set; empty: any flag at all."""

    flags: frozenset[str]


@dataclass(frozen=True, slots=True)
class GrpcStatus:
    """grpc_status_filter: names as in gRPC (`UNAVAILABLE`)."""

    statuses: frozenset[str]
    exclude: bool = False


@dataclass(frozen=True, slots=True)
class DynamicMetadata:
    """metadata_filter."""

    match: MetadataMatch
    match_if_missing: bool = True


AccessLogFilter: TypeAlias = (
    Comparison
    | NotHealthCheck
    | Sampled
    | Every
    | AnyOf
    | RequestHeader
    | Flags
    | GrpcStatus
    | DynamicMetadata
)
