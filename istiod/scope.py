"""What one proxy sees of the mesh: exportTo of others and the Sidecar of its own.

Rule: pure; proxies with the same Sidecar and namespace share one Scope (Snapshot keeps it).
Not for: what is made of it (istiod/compile).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from istiod.resources.document import Document
from istiod.resources.sidecar import Sidecar
from istiod.resources.virtual_service import VirtualService
from istiod.services import MeshService


@dataclass(frozen=True, slots=True)
class Scope:
    """The services and VirtualServices that a proxy of `namespace` can see.

    `services` has every host once. `virtual_services` are in order of age and have the gateway `mesh`.
    """

    namespace: str
    sidecar: Document[Sidecar] | None
    services: Mapping[str, MeshService]
    virtual_services: tuple[Document[VirtualService], ...]
    registry_only: bool
    key: str
    """Changes whenever any of the above does."""
    reads_key: str
    """Changes whenever anything does that a proxy with this scope can see: also endpoints and their rules."""


def exported(export_to: tuple[str, ...], home: str, namespace: str) -> bool:
    """Istio's exportTo: `*` is everyone, `.` the own namespace, `~` nobody, else a namespace's name."""
    if "~" in export_to:
        return False
    return any(word == "*" or word == namespace or (word == "." and home == namespace) for word in export_to)


def host_covers(pattern: str, host: str) -> bool:
    """Whether a host pattern (`*`, `*.example.com`, `name`) covers a host, itself perhaps a pattern."""
    if pattern == "*" or pattern == host:
        return True
    return pattern.startswith("*") and host.removeprefix("*").endswith(pattern[1:])


def server_names(names: Iterable[str]) -> list[str] | None:
    """Server names as Envoy matches them: lower case, whole or `*.suffix`; [] for any, None when none can match.

    `*` is any (Istio); `*part.example.com` is nothing that Envoy could match.
    """
    given = [name.lower().removesuffix(".") for name in names]
    if not given or "*" in given:
        return []
    usable = [name for name in dict.fromkeys(given) if "*" not in name.removeprefix("*.")]
    return usable or None


def hosts_meet(left: str, right: str) -> bool:
    """Whether two host patterns have a host in common."""
    return host_covers(left, right) or host_covers(right, left)


@dataclass(frozen=True, slots=True)
class EgressHost:
    """One `namespace/host` of a Sidecar, its namespace resolved (`*` any, `~` none)."""

    namespace: str
    host: str

    def admits(self, namespace: str, host: str) -> bool:
        """Whether a service or rule of that namespace and host is imported."""
        return self.namespace in ("*", namespace) and host_covers(self.host, host)

    def meets(self, namespace: str, host: str) -> bool:
        """As `admits`, for VirtualService hosts, which may be patterns wider than the import."""
        return self.namespace in ("*", namespace) and hosts_meet(self.host, host)


def egress_hosts(sidecar: Document[Sidecar], namespace: str) -> tuple[EgressHost, ...] | None:
    """The imports of a Sidecar for a proxy of `namespace`; None when it does not limit them.

    `.` is the proxy's namespace: the root namespace's Sidecar is the default of all the others (Istio).
    """
    if not sidecar.spec.egress:
        return None
    found = []
    for listener in sidecar.spec.egress:
        for text in listener.hosts:
            named, _, host = text.partition("/")
            home = namespace if named == "." else named
            found.append(EgressHost(home, host.lower()))
    return tuple(found)
