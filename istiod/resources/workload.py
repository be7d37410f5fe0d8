"""networking.istio.io WorkloadEntry and WorkloadGroup: machines described by hand rather than by an agent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from istiod.resources.names import (
    UNIX,
    domain_problem,
    ip_problem,
    label_problem,
    label_problems,
    unix_problem,
)
from istiod.resources.schema import Int32, NonEmpty, PortNumber, Spec, Str, UInt32, empty
from registry.model import MAX_WEIGHT


def workload_rules(address: str, network: str, ports: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Istio's rules on an address and its ports, shared by WorkloadEntry and ServiceEntry.endpoints."""
    if not address and not network:
        yield "", "Address is required"
    if address.startswith(UNIX):
        if problem := unix_problem(address.removeprefix(UNIX)):
            yield "address", problem
        if ports:
            yield "ports", "UDS may not include ports"
    elif address and ip_problem(address) and domain_problem(address, wildcard=False):
        yield "address", f"{address!r} is neither an IP address nor a host name"
    for name in ports:
        if problem := label_problem(name):
            yield "ports", f"port name must be valid: {problem}"


class WorkloadEntry(Spec):
    """One workload: an address, the ports its services listen on, labels, identity."""

    address: Annotated[Str, StringConstraints(max_length=256)] = ""
    ports: dict[str, PortNumber] = empty()
    labels: dict[str, Str] = empty()
    network: Str = ""
    locality: Str = ""
    weight: UInt32 = 0
    service_account: Str = ""

    def rules(self) -> Iterator[tuple[str, str]]:
        yield from workload_rules(self.address, self.network, self.ports)
        yield from label_problems("labels", self.labels)

    def gaps(self) -> Iterator[tuple[str, str]]:
        if self.network and not self.address:
            yield "network", "east-west gateways are not built: the workload cannot be reached"


class ObjectMeta(Spec):
    """Labels and annotations of the WorkloadEntries that a group makes."""

    labels: dict[str, Str] = empty()
    annotations: dict[str, Str] = empty()


class HttpHeader(Spec):
    """A header of an HTTP probe."""

    name: Annotated[Str, StringConstraints(pattern=r"^[-_A-Za-z0-9]+$")] = ""
    value: Str = ""


class HttpProbe(Spec):
    """GET that must answer 2xx or 3xx."""

    path: Str = ""
    port: PortNumber
    host: Str = ""
    scheme: Literal["HTTP", "HTTPS", ""] = ""
    http_headers: tuple[HttpHeader, ...] = ()


class TcpProbe(Spec):
    """A connection that must be accepted."""

    host: Str = ""
    port: PortNumber


class ExecProbe(Spec):
    """A command that must exit with status 0."""

    command: tuple[NonEmpty, ...]


class GrpcProbe(Spec):
    """grpc.health.v1 that must answer SERVING."""

    port: PortNumber | None = None
    service: Str = ""


Seconds = Annotated[Int32, Field(ge=0)]


class Probe(Spec):
    """A readiness probe, as Kubernetes'."""

    initial_delay_seconds: Seconds = 0
    timeout_seconds: Seconds = 0
    period_seconds: Seconds = 0
    success_threshold: Seconds = 0
    failure_threshold: Seconds = 0
    http_get: HttpProbe | None = None
    tcp_socket: TcpProbe | None = None
    exec: ExecProbe | None = None
    grpc: GrpcProbe | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        given = [
            name for name in ("http_get", "tcp_socket", "exec", "grpc") if getattr(self, name) is not None
        ]
        if len(given) > 1:
            yield "", "only one of httpGet, tcpSocket, exec, grpc can be set"


class WorkloadTemplate(WorkloadEntry):
    """A WorkloadEntry without address."""

    def rules(self) -> Iterator[tuple[str, str]]:
        yield from workload_rules(self.address, self.network or "template", self.ports)
        yield from label_problems("labels", self.labels)

    def gaps(self) -> Iterator[tuple[str, str]]:
        return iter(())

    def refusals(self) -> Iterator[tuple[str, str]]:
        if self.network:
            yield "network", "east-west gateways are not built: all workloads are in one network"
        if self.weight > MAX_WEIGHT:
            yield "weight", f"an agent's instance has a weight of at most {MAX_WEIGHT}"
        if self.address:
            yield "address", "an instance's address is its host's own; use a WorkloadEntry for a fixed one"


class WorkloadGroup(Spec):
    """The common part of many workloads, and the grant by which they may serve (istiod.access.group)."""

    metadata: ObjectMeta | None = None
    template: WorkloadTemplate
    probe: Probe | None = None

    def refusals(self) -> Iterator[tuple[str, str]]:
        if self.probe is not None:
            yield "probe", "each agent probes as its own agent.yaml says (workloads[].probe)"
