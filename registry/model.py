"""The mesh's facts as values: ports, instances, services, configuration resources, records.

Rule: frozen and free of I/O, clocks and chance; every backend stores and returns exactly these.
Not for what the facts mean (istiod.resources, istiod.compile) nor for how they are kept (registry.sqlite,
registry.consul).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

__all__ = [
    "ABSENT",
    "MAX_WEIGHT",
    "Health",
    "Instance",
    "Port",
    "Record",
    "Resource",
    "ResourceKey",
    "Service",
    "VirtualIps",
    "merge_ports",
]

ABSENT = ""
"""As an expected version: the thing must not exist yet."""


MAX_WEIGHT = 128
"""Of an instance, as agent.yaml has it: Envoy refuses an assignment whose weights add up to more than 32 bits."""


class Health(StrEnum):
    """Whether an instance may be sent traffic, as its agent's probe says."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class Port:
    """One port of a service: `number` is what callers use, `target_port` what the application listens on.

    `protocol` is Istio's appProtocol ("http", "http2", "grpc", "https", "tls", "tcp", …) or "" when it is to
    be told by the port's name, else sniffed (Istio, protocol selection). `target_port` 0 means `number`.
    """

    name: str
    number: int
    protocol: str = ""
    target_port: int = 0

    @property
    def target(self) -> int:
        """The port on which the application listens."""
        return self.target_port or self.number


@dataclass(frozen=True, slots=True)
class Instance:
    """One workload on one host, serving one service.

    `id` is unique in the mesh and the same after a restart. `addresses` are the host's, the preferred one
    first. `node` is the host's name, `workload` the workload's (Istio's WORKLOAD_NAME), `owner` the istiod
    process to which its agent is connected (Registry.owner), `mtls` whether our proxy ends its mutual TLS.
    `weight` is Istio's WorkloadEntry.weight; 0 counts as 1 (LocalityLbEndpoints.load_balancing_weight).
    """

    id: str
    service: str
    namespace: str
    addresses: tuple[str, ...]
    ports: tuple[Port, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    service_account: str = "default"
    locality: str = ""
    weight: int = 0
    health: Health = Health.UNHEALTHY
    node: str = ""
    workload: str = ""
    owner: str = ""
    mtls: bool = True

    @property
    def holder(self) -> tuple[str, str, str]:
        """Whose claim on the id this is: namespace, service account and preferred address.

        Two hosts with one name and one identity differ by their address.
        """
        return (self.namespace, self.service_account, self.addresses[0] if self.addresses else "")


class VirtualIps(NamedTuple):
    """The pair of addresses that mesh DNS answers for a name; out of 240.240.0.0/16 and 2001:2::/48."""

    v4: str
    v6: str


@dataclass(frozen=True, slots=True)
class Service:
    """A name that callers use. It outlives its last instance, so that its VIPs stay its own (see Catalog)."""

    name: str
    namespace: str
    ports: tuple[Port, ...]
    vip4: str
    vip6: str


class ResourceKey(NamedTuple):
    """What makes a resource unique: kinds are Istio's, whose names do not collide between API groups."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Resource:
    """One configuration resource as it was applied: metadata and `spec` as plain JSON values.

    `version` is opaque and changes with every write (Kubernetes' resourceVersion); `generation` counts the
    changes of `spec`; `created` is in seconds since the epoch. The store sets these three, whatever a caller
    puts in.
    """

    kind: str
    namespace: str
    name: str
    api_version: str
    spec: Mapping[str, Any]
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    version: str = ABSENT
    generation: int = 0
    created: float = 0.0

    @property
    def key(self) -> ResourceKey:
        """The resource's identity in the store."""
        return ResourceKey(self.kind, self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Record:
    """A small document of istiod's own (a join token, the root's fingerprint); `version` as a Resource's."""

    area: str
    key: str
    value: str
    version: str


def merge_ports(known: tuple[Port, ...], latest: tuple[Port, ...]) -> tuple[Port, ...]:
    """The ports of a service whose instances so far have `known` and whose newest has `latest`.

    Every number once, in ascending order; the newest instance's word on a port wins. The target port stays
    the instance's own matter and is not part of the service's port.
    """
    by_number = {port.number: port for port in known}
    by_number.update({port.number: port for port in latest})
    return tuple(Port(p.name, p.number, p.protocol) for _, p in sorted(by_number.items()))
