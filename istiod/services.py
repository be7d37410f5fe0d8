"""What can be called: services of the catalog and of ServiceEntries, as one kind of value.

Rule: frozen, made from registry values and typed resources only; `key` and `endpoints_key` are hashes of the
content, so that compiled parts can be cached by what they read.
Not for: routing or policy (istiod/compile), visibility (istiod/scope.py).
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from istiod.access.facts import Access
from istiod.resources.document import Document
from istiod.resources.mesh_config import MeshConfig
from istiod.resources.service_entry import ServiceEntry
from istiod.resources.workload import WorkloadEntry
from registry.model import MAX_WEIGHT, Health, Instance, Service


class Protocol(Enum):
    """What a port speaks, as far as it changes what we configure."""

    HTTP = "http"
    HTTP2 = "http2"
    TLS = "tls"
    TCP = "tcp"
    AUTO = "auto"
    """To be sniffed."""
    UDP = "udp"

    @property
    def is_http(self) -> bool:
        """Whether requests can be routed one by one."""
        return self in (Protocol.HTTP, Protocol.HTTP2)


_PROTOCOLS = {
    "http": Protocol.HTTP,
    "http_proxy": Protocol.HTTP,
    "http2": Protocol.HTTP2,
    "kubernetes.io/h2c": Protocol.HTTP2,
    "grpc": Protocol.HTTP2,
    "grpc-web": Protocol.HTTP2,
    "https": Protocol.TLS,
    "tls": Protocol.TLS,
    "tcp": Protocol.TCP,
    "mongo": Protocol.TCP,
    "redis": Protocol.TCP,
    "mysql": Protocol.TCP,
    "udp": Protocol.UDP,
}
_SERVER_FIRST_PORTS = {25: Protocol.TCP, 53: Protocol.TCP, 3306: Protocol.TCP, 27017: Protocol.TCP}
"""Ports on which the server speaks first: sniffing would wait for ever (Istio, protocol selection)."""


def protocol_of(name: str, number: int, app_protocol: str) -> Protocol:
    """Istio's protocol selection: appProtocol, else the port name's prefix, else a well-known port, else sniffing."""
    if app_protocol:
        return _PROTOCOLS.get(app_protocol.lower(), Protocol.AUTO)
    lowered = name.lower()
    for prefix in ("grpc-web", lowered.partition("-")[0]):
        if lowered == prefix or lowered.startswith(prefix + "-"):
            found = _PROTOCOLS.get(prefix)
            if found is not None:
                return found
    return _SERVER_FIRST_PORTS.get(number, Protocol.AUTO)


class Resolution(Enum):
    """How the endpoints of a service are found."""

    ENDPOINTS = "endpoints"
    """Known here: sent by EDS."""
    DNS = "dns"
    DNS_ROUND_ROBIN = "dns_round_robin"
    NONE = "none"
    """The address the caller chose."""


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a service; `target` is the endpoints' default port."""

    name: str
    number: int
    protocol: Protocol
    target: int


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place where a service runs. `ports` maps the service's port numbers to this endpoint's own."""

    addresses: tuple[str, ...]
    ports: Mapping[int, int]
    labels: Mapping[str, str]
    namespace: str
    service_account: str = ""
    workload: str = ""
    locality: str = ""
    weight: int = 1
    healthy: bool = True
    mtls: bool = False

    @property
    def address(self) -> str:
        """The preferred address: an IP, a DNS name, or unix://PATH."""
        return self.addresses[0]

    def serves(self, port: int) -> bool:
        """Whether it serves a port of its service; one that declares no port serves all of them."""
        return not self.ports or port in self.ports


@dataclass(frozen=True, slots=True)
class MeshService:
    """One host that can be called. `addresses` are VIPs or CIDR blocks; empty means no address of its own."""

    host: str
    name: str
    namespace: str
    ports: tuple[ServicePort, ...]
    addresses: tuple[str, ...]
    resolution: Resolution
    external: bool
    export_to: tuple[str, ...]
    sans: tuple[str, ...]
    servers: tuple[tuple[str, str], ...]
    """Who may serve it, as namespace and service account: granted, or named by an administrator's WorkloadEntry."""
    endpoints: tuple[Endpoint, ...]
    origin: str
    """`registry`, or the ServiceEntry's `namespace/name`."""
    allocated: bool
    """Whether the addresses are ours (240.240.0.0/16), not the user's."""
    key: str = ""
    endpoints_key: str = ""

    def port(self, number: int) -> ServicePort | None:
        """The port with that number."""
        return next((port for port in self.ports if port.number == number), None)


Unusable = Callable[[str, Exception], None]
"""Called with the name of each value that cannot be used and is left out."""


