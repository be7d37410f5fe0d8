"""What a proxy says about itself: Envoy's Node with Istio's metadata, as one frozen value.

Job: parse the node id `sidecar~IP~NAME.NAMESPACE~DOMAIN` and the metadata keys of Istio and ours; check them
against the identity of the peer's certificate.
Rule: everything here comes from the network: a wrong type or shape raises `NodeError` with the key's path.
Not for: what the proxy gets (`istiod.compile`) nor its registration (`istiod.registration`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from envoy.config.core.v3 import base_pb2
from google.protobuf import json_format

from istiod.proxy import ProxyInfo
from registry.model import MAX_WEIGHT, Health, Instance, Port
from wire.spiffe import SpiffeId

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_KINDS = ("sidecar",)
"""Istio's others are not served: a gateway (router) would get a sidecar's listeners, and pass on what it should judge."""
DEFAULT_OUTBOUND_PORT = 15001
DEFAULT_INBOUND_PORT = 15006


class NodeError(ValueError):
    """The node cannot be served; the message names the offending key."""


@dataclass(frozen=True)
class Workload:
    """HOSTMESH_WORKLOAD: what this proxy's workload serves. `locality` is `region/zone/subzone`."""

    service: str
    namespace: str
    ports: tuple[Port, ...]
    locality: str = ""
    weight: int = 0


