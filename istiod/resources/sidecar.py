"""networking.istio.io Sidecar: what the proxies of some workloads see of the mesh, and how they are reached."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from istiod.resources.names import (
    UNIX,
    domain_problem,
    ip_problem,
    label_problem,
    port_problem,
    unix_problem,
    visible_host_problem,
)
from istiod.resources.routing.destination import Destination
from istiod.resources.schema import NonEmpty, PortNumber, Spec, Str, UInt32, unsupported
from istiod.resources.selector import LabelSelector
from istiod.resources.server_tls import ServerTls
from istiod.resources.service_entry import PROTOCOLS
from istiod.resources.traffic.connection_pool import ConnectionPool

CaptureMode = Literal["DEFAULT", "IPTABLES", "NONE"]
_NO_UNIX = "Unix sockets are not supported by this version"
_NO_BIND = "is not supported by this version: connections are captured, whatever address they are for"
_NO_LISTENERS = (
    "NONE is not supported by this version: connections are captured, no other listeners are opened"
)


class SidecarPort(Spec):
    """A port of the sidecar. An egress listener on a Unix socket has none (0)."""

    number: UInt32 = 0
    protocol: Str = ""
    name: Str = ""
    target_port: PortNumber | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.number > 65535:
            yield "number", "port must be between 1-65535"
        if self.protocol and self.protocol.upper() not in PROTOCOLS:
            yield "protocol", f"unsupported protocol {self.protocol!r}; one of {', '.join(PROTOCOLS)}"
        if self.name and (problem := label_problem(self.name)):
            yield "name", problem


class EgressListener(Spec):
    """Hosts that the workload may call, perhaps only on one port."""

    port: SidecarPort | None = None
    bind: Str = ""
    capture_mode: CaptureMode = "DEFAULT"
    hosts: tuple[NonEmpty, ...]

    def rules(self) -> Iterator[tuple[str, str]]:
        if not self.hosts:
            yield "hosts", "must not be empty"
        for index, host in enumerate(self.hosts):
            if problem := visible_host_problem(host):
                yield f"hosts[{index}]", problem
        if self.port is None:
            return
        if self.port.target_port is not None:
            yield "port.targetPort", "has no meaning for an egress listener"
        if self.port.number:
            if self.bind and (problem := ip_problem(self.bind)):
                yield "bind", problem
        elif not self.bind.startswith(UNIX):
            yield "port.number", "must be set, unless bind is unix://PATH"
        elif problem := unix_problem(self.bind.removeprefix(UNIX)):
            yield "bind", problem
        elif self.capture_mode == "IPTABLES":
            yield "captureMode", "must be DEFAULT or NONE for a Unix socket"

    def refusals(self) -> Iterator[tuple[str, str]]:
        if self.bind.startswith(UNIX):
            yield "bind", _NO_UNIX
        elif self.bind:
            yield "bind", _NO_BIND
        if self.capture_mode == "NONE":
            yield "captureMode", _NO_LISTENERS
        if self.port is not None and self.port.number:
            yield "port", "is not supported by this version: the hosts would be visible on all of their ports"


class IngressListener(Spec):
    """One inbound port; `defaultEndpoint` says where its application listens."""

    port: SidecarPort
    bind: Str = ""
    capture_mode: CaptureMode = "DEFAULT"
    default_endpoint: Str = ""
    tls: ServerTls | None = unsupported(
        reason="is not supported by this version: without it, plain text would be accepted where TLS is asked for"
    )
    connection_pool: ConnectionPool | None = unsupported()

    def rules(self) -> Iterator[tuple[str, str]]:
        if not self.port.number:
            yield "port.number", "port must be between 1-65535"
        if self.bind and (problem := ip_problem(self.bind)):
            yield "bind", problem
        if problem := endpoint_problem(self.default_endpoint):
            yield "defaultEndpoint", problem
        if self.default_endpoint and self.port.target_port is not None:
            yield "port.targetPort", "may not be set together with defaultEndpoint"
        if self.tls is None:
            return
        if self.tls.mode in ("ISTIO_MUTUAL", "AUTO_PASSTHROUGH"):
            yield "tls.mode", f"{self.tls.mode} is not possible for an ingress listener"
        for name, value in (
            ("subjectAltNames", self.tls.subject_alt_names),
            ("httpsRedirect", self.tls.https_redirect),
            ("credentialName", self.tls.credential_name),
            ("credentialNames", self.tls.credential_names),
            ("tlsCertificates", self.tls.tls_certificates),
        ):
            if value:
                yield f"tls.{name}", "is not possible for an ingress listener"

    def refusals(self) -> Iterator[tuple[str, str]]:
        if self.default_endpoint.startswith(UNIX):
            yield "defaultEndpoint", _NO_UNIX
        if self.bind:
            yield "bind", _NO_BIND
        if self.capture_mode == "NONE":
            yield "captureMode", _NO_LISTENERS


def endpoint_problem(text: str) -> str | None:
    """Why `text` is not a defaultEndpoint (the instance's own address and a port, or unix://PATH), or None."""
    if not text:
        return None
    if text.startswith(UNIX):
        return unix_problem(text.removeprefix(UNIX))
    host, colon, port = text.rpartition(":")
    if not colon or port_problem(port):
        return f"{text!r} is not ADDRESS:PORT"
    if host not in ("", "127.0.0.1", "[::1]", "0.0.0.0", "[::]"):  # noqa: S104 - a name for the instance's own address
        return "the address must be one of 127.0.0.1, [::1], 0.0.0.0, [::], or be left out"
    return None


class OutboundTrafficPolicy(Spec):
    """Whether destinations outside the mesh may be called."""

    mode: Literal["REGISTRY_ONLY", "ALLOW_ANY"] = "ALLOW_ANY"
    egress_proxy: Destination | None = unsupported()

    def rules(self) -> Iterator[tuple[str, str]]:
        proxy = self.egress_proxy
        if proxy is None:
            return
        if self.mode != "ALLOW_ANY":
            yield "egressProxy", "may be set with mode ALLOW_ANY only"
        if problem := domain_problem(proxy.host, wildcard=False):
            yield "egressProxy.host", problem
        if proxy.port is None:
            yield "egressProxy.port", "is required"


class Sidecar(Spec):
    """What the proxies of some workloads see of the mesh."""

    workload_selector: LabelSelector | None = None
    ingress: tuple[IngressListener, ...] = ()
    egress: tuple[EgressListener, ...] = ()
    inbound_connection_pool: ConnectionPool | None = unsupported()
    outbound_traffic_policy: OutboundTrafficPolicy | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if not (self.ingress or self.egress or self.outbound_traffic_policy or self.inbound_connection_pool):
            yield (
                "",
                "at least one of ingress, egress, inboundConnectionPool, outboundTrafficPolicy must be set",
            )
        yield from _twice("ingress", [(listener.port, listener.bind) for listener in self.ingress])
        yield from _twice("egress", [(listener.port, listener.bind) for listener in self.egress])
        for index, listener in enumerate(self.egress[:-1]):
            if listener.port is None:
                yield f"egress[{index}].port", "only the last listener may have no port: it is for all others"


def _twice(path: str, listeners: list[tuple[SidecarPort | None, str]]) -> Iterator[tuple[str, str]]:
    """Two listeners of one port, whatever they bind, or of one Unix socket."""
    seen: set[object] = set()
    for index, (port, bind) in enumerate(listeners):
        if port is None:
            continue
        place: object = port.number or bind
        if place in seen:
            yield f"{path}[{index}].port.number", f"the port {place} is listed twice"
        seen.add(place)