def from_registry(
    services: Iterable[Service],
    instances: Iterable[Instance],
    mesh: MeshConfig,
    access: Access,
    unusable: Unusable,
) -> list[MeshService]:
    """The catalog's services with their instances, healthy or not."""
    members: dict[tuple[str, str], list[Instance]] = {}
    for instance in instances:
        members.setdefault((instance.namespace, instance.service), []).append(instance)
    result = []
    for service in services:
        found = members.get((service.namespace, service.name), ())
        try:
            result.append(_of_service(service, found, mesh, access))
        except Exception as error:
            unusable(f"service {service.namespace}/{service.name}", error)
    return result


def _of_service(
    service: Service, members: Iterable[Instance], mesh: MeshConfig, access: Access
) -> MeshService:
    ports = tuple(
        ServicePort(p.name, p.number, protocol_of(p.name, p.number, p.protocol), p.target)
        for p in service.ports
    )
    found = sorted(members, key=lambda one: one.id)
    endpoints = tuple(_of_instance(instance) for instance in found if instance.addresses)
    return sealed(
        MeshService(
            host=f"{service.name}.{service.namespace}.svc.{mesh.domain_suffix}",
            name=service.name,
            namespace=service.namespace,
            ports=ports,
            addresses=tuple(address for address in (service.vip4, service.vip6) if address),
            resolution=Resolution.ENDPOINTS,
            external=False,
            export_to=mesh.default_service_export_to,
            sans=(),
            servers=access.servers(service.namespace, service.name),
            endpoints=endpoints,
            origin="registry",
            allocated=True,
        )
    )


def from_entries(
    entries: Iterable[Document[ServiceEntry]],
    workloads: Iterable[Document[WorkloadEntry]],
    instances: Iterable[Instance],
    mesh: MeshConfig,
    access: Access,
    taken: set[str],
    unusable: Unusable,
) -> list[MeshService]:
    """One service for each host of each ServiceEntry; hosts without address get one that is not in `taken`."""
    machines = list(workloads)
    known = list(instances)
    result: list[MeshService] = []
    for entry in entries:
        try:
            result += _of_entry(entry, machines, known, mesh, access, taken)
        except Exception as error:
            unusable(entry.subject, error)
    return result


def _of_entry(
    entry: Document[ServiceEntry],
    machines: list[Document[WorkloadEntry]],
    known: list[Instance],
    mesh: MeshConfig,
    access: Access,
    taken: set[str],
) -> list[MeshService]:
    result = []
    spec = entry.spec
    ports = tuple(
        ServicePort(
            port.name,
            port.number,
            protocol_of(port.name, port.number, port.protocol),
            port.target_port or port.number,
        )
        for port in spec.ports
    )
    fixed = _entry_endpoints(entry, ports, machines)
    for given in spec.hosts:
        host = given.lower().removesuffix(".")
        joined = _joined(entry, host, ports, known, access)
        endpoints = (*fixed, *joined)
        named = {
            (one.namespace, one.service_account) for one in endpoints if one.mtls and one.service_account
        }
        servers = tuple(sorted(named.union(access.servers(entry.resource.namespace, host))))
        addresses = tuple(_plain(address) for address in spec.addresses if _plain(address))
        allocated = False
        if not addresses and not host.startswith("*") and spec.resolution != "NONE":
            addresses, allocated = allocate(f"{entry.resource.namespace}/{host}", taken), True
        result.append(
            sealed(
                MeshService(
                    host=host,
                    name=host,
                    namespace=entry.resource.namespace,
                    ports=ports,
                    addresses=addresses,
                    resolution=_resolution(spec, endpoints),
                    external=spec.location == "MESH_EXTERNAL",
                    export_to=spec.export_to or mesh.default_service_export_to,
                    sans=spec.subject_alt_names,
                    servers=servers,
                    endpoints=endpoints or _itself(spec, host, ports),
                    origin=f"{entry.resource.namespace}/{entry.resource.name}",
                    allocated=allocated,
                )
            )
        )
    return result


def allocate(name: str, taken: set[str]) -> tuple[str, str]:
    """A pair of VIPs for a ServiceEntry's host out of 240.240.128.0/17 and 2001:2::/48.

    A hash of the name, so that it survives restarts and is the same on every istiod; the upper half of the
    range, so that it rarely meets the catalog's own; a taken address makes it step on. `taken` grows.
    """
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 32000
    for step in range(32000):
        offset = (start + step) % 32000 + 0x8000 + 1
        v4 = str(ipaddress.IPv4Address(0xF0F00000 + offset))
        if v4 not in taken:
            taken.add(v4)
            return v4, str(ipaddress.IPv6Address((0x20010002 << 96) + 0xF0F00000 + offset))
    raise ValueError("no virtual address is left for ServiceEntries")


