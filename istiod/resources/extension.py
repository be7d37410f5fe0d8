"""Kinds that this version refuses: EnvoyFilter, WasmPlugin, Telemetry, ProxyConfig.

Their schema is checked in full already, so that a mistake is named beside the refusal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from istiod.resources.schema import (
    Bool,
    Int32,
    NonEmpty,
    Percent100,
    PortNumber,
    PositiveDuration,
    Spec,
    Str,
    Struct,
    UInt32,
    empty,
)
from istiod.resources.selector import LabelSelector, TargetReference, WorkloadSelector, one_target

TargetRefs = Annotated[tuple[TargetReference, ...], Field(max_length=16)]


class ClusterMatch(Spec):
    """Which clusters a patch is for."""

    port_number: UInt32 | None = None
    service: Str = ""
    subset: Str = ""
    name: Str = ""


class SubFilterMatch(Spec):
    """A filter inside a filter."""

    name: Str = ""


class FilterMatch(Spec):
    """A network filter."""

    name: Str = ""
    sub_filter: SubFilterMatch | None = None


class FilterChainMatch(Spec):
    """A filter chain."""

    name: Str = ""
    sni: Str = ""
    transport_protocol: Str = ""
    application_protocols: Str = ""
    filter: FilterMatch | None = None
    destination_port: UInt32 | None = None


class ListenerMatch(Spec):
    """Which listeners a patch is for."""

    port_number: UInt32 | None = None
    port_name: Str = ""
    filter_chain: FilterChainMatch | None = None
    name: Str = ""
    listener_filter: Str = ""


class RouteMatch(Spec):
    """Which routes a patch is for."""

    name: Str = ""
    action: Literal["ANY", "ROUTE", "REDIRECT", "DIRECT_RESPONSE"] = "ANY"


class VhostMatch(Spec):
    """Which virtual hosts a patch is for."""

    name: Str = ""
    domain_name: Str = ""
    route: RouteMatch | None = None


class RouteConfigurationMatch(Spec):
    """Which route configurations a patch is for."""

    port_number: UInt32 | None = None
    port_name: Str = ""
    gateway: Str = ""
    vhost: VhostMatch | None = None
    name: Str = ""


class ProxyMatch(Spec):
    """Which proxies a patch is for."""

    proxy_version: Str = ""
    metadata: dict[str, Str] = empty()


class WaypointRouteMatch(Spec):
    """A waypoint's route."""

    name: Str = ""


class WaypointMatch(Spec):
    """Which parts of a waypoint a patch is for."""

    filter: FilterMatch | None = None
    port_number: PortNumber | None = None
    route: WaypointRouteMatch | None = None


class PatchMatch(Spec):
    """Conditions of one patch."""

    context: Literal["ANY", "SIDECAR_INBOUND", "SIDECAR_OUTBOUND", "GATEWAY", "WAYPOINT"] = "ANY"
    proxy: ProxyMatch | None = None
    listener: ListenerMatch | None = None
    route_configuration: RouteConfigurationMatch | None = None
    cluster: ClusterMatch | None = None
    waypoint: WaypointMatch | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        others = (self.listener, self.route_configuration, self.cluster)
        if self.context == "WAYPOINT" and any(other is not None for other in others):
            yield "", "only support waypointMatch when context is WAYPOINT"
        if self.context != "WAYPOINT" and self.waypoint is not None:
            yield "", "only support waypointMatch when context is WAYPOINT"


class Patch(Spec):
    """What is done."""

    operation: Literal[
        "INVALID",
        "MERGE",
        "ADD",
        "REMOVE",
        "INSERT_BEFORE",
        "INSERT_AFTER",
        "INSERT_FIRST",
        "REPLACE",
        "MERGE_AND_REPLACE_LIST",
    ] = "INVALID"
    value: Struct | None = None
    filter_class: Literal["UNSPECIFIED", "AUTHN", "AUTHZ", "STATS"] = "UNSPECIFIED"


