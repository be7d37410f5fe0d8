"""telemetry.istio.io Telemetry: metrics, traces and access logs of workloads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from istiod.resources.schema import (
    Bool,
    NonEmpty,
    Percent100,
    PositiveDuration,
    Spec,
    Str,
    empty,
)
from istiod.resources.selector import TargetReference, TargetRefs, WorkloadSelector, one_target


class ProviderRef(Spec):
    """An extension provider of the mesh configuration."""

    name: NonEmpty


WorkloadMode = Literal["CLIENT_AND_SERVER", "CLIENT", "SERVER"]


class ModeMatch(Spec):
    """Client side, server side or both."""

    mode: WorkloadMode = "CLIENT_AND_SERVER"


class MetricSelector(Spec):
    """Which metrics an override is for."""

    metric: (
        Literal[
            "ALL_METRICS",
            "REQUEST_COUNT",
            "REQUEST_DURATION",
            "REQUEST_SIZE",
            "RESPONSE_SIZE",
            "TCP_OPENED_CONNECTIONS",
            "TCP_CLOSED_CONNECTIONS",
            "TCP_SENT_BYTES",
            "TCP_RECEIVED_BYTES",
            "GRPC_REQUEST_MESSAGES",
            "GRPC_RESPONSE_MESSAGES",
        ]
        | None
    ) = None
    custom_metric: NonEmpty | None = None
    mode: WorkloadMode = "CLIENT_AND_SERVER"

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.metric is not None and self.custom_metric is not None:
            yield "customMetric", "may not be set together with metric"


class TagOverride(Spec):
    """Set or remove one label of a metric."""

    operation: Literal["UPSERT", "REMOVE"] | None = None
    value: Str = ""

    def rules(self) -> Iterator[tuple[str, str]]:
        if (self.operation or "UPSERT") == "UPSERT" and not self.value:
            yield "value", "value must be set when operation is UPSERT"
        if self.operation == "REMOVE" and self.value:
            yield "value", "value must not be set when operation is REMOVE"


class MetricsOverrides(Spec):
    """Change or disable metrics."""

    match: MetricSelector | None = None
    disabled: Bool | None = None
    tag_overrides: dict[str, TagOverride] = empty()


class Metrics(Spec):
    """Metrics of a workload."""

    providers: tuple[ProviderRef, ...] = ()
    overrides: tuple[MetricsOverrides, ...] = ()
    reporting_interval: PositiveDuration | None = None


class Literal_(Spec):  # noqa: N801 - the schema's own name
    """A fixed value of a span tag."""

    value: NonEmpty


class Environment(Spec):
    """A span tag out of the environment."""

    name: NonEmpty
    default_value: Str = ""


class RequestHeader(Spec):
    """A span tag out of a request header."""

    name: NonEmpty
    default_value: Str = ""


class CustomTag(Spec):
    """One span tag."""

    literal: Literal_ | None = None
    environment: Environment | None = None
    header: RequestHeader | None = None
    formatter: Literal_ | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if sum(value is not None for _, value in self) != 1:
            yield "", "exactly one of literal, environment, header, formatter must be set"


class Tracing(Spec):
    """Tracing of a workload."""

    match: ModeMatch | None = None
    providers: tuple[ProviderRef, ...] = ()
    random_sampling_percentage: Percent100 | None = None
    disable_span_reporting: Bool | None = None
    disable_context_propagation: Bool | None = None
    custom_tags: dict[str, CustomTag] = empty()
    use_request_id_for_trace_sampling: Bool | None = None
    enable_istio_tags: Bool | None = None


class LogFilter(Spec):
    """A CEL expression."""

    expression: Str = ""


class AccessLogging(Spec):
    """Access logs of a workload."""

    match: ModeMatch | None = None
    providers: tuple[ProviderRef, ...] = ()
    disabled: Bool | None = None
    filter: LogFilter | None = None


class Telemetry(Spec):
    """Metrics, traces and access logs of workloads."""

    selector: WorkloadSelector | None = None
    target_ref: TargetReference | None = None
    target_refs: TargetRefs = ()
    tracing: tuple[Tracing, ...] = ()
    metrics: tuple[Metrics, ...] = ()
    access_logging: tuple[AccessLogging, ...] = ()

    def rules(self) -> Iterator[tuple[str, str]]:
        yield from one_target(self.target_ref, self.target_refs, self.selector)
