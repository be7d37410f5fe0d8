"""networking.istio.io ServiceEntry: services that no agent registers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from istiod.resources.schema import NonEmpty, PortNumber, Spec, Str, address_problem, host_problem
from istiod.resources.selector import LabelSelector
from istiod.resources.workload import WorkloadEntry

PROTOCOLS = (
    "HTTP",
    "HTTPS",
    "GRPC",
    "GRPC-WEB",
    "HTTP2",
    "MONGO",
    "TCP",
    "TLS",
    "UDP",
    "REDIS",
    "MYSQL",
    "HTTP_PROXY",
    "HBONE",
)


class ServicePort(Spec):
    """One port of the service; `targetPort` is what the endpoints listen on."""

    number: PortNumber
    name: NonEmpty
    protocol: Str = ""
    target_port: PortNumber | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.protocol and self.protocol.upper() not in PROTOCOLS:
            yield "protocol", f"unsupported protocol {self.protocol!r}; one of {', '.join(PROTOCOLS)}"


class ServiceEntry(Spec):
    """Hosts, where they are, and how their endpoints are found."""

    hosts: Annotated[tuple[NonEmpty, ...], Field(min_length=1, max_length=256)]
    addresses: tuple[Annotated[Str, StringConstraints(max_length=64)], ...] = ()
    ports: tuple[ServicePort, ...] = ()
    location: Literal["MESH_EXTERNAL", "MESH_INTERNAL"] = "MESH_EXTERNAL"
    resolution: Literal["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"] = "NONE"
    endpoints: tuple[WorkloadEntry, ...] | None = None
    workload_selector: LabelSelector | None = None
    export_to: tuple[NonEmpty, ...] = ()
    subject_alt_names: tuple[NonEmpty, ...] = ()

    def rules(self) -> Iterator[tuple[str, str]]:
        for index, host in enumerate(self.hosts):
            if host == "*":
                yield f"hosts[{index}]", "hostname cannot be wildcard"
            elif problem := host_problem(host, wildcard=True):
                yield f"hosts[{index}]", problem
        if self.workload_selector is not None and self.endpoints is not None:
            yield "endpoints", "only one of WorkloadSelector or Endpoints can be set"
        if any("/" in address for address in self.addresses) and self.resolution not in ("NONE", "STATIC"):
            yield "addresses", "CIDR addresses are allowed only for NONE/STATIC resolution types"
        if self.resolution == "NONE" and self.endpoints is not None:
            yield "endpoints", "NONE mode cannot set endpoints"
        if self.resolution == "DNS_ROUND_ROBIN" and len(self.endpoints or ()) > 1:
            yield "endpoints", "DNS_ROUND_ROBIN mode cannot have multiple endpoints"
        names: set[str] = set()
        numbers: set[int] = set()
        for index, port in enumerate(self.ports):
            if port.name in names:
                yield f"ports[{index}].name", f"Duplicate value: port name {port.name!r} is used twice"
            if port.number in numbers:
                yield f"ports[{index}].number", "port number cannot be duplicated"
            names.add(port.name)
            numbers.add(port.number)
        for index, endpoint in enumerate(self.endpoints or ()):
            unix = endpoint.address.startswith("unix://")
            if self.resolution == "STATIC" and not unix and address_problem(endpoint.address):
                yield (
                    f"endpoints[{index}].address",
                    "must be an IP address (or unix://) for STATIC resolution",
                )
            if self.resolution == "DNS" and unix:
                yield f"endpoints[{index}].address", "must not be a Unix socket for DNS resolution"
            for name in endpoint.ports:
                if names and name not in names:
                    yield f"endpoints[{index}].ports", f"{name!r} is no port of this ServiceEntry"

    def gaps(self) -> Iterator[tuple[str, str]]:
        if self.resolution == "DYNAMIC_DNS":
            yield "resolution", "DYNAMIC_DNS has no effect yet: the hosts stay unknown to the mesh"
        for index, port in enumerate(self.ports):
            if port.protocol.upper() == "UDP":
                yield f"ports[{index}].protocol", "UDP is not proxied"
        for index, address in enumerate(self.addresses):
            if problem := address_problem(address):
                yield f"addresses[{index}]", f"{problem}; it is left out"