class ConfigPatch(Spec):
    """One patch."""

    apply_to: Literal[
        "INVALID",
        "LISTENER",
        "FILTER_CHAIN",
        "NETWORK_FILTER",
        "HTTP_FILTER",
        "ROUTE_CONFIGURATION",
        "VIRTUAL_HOST",
        "HTTP_ROUTE",
        "CLUSTER",
        "EXTENSION_CONFIG",
        "BOOTSTRAP",
        "LISTENER_FILTER",
    ] = "INVALID"
    match: PatchMatch | None = None
    patch: Patch | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.apply_to == "INVALID":
            yield "applyTo", "must be set"
        if self.patch is None or self.patch.operation == "INVALID":
            yield "patch", "an operation must be set"


class EnvoyFilter(Spec):
    """Patches of the generated Envoy configuration."""

    workload_selector: LabelSelector | None = None
    target_refs: TargetRefs = ()
    config_patches: tuple[ConfigPatch, ...] = ()
    priority: Int32 = 0

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.workload_selector is not None and self.target_refs:
            yield "", "only one of targetRefs or workloadSelector can be set"


class EnvVar(Spec):
    """An environment variable of the module's virtual machine."""

    name: Annotated[NonEmpty, StringConstraints(max_length=256)]
    value_from: Literal["INLINE", "HOST"] = "INLINE"
    value: Annotated[Str, StringConstraints(max_length=2048)] = ""

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.value and self.value_from != "INLINE":
            yield "value", "value may only be set when valueFrom is INLINE"


class VmConfig(Spec):
    """The module's virtual machine."""

    env: Annotated[tuple[EnvVar, ...], Field(max_length=256)] = ()

    def rules(self) -> Iterator[tuple[str, str]]:
        names = [variable.name for variable in self.env]
        for index, name in enumerate(names):
            if name in names[:index]:
                yield f"env[{index}]", f"Duplicate value: {name!r}"


class WasmPort(Spec):
    """A port."""

    number: PortNumber


class TrafficSelector(Spec):
    """Which traffic a plugin sees."""

    mode: Literal["UNDEFINED", "CLIENT", "SERVER", "CLIENT_AND_SERVER"] = "CLIENT_AND_SERVER"
    ports: tuple[WasmPort, ...] = ()


class WasmPlugin(Spec):
    """A proxy-wasm module in the filter chain."""

    selector: WorkloadSelector | None = None
    target_ref: TargetReference | None = None
    target_refs: TargetRefs = ()
    url: NonEmpty
    sha256: Annotated[Str, StringConstraints(pattern=r"(^$|^[a-f0-9]{64}$)")] = ""
    image_pull_policy: Literal["UNSPECIFIED_POLICY", "IfNotPresent", "Always"] = "UNSPECIFIED_POLICY"
    image_pull_secret: Annotated[NonEmpty, StringConstraints(max_length=253)] | None = None
    verification_key: Str = ""
    plugin_config: Struct | None = None
    plugin_name: Annotated[NonEmpty, StringConstraints(max_length=256)] | None = None
    phase: Literal["UNSPECIFIED_PHASE", "AUTHN", "AUTHZ", "STATS"] = "UNSPECIFIED_PHASE"
    priority: Int32 | None = None
    fail_strategy: Literal["FAIL_CLOSE", "FAIL_OPEN", "FAIL_RELOAD"] = "FAIL_CLOSE"
    vm_config: VmConfig | None = None
    match: tuple[TrafficSelector, ...] = ()
    type: Literal["UNSPECIFIED_PLUGIN_TYPE", "HTTP", "NETWORK"] = "UNSPECIFIED_PLUGIN_TYPE"

    def rules(self) -> Iterator[tuple[str, str]]:
        yield from one_target(self.target_ref, self.target_refs, self.selector)
        scheme, separator, _ = self.url.partition("://")
        if not separator:
            scheme = "oci" if re.fullmatch(r"[-\w.:/@]+", self.url) else ""
        if scheme not in ("http", "https", "file", "oci"):
            yield "url", "url must have schema one of [http, https, file, oci]"


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


class Image(Spec):
    """The proxy's container image: nothing on a machine of its own."""

    image_type: Str = ""


class ProxyConfig(Spec):
    """Settings of the proxy itself."""

    selector: WorkloadSelector | None = None
    concurrency: Annotated[Int32, Field(ge=0)] | None = None
    environment_variables: dict[str, Str] = empty()
    image: Image | None = None
