"""Istio's NameTable: what the DNS of a proxy's host answers for the names of the mesh.

Rule: only names with addresses of their own; everything else is the host's own resolver's business. A host without
IPv6 (or IPv4) is not told addresses that its proxy does not listen for.
"""

from __future__ import annotations

from istiod.compile.view import View
from istiod.services import MeshService
from wire.proto import name_table_pb2

MESH_REGISTRY = "Hostmesh"
EXTERNAL_REGISTRY = "External"


def name_table(view: View) -> name_table_pb2.NameTable:
    """Every visible host with its virtual addresses; `alt_hosts` are the shorter names that mean the same here."""
    table = name_table_pb2.NameTable()
    for host, service in view.scope.services.items():
        addresses = view.addresses(service)
        if not addresses:
            continue
        info = table.table[host]
        info.ips.extend(addresses)
        info.registry = MESH_REGISTRY if service.origin == "registry" else EXTERNAL_REGISTRY
        if service.origin == "registry":
            info.shortname = service.name
            info.namespace = service.namespace
            info.alt_hosts.extend(_shorter(service, view.proxy.namespace))
    return table


def _shorter(service: MeshService, namespace: str) -> list[str]:
    found = [f"{service.name}.{service.namespace}", f"{service.name}.{service.namespace}.svc"]
    return [service.name, *found] if service.namespace == namespace else found
