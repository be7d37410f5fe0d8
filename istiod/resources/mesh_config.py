"""istio.mesh.v1alpha1 MeshConfig: the settings of the whole mesh, with Istio's names and defaults.

The part that this version acts upon; anything else is refused as an unknown field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import ValidationError

from istiod.resources.schema import Bool, Duration, NonEmpty, PositiveDuration, Spec, Str, fields_of


class OutboundPolicy(Spec):
    """What happens to calls whose destination is not in the mesh."""

    mode: Literal["ALLOW_ANY", "REGISTRY_ONLY", "ALLOW_ANY_DYNAMIC_DNS"] = "ALLOW_ANY"


class InboundPolicy(Spec):
    """Where declared ports of a workload are reached: PASSTHROUGH, at the address that was called, or LOCALHOST."""

    mode: Literal["PASSTHROUGH", "LOCALHOST"] = "PASSTHROUGH"


class PathNormalization(Spec):
    """How paths are normalised before they are judged by authorization policies."""

    normalization: Literal["DEFAULT", "NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"] = "DEFAULT"


class MeshConfig(Spec):
    """Istio's meshConfig. `domainSuffix` is Istio's `--domain` flag."""

    trust_domain: NonEmpty = "cluster.local"
    trust_domain_aliases: tuple[NonEmpty, ...] = ()
    domain_suffix: NonEmpty = "cluster.local"
    root_namespace: NonEmpty = "istio-system"
    outbound_traffic_policy: OutboundPolicy = OutboundPolicy()
    inbound_traffic_policy: InboundPolicy = InboundPolicy()
    enable_auto_mtls: Bool = True
    connect_timeout: PositiveDuration = 10.0
    dns_refresh_rate: PositiveDuration = 60.0
    protocol_detection_timeout: Duration = 0.0
    """Seconds; 0 waits for the first bytes without limit, as Istio does."""
    access_log_file: Str = ""
    access_log_format: Str = ""
    access_log_encoding: Literal["TEXT", "JSON"] = "TEXT"
    path_normalization: PathNormalization = PathNormalization()
    default_service_export_to: tuple[NonEmpty, ...] = ("*",)
    default_virtual_service_export_to: tuple[NonEmpty, ...] = ("*",)
    default_destination_rule_export_to: tuple[NonEmpty, ...] = ("*",)

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.outbound_traffic_policy.mode == "ALLOW_ANY_DYNAMIC_DNS":
            yield (
                "outboundTrafficPolicy.mode",
                "ALLOW_ANY_DYNAMIC_DNS is not supported by this version; ALLOW_ANY calls the addresses that "
                "the callers have resolved",
            )
        if self.access_log_encoding == "JSON" and self.access_log_format:
            yield "accessLogFormat", "may not be set together with JSON encoding in this version"


def mesh_config(values: Mapping[str, Any]) -> MeshConfig:
    """Check a mapping (istiod.yaml's `mesh`). Raises ValueError with the first path and reason."""
    try:
        config = MeshConfig.model_validate(dict(values))
    except ValidationError as failure:
        error = failure.errors()[0]
        path = ".".join(str(part) for part in error["loc"])
        known = ", ".join(fields_of(MeshConfig))
        message = f"unknown field; known are {known}" if error["type"] == "extra_forbidden" else error["msg"]
        raise ValueError(f"mesh.{path}: {message}") from None
    for path, reason in config.rules():
        raise ValueError(f"mesh.{path}: {reason}")
    return config