def sealed(service: MeshService) -> MeshService:
    """The same service with its two content hashes."""
    definition = (
        service.host, service.name, service.namespace, service.ports, service.addresses, service.resolution.value,
        service.external, service.export_to, service.sans, service.servers, service.origin,
    )  # fmt: skip
    if service.resolution is not Resolution.ENDPOINTS:
        definition += (tuple(map(_frozen, service.endpoints)),)  # type: ignore[assignment]
    values = {slot: getattr(service, slot) for slot in MeshService.__slots__}
    values["key"] = _digest(definition)
    values["endpoints_key"] = _digest(tuple(map(_frozen, service.endpoints)))
    return MeshService(**values)


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def _frozen(endpoint: Endpoint) -> tuple[object, ...]:
    return (
        endpoint.addresses, sorted(endpoint.ports.items()), sorted(endpoint.labels.items()), endpoint.namespace,
        endpoint.service_account, endpoint.workload, endpoint.locality, endpoint.weight, endpoint.healthy,
        endpoint.mtls,
    )  # fmt: skip


def _of_instance(instance: Instance) -> Endpoint:
    return Endpoint(
        addresses=instance.addresses,
        ports={port.number: port.target for port in instance.ports},
        labels=dict(instance.labels),
        namespace=instance.namespace,
        service_account=instance.service_account,
        workload=instance.workload,
        locality=instance.locality,
        weight=min(instance.weight or 1, MAX_WEIGHT),
        healthy=instance.health is Health.HEALTHY,
        mtls=instance.mtls,
    )


def _entry_endpoints(
    entry: Document[ServiceEntry],
    ports: tuple[ServicePort, ...],
    machines: list[Document[WorkloadEntry]],
) -> tuple[Endpoint, ...]:
    spec, namespace = entry.spec, entry.resource.namespace
    if spec.endpoints is not None:
        return tuple(_of_workload(one, namespace, "", ports, {}) for one in spec.endpoints if one.address)
    if spec.workload_selector is None:
        return ()
    wanted = spec.workload_selector.labels
    found = []
    for machine in machines:
        labels = {**machine.resource.labels, **machine.spec.labels}
        # EDS knows addresses only: a name can be an endpoint where names are resolved, not elsewhere (Istio).
        usable = _is_ip(machine.spec.address) or (spec.resolution != "STATIC" and machine.spec.address)
        if machine.resource.namespace == namespace and usable and includes(labels, wanted):
            found.append(_of_workload(machine.spec, namespace, machine.resource.name, ports, labels))
    return tuple(found)


def _joined(
    entry: Document[ServiceEntry],
    host: str,
    ports: tuple[ServicePort, ...],
    instances: list[Instance],
    access: Access,
) -> tuple[Endpoint, ...]:
    """The agents' instances that the entry selects and that may be endpoints of its host."""
    spec, namespace = entry.spec, entry.resource.namespace
    if spec.endpoints is not None or spec.workload_selector is None:
        return ()
    wanted = spec.workload_selector.labels
    return tuple(
        replace(_of_instance(instance), ports={port.number: port.target for port in ports})
        for instance in instances
        if instance.namespace == namespace
        and instance.addresses
        and includes(instance.labels, wanted)
        and access.may_join(instance, namespace, host, wanted)
    )


def _of_workload(
    spec: WorkloadEntry, namespace: str, name: str, ports: tuple[ServicePort, ...], labels: dict[str, str]
) -> Endpoint:
    return Endpoint(
        addresses=(spec.address,),
        ports={port.number: spec.ports.get(port.name, port.target) for port in ports},
        labels=labels or dict(spec.labels),
        namespace=namespace,
        service_account=spec.service_account,
        workload=name,
        locality=spec.locality,
        weight=spec.weight or 1,
        # Istio: a workload that names its service account has a proxy of its own, unless its label says otherwise.
        mtls=(labels or spec.labels).get(
            "security.istio.io/tlsMode", "istio" if spec.service_account else "disabled"
        )
        == "istio",
    )


def _resolution(spec: ServiceEntry, endpoints: tuple[Endpoint, ...]) -> Resolution:
    if spec.resolution == "STATIC":
        return Resolution.ENDPOINTS
    if spec.resolution in ("DNS", "DNS_ROUND_ROBIN"):
        # Endpoints chosen by a selector have addresses: nothing is left to resolve.
        if spec.workload_selector is not None and endpoints and all(_is_ip(one.address) for one in endpoints):
            return Resolution.ENDPOINTS
        return Resolution(spec.resolution.lower())
    return Resolution.NONE


def _itself(spec: ServiceEntry, host: str, ports: tuple[ServicePort, ...]) -> tuple[Endpoint, ...]:
    """With DNS resolution and no endpoints the host itself is resolved."""
    if spec.resolution not in ("DNS", "DNS_ROUND_ROBIN") or host.startswith("*") or spec.workload_selector:
        return ()
    return (Endpoint((host.lower(),), {port.number: port.target for port in ports}, {}, ""),)


def _is_ip(address: str) -> bool:
    return address.startswith("unix://") or bool(_plain(address))


def _plain(address: str) -> str:
    """The canonical form of an IP address or CIDR block (a block of one is an address), "" if it is neither."""
    try:
        network = ipaddress.ip_network(address, strict=False)
    except ValueError:
        return ""
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def includes(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether `labels` has everything that is `wanted`."""
    return all(labels.get(key) == value for key, value in wanted.items())
