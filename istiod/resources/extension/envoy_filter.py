"""networking.istio.io EnvoyFilter: patches of the generated Envoy configuration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from istiod.resources.schema import (
    Int32,
    PortNumber,
    Spec,
    Str,
    Struct,
    UInt32,
    empty,
)
from istiod.resources.selector import LabelSelector, TargetRefs


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
