"""PeerAuthentication: which mode is in force for a workload and port, and hence the inbound filter chains.

Rule (Istio): port over workload over namespace over mesh; UNSET inherits; nothing at all is PERMISSIVE; the
older of two policies of the same width wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from istiod.resources.document import Document
from istiod.resources.names import port_problem
from istiod.resources.security import PeerAuthentication
from istiod.resources.selector import selector_labels
from istiod.services import includes
from istiod.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class PeerModes:
    """The modes of one workload: `ports` override `workload`. Never UNSET."""

    workload: str
    ports: Mapping[int, str]

    def of(self, port: int) -> str:
        """`STRICT`, `PERMISSIVE` or `DISABLE` for one port."""
        return self.ports.get(port, self.workload)


def peer_modes(snapshot: Snapshot, namespace: str, labels: Mapping[str, str]) -> PeerModes:
    """What is in force for a workload."""
    mode = "PERMISSIVE"
    root = snapshot.mesh.root_namespace
    if _unread(snapshot, namespace):
        return PeerModes("STRICT", {})
    for level in (_wide(snapshot, root), _wide(snapshot, namespace) if namespace != root else None):
        mode = _mode(level, mode)
    narrow = _narrow(snapshot, namespace, labels)
    mode = _mode(narrow, mode)
    ports = {}
    if narrow is not None:
        for port, setting in (narrow.spec.port_level_mtls or {}).items():
            if port_problem(port) is None:
                ports[int(port)] = mode if setting.mode == "UNSET" else setting.mode
    return PeerModes(mode, ports)


def disabling_key(snapshot: Snapshot) -> str:
    """The content of all policies that switch mutual TLS off somewhere: what endpoints' metadata reads of them."""
    found = [
        snapshot.key(document)
        for document in snapshot.of("PeerAuthentication")
        if "DISABLE"
        in {_mode(document, ""), *(one.mode for one in (document.spec.port_level_mtls or {}).values())}
    ]
    if not found:
        return ""
    # Where one policy disables, another may enable again: all of them count, and which of them are the mesh's.
    return ",".join((snapshot.mesh.root_namespace, *map(snapshot.key, snapshot.of("PeerAuthentication"))))


def _mode(document: Document[PeerAuthentication] | None, inherited: str) -> str:
    if document is None or document.spec.mtls is None or document.spec.mtls.mode == "UNSET":
        return inherited
    return document.spec.mtls.mode


def _unread(snapshot: Snapshot, namespace: str) -> bool:
    """A policy of the namespace cannot be read, nor which workloads it selects: any of them, before all others."""
    policies = snapshot.of("PeerAuthentication")
    return any(one.reach_unknown and one.resource.namespace == namespace for one in policies)


def _wide(snapshot: Snapshot, namespace: str) -> Document[PeerAuthentication] | None:
    found = None
    for document in snapshot.of("PeerAuthentication"):
        if document.resource.namespace == namespace and not selector_labels(document.spec):
            if document.reach_unknown:
                return document
            found = found or document
    return found


def _narrow(
    snapshot: Snapshot, namespace: str, labels: Mapping[str, str]
) -> Document[PeerAuthentication] | None:
    for document in snapshot.of("PeerAuthentication"):
        wanted = selector_labels(document.spec)
        if document.resource.namespace == namespace and wanted and includes(labels, wanted):
            return document
    return None