@dataclass(frozen=True)
class ProxyNode:
    """One connected proxy as it describes itself; `addresses` are the host's, the preferred first."""

    id: str
    kind: str
    name: str
    namespace: str
    domain: str
    addresses: tuple[str, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    service_account: str = "default"
    cluster: str = ""
    host: str = ""
    workload_name: str = ""
    version: str = ""
    dns_capture: bool = False
    outbound_port: int = DEFAULT_OUTBOUND_PORT
    inbound_port: int = DEFAULT_INBOUND_PORT
    workload: Workload | None = None

    @property
    def key(self) -> str:
        """`NAMESPACE/NAME`, as meshctl shows it."""
        return f"{self.namespace}/{self.name}"

    def info(self) -> ProxyInfo:
        """What the compiler needs to know."""
        workload = self.workload
        return ProxyInfo(
            namespace=self.namespace,
            service_account=self.service_account,
            labels=self.labels,
            addresses=self.addresses,
            service=workload.service if workload is not None else "",
            workload=self.workload_name or self.name,
            ports=workload.ports if workload is not None else (),
            outbound_port=self.outbound_port,
            inbound_port=self.inbound_port,
            locality=workload.locality if workload is not None else "",
            node=self.host,
            cluster=self.cluster,
        )

    def instance(self, owner: str) -> Instance | None:
        """The catalog's instance for this proxy's workload, unhealthy until its agent says otherwise."""
        if self.workload is None:
            return None
        return Instance(
            id=self.key,
            service=self.workload.service,
            namespace=self.workload.namespace,
            addresses=self.addresses,
            ports=self.workload.ports,
            labels=dict(self.labels),
            service_account=self.service_account,
            locality=self.workload.locality,
            weight=self.workload.weight,
            health=Health.UNHEALTHY,
            node=self.host,
            workload=self.workload_name or self.name,
            owner=owner,
            mtls=True,
        )


def parse_node(node: base_pb2.Node) -> ProxyNode:
    """Envoy's Node (config.core.v3) with Istio's conventions. Raises `NodeError`."""
    parts = node.id.split("~")
    if len(parts) != 4:
        raise NodeError(f"node id {node.id!r}: expected TYPE~IP~NAME.NAMESPACE~DOMAIN")
    kind, address, full_name, domain = parts
    if kind not in _KINDS:
        raise NodeError(
            f"node id {node.id!r}: type {kind!r} is not served by this version, only {', '.join(_KINDS)}"
        )
    name, _, id_namespace = full_name.rpartition(".")
    metadata: dict[str, Any] = json_format.MessageToDict(node.metadata)
    namespace = _text(metadata, "NAMESPACE") or id_namespace
    if not name or not _NAME.fullmatch(name):
        raise NodeError(f"node id {node.id!r}: no valid NAME.NAMESPACE")
    if not _LABEL.fullmatch(namespace) or namespace != id_namespace:
        raise NodeError(f"node id {node.id!r}: namespace differs from metadata NAMESPACE {namespace!r}")
    addresses = _addresses(_text(metadata, "INSTANCE_IPS") or address)
    proxy = metadata.get("PROXY_CONFIG", {})
    if not isinstance(proxy, dict):
        raise NodeError("metadata PROXY_CONFIG: an object is expected here")
    workload = _workload(metadata.get("HOSTMESH_WORKLOAD"), namespace, node)
    return ProxyNode(
        id=node.id,
        kind=kind,
        name=name,
        namespace=namespace,
        domain=domain,
        addresses=addresses,
        labels=_labels(metadata.get("LABELS", {})),
        service_account=_text(metadata, "SERVICE_ACCOUNT") or "default",
        cluster=_text(metadata, "CLUSTER_ID") or node.cluster,
        host=_text(metadata, "NODE_NAME"),
        workload_name=_text(metadata, "WORKLOAD_NAME"),
        version=_text(metadata, "ISTIO_VERSION") or _user_agent(node),
        dns_capture=_text(metadata, "DNS_CAPTURE").lower() == "true",
        outbound_port=_port(
            proxy.get("proxyListenPort", DEFAULT_OUTBOUND_PORT), "PROXY_CONFIG.proxyListenPort"
        ),
        inbound_port=_port(
            proxy.get("proxyInboundListenPort", DEFAULT_INBOUND_PORT), "PROXY_CONFIG.proxyInboundListenPort"
        ),
        workload=workload,
    )


def check_identity(node: ProxyNode, peer: SpiffeId, trust_domains: Collection[str]) -> None:
    """The node must be who its certificate says, in one of the mesh's trust domains. Raises `NodeError`."""
    claimed = SpiffeId(peer.trust_domain, node.namespace, node.service_account)
    if peer.trust_domain not in trust_domains or peer != claimed:
        raise NodeError(f"node {node.key} claims {claimed}, but its certificate is for {peer}")


def _workload(value: Any, namespace: str, node: base_pb2.Node) -> Workload | None:
    if value is None:
        return None
    path = "metadata HOSTMESH_WORKLOAD"
    if not isinstance(value, dict):
        raise NodeError(f"{path}: an object is expected here")
    service = value.get("service", "")
    if not isinstance(service, str) or not _LABEL.fullmatch(service):
        raise NodeError(f"{path}.service: {service!r} is not a DNS label")
    if value.get("namespace", namespace) != namespace:
        # A certificate vouches for its own namespace only; a service of another one is not its to serve.
        raise NodeError(f"{path}.namespace: must be the node's own, {namespace}")
    ports = value.get("ports", [])
    if not isinstance(ports, list) or len(ports) > 200:
        raise NodeError(f"{path}.ports: a list of at most 200 ports is expected here")
    parsed = tuple(_service_port(port, f"{path}.ports[{index}]") for index, port in enumerate(ports))
    numbers = [port.number for port in parsed]
    if len(set(numbers)) != len(numbers):
        raise NodeError(f"{path}.ports: a port number appears twice")
    locality = value.get("locality", "") or "/".join(
        part for part in (node.locality.region, node.locality.zone, node.locality.sub_zone) if part
    )
    weight = value.get("weight", 0)
    if not isinstance(locality, str) or len(locality) > 200:
        raise NodeError(f"{path}.locality: a text is expected here")
    if not isinstance(weight, int | float) or not 0 <= weight <= MAX_WEIGHT or weight != int(weight):
        raise NodeError(f"{path}.weight: a whole number of at most {MAX_WEIGHT} is expected here")
    return Workload(service, namespace, parsed, locality, int(weight))


def _service_port(value: Any, path: str) -> Port:
    if not isinstance(value, dict):
        raise NodeError(f"{path}: an object is expected here")
    number = _port(value.get("port"), f"{path}.port")
    target = value.get("targetPort", 0)
    name, protocol = value.get("name", ""), value.get("protocol", "")
    for key, text in (("name", name), ("protocol", protocol)):
        if (
            not isinstance(text, str)
            or len(text) > 63
            or (text and not re.fullmatch(r"[A-Za-z0-9._-]+", text))
        ):
            raise NodeError(f"{path}.{key}: {text!r} is not a port {key}")
    return Port(name, number, protocol, _port(target, f"{path}.targetPort") if target else 0)


def _port(value: Any, path: str) -> int:
    if isinstance(value, str) and len(value) <= 5 and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 65536:
        raise NodeError(f"metadata {path}: {value!r} is not a port number")
    return int(value)


def _addresses(text: str) -> tuple[str, ...]:
    found: list[str] = []
    for part in text.split(","):
        try:
            found.append(str(ipaddress.ip_address(part.strip())))
        except ValueError as error:
            raise NodeError(f"metadata INSTANCE_IPS: {part!r} is not an IP address") from error
    if len(found) > 32:
        raise NodeError("metadata INSTANCE_IPS: more than 32 addresses")
    return tuple(dict.fromkeys(found))


def _labels(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or len(value) > 128:
        raise NodeError("metadata LABELS: an object of at most 128 texts is expected here")
    for key, text in value.items():
        if not isinstance(text, str) or len(key) > 317 or len(text) > 255:
            raise NodeError(f"metadata LABELS.{key[:80]}: a text is expected here")
    return dict(value)


def _text(metadata: Mapping[str, Any], key: str) -> str:
    value = metadata.get(key, "")
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str) or len(value) > 1024:
        raise NodeError(f"metadata {key}: a text is expected here")
    return value


def _user_agent(node: base_pb2.Node) -> str:
    build = node.user_agent_build_version.version
    if node.HasField("user_agent_build_version"):
        return f"{node.user_agent_name} {build.major_number}.{build.minor_number}.{build.patch}"
    return f"{node.user_agent_name} {node.user_agent_version}".strip()
