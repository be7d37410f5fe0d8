"""Which proxies a change is tried on: one of each kind that can see it.

Rule: pure. Two proxies are of one kind when no changed resource and no part of the compile that reads one can tell
them apart: namespace, Sidecar, address families, the labels that the changed resources look at, and, where a changed
resource selects workloads, the ports it is compiled for.
Not for: what becomes of the change there (`judge`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from istiod.compile.view import source_labels
from istiod.proxy import ProxyInfo
from istiod.resources.document import Document
from istiod.resources.selector import selector_labels
from istiod.resources.virtual_service import VirtualService
from istiod.services import includes, protocol_of
from istiod.snapshot import Snapshot
from registry.model import Instance, Port, Service

MOST = 48
"""Kinds that one change is tried on; of more, those of the changed resources' own namespaces come first."""


def proxy_of(instance: Instance) -> ProxyInfo:
    """The proxy that stands in front of a catalog's instance, connected or not."""
    return ProxyInfo(
        namespace=instance.namespace,
        service_account=instance.service_account,
        labels=instance.labels,
        addresses=instance.addresses,
        service=instance.service,
        workload=instance.workload,
        ports=instance.ports,
        locality=instance.locality,
        node=instance.node,
    )


def kinds(
    snapshot: Snapshot, proxies: Iterable[ProxyInfo], changed: Sequence[Document[Any]]
) -> list[ProxyInfo]:
    """One proxy of each kind, those of the changed resources' namespaces first. `snapshot` has the change.

    In a namespace without proxies one is imagined: the first to come must find a configuration that works.
    """
    homes = {one.resource.namespace for one in changed}
    labels = sorted(
        {
            label
            for one in changed
            if isinstance(one.spec, VirtualService)
            for label in source_labels(one.spec)
        }
    )
    selective = [(one, wanted) for one in changed if (wanted := selector_labels(one.spec))]
    found: dict[Hashable, ProxyInfo] = {}
    seen: set[Hashable] = set()
    for proxy in (*proxies, *(_imagined(home, selective) for home in sorted(homes))):
        look = (proxy.namespace, tuple(sorted(proxy.labels.items())), proxy.ports, proxy.ipv4, proxy.ipv6)
        if look in seen:
            continue
        seen.add(look)
        sidecar = snapshot.scope(proxy).sidecar
        chosen = tuple(
            one.resource.namespace in (proxy.namespace, snapshot.mesh.root_namespace)
            and includes(proxy.labels, wanted)
            for one, wanted in selective
        )
        everywhere = len(selective) < len(changed)
        key = (
            proxy.namespace,
            sidecar.resource.key if sidecar is not None else None,
            proxy.ipv4,
            proxy.ipv6,
            tuple(proxy.labels.get(label) for label in labels),
            chosen,
            _shape(proxy.ports) if any(chosen) or everywhere else (),
        )
        found.setdefault(key, proxy)
    ordered = sorted(found.values(), key=lambda one: one.namespace not in homes)
    return ordered[:MOST]


def to_come(snapshot: Snapshot, changed: Sequence[Document[Any]]) -> list[Service]:
    """Services that do not exist yet and that the changed resources are about: they are compiled only when one comes.

    With an HTTP port of 80, on which hosts that only a VirtualService names are routed, too.
    """
    suffix = f".svc.{snapshot.mesh.domain_suffix}"
    named: dict[tuple[str, str], None] = {}
    for one in changed:
        written = getattr(one.spec, "hosts", None) or [getattr(one.spec, "host", "")]
        for text in written:
            host = snapshot.resolve(text, one.resource.namespace) if isinstance(text, str) and text else ""
            if not host or host in snapshot.by_host or host.startswith("*"):
                continue
            name, _, home = host.removesuffix(suffix).partition(".")
            if host.endswith(suffix) and home and "." not in home:
                named[name, home] = None
            else:
                named["trial", one.resource.namespace] = None
    ports = (Port("http", 80),)
    return [
        Service(name, home, ports, f"240.240.127.{number % 250 + 1}", f"2001:2::7f{number:02x}")
        for number, (name, home) in enumerate(named)
    ]


def _shape(ports: tuple[Port, ...]) -> frozenset[object]:
    """What inbound listeners read of ports, their numbers aside."""
    return frozenset(protocol_of(port.name, port.number, port.protocol) for port in ports)


def _imagined(namespace: str, selective: Sequence[tuple[Document[Any], object]]) -> ProxyInfo:
    labels: dict[str, str] = {}
    for one, _ in selective:
        if one.resource.namespace == namespace:
            labels = dict(selector_labels(one.spec))
            break
    ports = (Port("http", 8080), Port("tcp", 9000), Port("auto", 9001))
    return ProxyInfo(namespace, "default", labels, ("192.0.2.1", "2001:db8::1"), "", "trial", ports)
