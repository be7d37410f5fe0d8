"""What a compile needs to know of a proxy; istiod/xds/node.py reads it from the node.

Rule: two proxies with equal ProxyInfo get equal resources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from registry.model import Port


@dataclass(frozen=True, slots=True)
class ProxyInfo:
    """One proxy: the workload it stands in front of, and the ports it listens on.

    `addresses` are the workload's, the preferred one first; an IPv6 one switches the dual-stack listeners on.
    `ports` are what the workload serves (HOSTMESH_WORKLOAD.ports): `number` is what callers use, and since
    capture redirects it unchanged, `target` is where the application listens.
    """

    namespace: str
    service_account: str = "default"
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    addresses: tuple[str, ...] = ()
    service: str = ""
    workload: str = ""
    ports: tuple[Port, ...] = ()
    outbound_port: int = 15001
    inbound_port: int = 15006
    locality: str = ""
    node: str = ""
    cluster: str = ""

    @property
    def ipv6(self) -> bool:
        """Whether the workload has an IPv6 address."""
        return any(":" in address for address in self.addresses)

    @property
    def ipv4(self) -> bool:
        """Whether the workload has an IPv4 address; one without any address is taken to have."""
        return not self.addresses or any(":" not in address for address in self.addresses)
