"""networking.istio.io ServiceEntry: services that no agent registers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from istiod.resources.names import (
    UNIX,
    address_problem,
    domain_problem,
    export_to_problems,
    ip_problem,
    label_problem,
)
from istiod.resources.schema import NonEmpty, PortNumber, Spec, Str
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
_NAMED_PROTOCOLS = ("HTTP", "HTTPS", "GRPC", "GRPC-WEB", "HTTP2", "HTTP_PROXY", "TLS")


class ServicePort(Spec):
    """One port of the service; `targetPort` is what the endpoints listen on."""

    number: PortNumber
    name: NonEmpty
    protocol: Str = ""
    target_port: PortNumber | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.protocol and self.protocol.upper() not in PROTOCOLS:
            yield "protocol", f"unsupported protocol {self.protocol!r}; one of {', '.join(PROTOCOLS)}"
        if problem := label_problem(self.name):
            yield "name", problem

    @property
    def tells_hosts_apart(self) -> bool:
        """Whether the host that is called is in the bytes: Host, :authority, SNI."""
        return self.protocol.upper() in _NAMED_PROTOCOLS


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
        yield from self._host_rules()
        yield from self._address_rules()
        yield from self._port_rules()
        if self.workload_selector is not None and self.endpoints is not None:
            yield "endpoints", "only one of WorkloadSelector or Endpoints can be set"
        if self.resolution == "NONE" and self.endpoints is not None:
            yield "endpoints", "NONE mode cannot set endpoints"
        if self.resolution == "DNS_ROUND_ROBIN" and len(self.endpoints or ()) > 1:
            yield "endpoints", "DNS_ROUND_ROBIN mode cannot have multiple endpoints"
        if self.resolution == "DYNAMIC_DNS":
            yield from self._dynamic_rules()
        for index, endpoint in enumerate(self.endpoints or ()):
            for path, problem in self._endpoint_rules(endpoint):
                yield f"endpoints[{index}].{path}", problem

    def document_rules(self, namespace: str, annotations: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        yield from export_to_problems(self.export_to, namespace, service_entry=True)

    def _host_rules(self) -> Iterator[tuple[str, str]]:
        resolved = self.resolution in ("DNS", "DNS_ROUND_ROBIN") and not self.endpoints
        for index, host in enumerate(self.hosts):
            if host == "*":
                yield f"hosts[{index}]", "hostname cannot be wildcard"
            elif problem := domain_problem(host, wildcard=True):
                yield f"hosts[{index}]", problem
            elif resolved and host.startswith("*"):
                yield (
                    f"hosts[{index}]",
                    f"{host!r} cannot be resolved: with {self.resolution} a wildcard needs endpoints; "
                    "NONE calls the address that the caller has resolved",
                )

    def _address_rules(self) -> Iterator[tuple[str, str]]:
        for index, address in enumerate(self.addresses):
            if problem := address_problem(address):
                yield f"addresses[{index}]", problem
        if any("/" in address for address in self.addresses) and self.resolution not in ("NONE", "STATIC"):
            yield "addresses", "CIDR addresses are allowed only for NONE/STATIC resolution types"

    def _port_rules(self) -> Iterator[tuple[str, str]]:
        names: set[str] = set()
        numbers: set[int] = set()
        for index, port in enumerate(self.ports):
            if port.name in names:
                yield f"ports[{index}].name", f"Duplicate value: port name {port.name!r} is used twice"
            if port.number in numbers:
                yield f"ports[{index}].number", "port number cannot be duplicated"
            if self.resolution != "NONE" and len(self.hosts) > 1 and not port.tells_hosts_apart:
                yield (
                    f"ports[{index}].protocol",
                    "several hosts cannot share a port whose protocol does not name the host that is called; "
                    "use HTTP, HTTP2, GRPC, HTTPS or TLS, or an entry for each host",
                )
            names.add(port.name)
            numbers.add(port.number)

    def _dynamic_rules(self) -> Iterator[tuple[str, str]]:
        for index, host in enumerate(self.hosts):
            if not host.startswith("*."):
                yield f"hosts[{index}]", "DYNAMIC_DNS is for wildcard hosts such as *.example.com"
        if self.location != "MESH_EXTERNAL":
            yield "location", "must be MESH_EXTERNAL for DYNAMIC_DNS"
        if self.endpoints:
            yield "endpoints", "DYNAMIC_DNS mode cannot set endpoints"
        if self.workload_selector is not None:
            yield "workloadSelector", "DYNAMIC_DNS mode cannot select workloads"
        for index, port in enumerate(self.ports):
            if not port.tells_hosts_apart:
                yield (
                    f"ports[{index}].protocol",
                    "DYNAMIC_DNS needs a protocol that names the host that is called: HTTP, HTTP2, GRPC, HTTPS or TLS",
                )

    def _endpoint_rules(self, endpoint: WorkloadEntry) -> Iterator[tuple[str, str]]:
        unix = endpoint.address.startswith(UNIX)
        if self.resolution == "STATIC" and endpoint.address and not unix and ip_problem(endpoint.address):
            yield "address", "must be an IP address (or unix://) for STATIC resolution"
        if self.resolution != "STATIC" and unix:
            yield "address", f"must not be a Unix socket for {self.resolution} resolution"
        if unix and len(self.ports) != 1:
            yield "address", "a Unix socket can serve one port only, and the entry must have exactly one"
        names = {port.name for port in self.ports}
        for name in endpoint.ports:
            if name not in names:
                yield "ports", f"{name!r} is no port of this ServiceEntry"

    def refusals(self) -> Iterator[tuple[str, str]]:
        if self.resolution == "DYNAMIC_DNS":
            yield (
                "resolution",
                "DYNAMIC_DNS is not supported by this version: nothing would resolve the hosts",
            )
        if self.resolution == "NONE":
            what = "has no effect with resolution NONE, which calls the address and port that the caller has chosen"
            if self.workload_selector is not None:
                yield "workloadSelector", what
            for index, port in enumerate(self.ports):
                if port.target_port is not None and port.target_port != port.number:
                    yield f"ports[{index}].targetPort", what

    def gaps(self) -> Iterator[tuple[str, str]]:
        for index, port in enumerate(self.ports):
            if port.protocol.upper() == "UDP":
                yield f"ports[{index}].protocol", "UDP is not proxied"
            elif self.resolution == "NONE" and not self.addresses and not port.tells_hosts_apart:
                what = f"without addresses this is for every connection to port {port.number}, to any address"
                yield f"ports[{index}]", what
