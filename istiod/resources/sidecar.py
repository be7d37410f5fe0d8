"""networking.istio.io Sidecar and Gateway: what a proxy sees, and what the mesh's edge listens on.

Sidecar scopes the hosts of its workloads and overrides where an inbound port goes; Gateway is validated and
has no effect yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from istiod.resources.destination_rule import ConnectionPool
from istiod.resources.schema import Bool, NonEmpty, PortNumber, Spec, Str, empty, host_problem, later
from istiod.resources.selector import LabelSelector
from istiod.resources.service_entry import PROTOCOLS
from istiod.resources.virtual_service import Destination

CaptureMode = Literal["DEFAULT", "IPTABLES", "NONE"]
TlsVersion = Literal["TLS_AUTO", "TLSV1_0", "TLSV1_1", "TLSV1_2", "TLSV1_3"]


class SidecarPort(Spec):
    """A port of the sidecar."""

    number: PortNumber
    protocol: Str = ""
    name: Str = ""
    target_port: PortNumber | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.protocol and self.protocol.upper() not in PROTOCOLS:
            yield "protocol", f"unsupported protocol {self.protocol!r}; one of {', '.join(PROTOCOLS)}"


class TlsCertificate(Spec):
    """One certificate by file names."""

    server_certificate: Str = ""
    private_key: Str = ""
    ca_certificates: Str = ""


class ServerTls(Spec):
    """TLS of a gateway's server or a sidecar's ingress."""

    https_redirect: Bool = False
    mode: Literal[
        "PASSTHROUGH", "SIMPLE", "MUTUAL", "AUTO_PASSTHROUGH", "ISTIO_MUTUAL", "OPTIONAL_MUTUAL"
    ] = "PASSTHROUGH"
    server_certificate: Str = ""
    private_key: Str = ""
    ca_certificates: Str = ""
    ca_crl: Str = ""
    credential_name: Str = ""
    credential_names: Annotated[tuple[NonEmpty, ...], Field(min_length=1, max_length=2)] | None = None
    ca_cert_credential_name: Str = ""
    tls_certificates: Annotated[tuple[TlsCertificate, ...], Field(min_length=1, max_length=2)] | None = None
    subject_alt_names: tuple[NonEmpty, ...] = ()
    verify_certificate_spki: tuple[NonEmpty, ...] = ()
    verify_certificate_hash: tuple[NonEmpty, ...] = ()
    min_protocol_version: TlsVersion = "TLS_AUTO"
    max_protocol_version: TlsVersion = "TLS_AUTO"
    cipher_suites: tuple[NonEmpty, ...] = ()
    insecure_skip_verify: Bool | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.credential_names is not None and self.tls_certificates is not None:
            yield "credentialNames", "only one of credentialNames or tlsCertificates can be set"
        if self.credential_name and self.credential_names is not None:
            yield "credentialNames", "only one of credentialName or credentialNames can be set"
        if self.credential_name and self.tls_certificates is not None:
            yield "tlsCertificates", "only one of credentialName or tlsCertificates can be set"
        if not self.credential_name and not self.credential_names and not self.tls_certificates:
            if self.mode in ("SIMPLE", "MUTUAL", "OPTIONAL_MUTUAL") and not self.server_certificate:
                yield "serverCertificate", f"must be set for {self.mode}"
            if self.mode in ("SIMPLE", "MUTUAL", "OPTIONAL_MUTUAL") and not self.private_key:
                yield "privateKey", f"must be set for {self.mode}"


def visible_host_problem(text: str) -> str | None:
    """Why `text` is not namespace/host (`./*`, `*/*`, `ns/*.example.com`), or None."""
    namespace, slash, host = text.partition("/")
    if not slash:
        return f"{text!r} must be namespace/dnsName"
    if not namespace:
        return "the namespace must not be empty; . is the resource's own, * is any, ~ is none"
    if host_problem(host, wildcard=True) and host != "*":
        return f"{host!r} is not a host name"
    return None


class EgressListener(Spec):
    """Hosts that the workload may call, perhaps only on one port."""

    port: SidecarPort | None = None
    bind: Str = later("")
    capture_mode: CaptureMode = "DEFAULT"
    hosts: tuple[NonEmpty, ...]

    def rules(self) -> Iterator[tuple[str, str]]:
        if not self.hosts:
            yield "hosts", "must not be empty"
        for index, host in enumerate(self.hosts):
            if problem := visible_host_problem(host):
                yield f"hosts[{index}]", problem

    def gaps(self) -> Iterator[tuple[str, str]]:
        if self.capture_mode == "NONE":
            yield "captureMode", "listeners without capture are not built yet"
        if self.port is not None:
            yield "port", "hosts are made visible on all of their ports"


class IngressListener(Spec):
    """One inbound port; `defaultEndpoint` says where its application listens."""

    port: SidecarPort
    bind: Str = later("")
    capture_mode: CaptureMode = "DEFAULT"
    default_endpoint: Str = ""
    tls: ServerTls | None = later()
    connection_pool: ConnectionPool | None = later()

    def rules(self) -> Iterator[tuple[str, str]]:
        if problem := endpoint_problem(self.default_endpoint):
            yield "defaultEndpoint", problem


def endpoint_problem(text: str) -> str | None:
    """Why `text` is not a defaultEndpoint (loopback or wildcard, and a port), or None."""
    if not text:
        return None
    host, colon, port = text.rpartition(":")
    if text.startswith("unix://"):
        return "Unix sockets are not supported by this version"
    if not colon or not port.isdigit() or not 1 <= int(port) <= 65535:
        return f"{text!r} is not ADDRESS:PORT"
    if host not in ("127.0.0.1", "[::1]", "0.0.0.0", "[::]"):  # noqa: S104 - a name for the instance's own address
        return "the address must be one of 127.0.0.1, [::1], 0.0.0.0, [::]"
    return None


class OutboundTrafficPolicy(Spec):
    """Whether destinations that the mesh does not know may be called."""

    mode: Literal["REGISTRY_ONLY", "ALLOW_ANY"] = "ALLOW_ANY"
    egress_proxy: Destination | None = later()


class Sidecar(Spec):
    """What the proxies of some workloads know about the mesh."""

    workload_selector: LabelSelector | None = None
    ingress: tuple[IngressListener, ...] = ()
    egress: tuple[EgressListener, ...] = ()
    inbound_connection_pool: ConnectionPool | None = later()
    outbound_traffic_policy: OutboundTrafficPolicy | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        numbers = [listener.port.number for listener in self.ingress]
        if len(set(numbers)) != len(numbers):
            yield "ingress", "the same port is listed twice"
        if not (self.ingress or self.egress or self.outbound_traffic_policy or self.inbound_connection_pool):
            yield (
                "",
                "at least one of ingress, egress, inboundConnectionPool, outboundTrafficPolicy must be set",
            )


class GatewayPort(Spec):
    """A port of a gateway."""

    number: PortNumber
    protocol: NonEmpty
    name: NonEmpty
    target_port: PortNumber | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.protocol.upper() not in PROTOCOLS:
            yield "protocol", f"unsupported protocol {self.protocol!r}; one of {', '.join(PROTOCOLS)}"


class Server(Spec):
    """One listening port of a gateway and the hosts it serves."""

    port: GatewayPort
    bind: Str = ""
    hosts: tuple[NonEmpty, ...]
    tls: ServerTls | None = None
    default_endpoint: Str = ""
    name: Str = ""

    def rules(self) -> Iterator[tuple[str, str]]:
        if not self.hosts:
            yield "hosts", "must not be empty"
        for index, text in enumerate(self.hosts):
            host = text.partition("/")[2] if "/" in text else text
            if problem := host_problem(host, wildcard=True):
                yield f"hosts[{index}]", problem
        if self.port.protocol.upper() in ("HTTPS", "TLS") and self.tls is None:
            yield "tls", f"must be set for {self.port.protocol}"


class Gateway(Spec):
    """What the mesh's edge listens on. Has no effect yet (see kinds.py)."""

    selector: dict[str, Str] = empty()
    servers: tuple[Server, ...] = ()

    def rules(self) -> Iterator[tuple[str, str]]:
        if not self.servers:
            yield "servers", "must not be empty"
