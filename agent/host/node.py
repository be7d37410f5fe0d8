"""What this host is: its addresses, its users, and how each workload names itself to istiod.

Rule: a node's id is stable over restarts, since the registry knows the instance by it.
Source: Istio's node id `sidecar~IP~NAME.NAMESPACE~DOMAIN` and node metadata keys; ours is HOSTMESH_WORKLOAD.
"""

from __future__ import annotations

import pwd
import re
import socket
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from envoy.config.core.v3 import base_pb2
from google.protobuf import json_format

from agent.host.config import AgentConfig, AgentConfigError, HostPort, Workload
from wire.spiffe import SpiffeId

_DESTINATIONS = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What the configuration cannot know."""

    name: str
    addresses: tuple[str, ...]


def host_facts(config: AgentConfig) -> HostFacts:
    """Name and addresses of this host; AgentConfigError when no address can be found."""
    addresses = config.addresses or _own_addresses([HostPort.parse(text) for text in config.istiod])
    if not addresses:
        raise AgentConfigError(["addresses: this host has no route to istiod; write its addresses here"])
    name = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().split(".")[0].lower()).strip("-")
    return HostFacts(name=(name or "host")[:63], addresses=addresses)


def _own_addresses(istiods: list[HostPort]) -> tuple[str, ...]:
    """The source addresses the kernel would use, v4 first: connecting a UDP socket sends nothing."""
    found: list[str] = []
    targets = [(family, host.host) for host in istiods for family in (socket.AF_INET, socket.AF_INET6)]
    targets += list(_DESTINATIONS.items())
    for family, host in targets:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            try:
                sock.connect((host, 9))
                address = sock.getsockname()[0]
            except OSError:
                continue  # no such family, no such name, or no route: the next one may do
        if address not in found and not address.startswith(("127.", "fe80:")) and address != "::1":
            found.append(address)
    return tuple(sorted(found, key=lambda address: ":" in address))


def uid_of(user: str | int) -> int:
    """The uid of a name or number; AgentConfigError when nobody has that name."""
    if isinstance(user, int):
        return user
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise AgentConfigError([f"user {user!r}: no such user on this host"]) from None


def all_users(config: AgentConfig) -> dict[str | int, int]:
    """The uids of every user that the configuration names; AgentConfigError lists all that do not exist."""
    named = [workload.user for workload in config.workloads] + [config.proxy.user]
    uids: dict[str | int, int] = {}
    problems: list[str] = []
    for user in [*named, *config.capture.exclude_outbound_users]:
        if user is None:
            continue
        try:
            uids[user] = uid_of(user)
        except AgentConfigError as error:
            problems += error.problems
    if problems:
        raise AgentConfigError(problems)
    return uids


def spiffe_id(config: AgentConfig, workload: Workload) -> SpiffeId:
    """The identity that the workload asks for."""
    return SpiffeId(config.trust_domain, workload.namespace, workload.service_account)


def istiod_id(config: AgentConfig) -> SpiffeId:
    """Who istiod must prove to be."""
    return SpiffeId(config.trust_domain, "hostmesh-system", "istiod")


def node_of(config: AgentConfig, index: int, facts: HostFacts) -> base_pb2.Node:
    """Envoy's Node for the workload at `index`, with Istio's metadata."""
    workload, ports = config.workloads[index], config.proxy_ports(index)
    name = f"{workload.service}-{facts.name}"
    locality = config.workload_locality(workload)
    metadata: dict[str, Any] = {
        "NAMESPACE": workload.namespace,
        "LABELS": dict(workload.labels),
        "SERVICE_ACCOUNT": workload.service_account,
        "CLUSTER_ID": config.cluster_id,
        "MESH_ID": config.mesh_id,
        "INSTANCE_IPS": ",".join(facts.addresses),
        "WORKLOAD_NAME": name,
        "NODE_NAME": facts.name,
        "ISTIO_VERSION": version("hostmesh"),
        "DNS_CAPTURE": "true" if config.capture.dns else "false",
        "PROXY_CONFIG": {"proxyListenPort": ports.outbound, "proxyInboundListenPort": ports.inbound},
        "HOSTMESH_WORKLOAD": {
            "service": workload.service,
            "namespace": workload.namespace,
            "ports": [
                port.model_dump(by_alias=True, exclude_none=True, mode="json") for port in workload.ports
            ],
            "locality": locality,
            "weight": workload.weight,
        },
    }
    domain = f"{workload.namespace}.svc.{config.domain}"
    region, zone, sub_zone = (*locality.split("/"), "", "", "")[:3]
    node = base_pb2.Node(
        id=f"sidecar~{facts.addresses[0]}~{name}.{workload.namespace}~{domain}",
        cluster=f"{workload.service}.{workload.namespace}",
        locality=base_pb2.Locality(region=region, zone=zone, sub_zone=sub_zone),
        user_agent_name="hostmesh-agent",
        user_agent_version=version("hostmesh"),
    )
    json_format.ParseDict(metadata, node.metadata)
    return node
