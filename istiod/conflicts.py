"""What parts of the stored documents have no effect because an older one has it, or because nothing could match.

Rule: a compile leaves such a part out in silence (compile/chains.py, merge.py); here it gets a name. Judged for the
whole mesh: a proxy whose Sidecar hides the older document is not limited by it.
Not for: documents that are wrong in themselves (istiod/resources).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from istiod.resources.destination_rule import DestinationRule
from istiod.resources.document import Document
from istiod.resources.problem import Problem, Severity
from istiod.resources.traffic.load_balancer import LoadBalancer
from istiod.resources.virtual_service import VirtualService
from istiod.scope import exported, host_covers, server_names
from istiod.services import MeshService, Protocol, ServicePort
from registry.vips import all_virtual

_ELSEWHERE = ""
"""Stands for every namespace that no document names."""


def between_entries(
    services: Iterable[MeshService], lost: Iterable[tuple[MeshService, MeshService]]
) -> Iterator[Problem]:
    """ServiceEntries that claim what an older one has. `lost` are entries of a host, each with the older one."""
    for service, older in lost:
        message = (
            f"{service.host} belongs to the older ServiceEntry {older.origin}: "
            "only entries with the same resolution, location and exportTo are merged"
        )
        yield _problem(service, "spec.hosts", message)
    taken: dict[tuple[str, int], list[MeshService]] = {}
    for service in services:
        for port in service.ports:
            for claim in _claims(service, port):
                holders = taken.setdefault((claim, port.number), [])
                winner = next((one for one in holders if _meet(one, service)), None)
                if winner is None:
                    holders.append(service)
                elif service.origin != "registry":
                    place = (
                        f"{claim} on port {port.number}" if claim else f"port {port.number} without address"
                    )
                    message = (
                        f"{place} belongs to the older {_called(winner)}; {service.host} does not get it"
                    )
                    yield _problem(service, "spec.addresses", message)


def of_rules(
    rules: Iterable[tuple[str, Document[DestinationRule]]], services: Iterable[MeshService]
) -> Iterator[Problem]:
    """DestinationRules, each with its host in full, that ask for what a virtual address cannot have."""
    known = list(services)
    for host, rule in rules:
        for path, balancer in _balancers(rule.spec):
            if balancer is None or balancer.simple != "PASSTHROUGH":
                continue
            if any(all_virtual(one.addresses) for one in known if host_covers(host, one.host)):
                message = f"PASSTHROUGH has no effect: {host} has virtual addresses only, which exist nowhere"
                yield Problem(Severity.WARNING, f"spec.{path}loadBalancer.simple", message, "", rule.subject)


def of_server_names(
    routes: Iterable[Document[VirtualService]], services: Iterable[MeshService]
) -> Iterator[Problem]:
    """Server names that Envoy cannot match: a wildcard for a part of a label."""
    reason = "Envoy matches server names whole or as *.suffix only"
    for document in routes:
        for index, rule in enumerate(document.spec.tls):
            for position, match in enumerate(rule.match):
                for name in match.sni_hosts:
                    if server_names([name]) is None:
                        path = f"spec.tls[{index}].match[{position}].sniHosts"
                        yield Problem(Severity.WARNING, path, f"{name!r}: {reason}", "", document.subject)
    for service in services:
        if (
            any(port.protocol is Protocol.TLS for port in service.ports)
            and server_names([service.host]) is None
        ):
            yield _problem(service, "spec.hosts", f"{service.host!r}: {reason}")


def _balancers(spec: DestinationRule) -> Iterator[tuple[str, LoadBalancer | None]]:
    policies: list[tuple[str, Any]] = [("trafficPolicy.", spec.traffic_policy)]
    policies += [(f"subsets[{n}].trafficPolicy.", one.traffic_policy) for n, one in enumerate(spec.subsets)]
    for path, policy in policies:
        if policy is not None:
            yield path, policy.load_balancer
            for number, port in enumerate(policy.port_level_settings):
                yield f"{path}portLevelSettings[{number}].", port.load_balancer


def _claims(service: MeshService, port: ServicePort) -> Iterable[str]:
    """What of the network an opaque port takes for itself: addresses, blocks, or ("") all that others leave."""
    if port.protocol.is_http or port.protocol is Protocol.UDP:
        return ()
    if service.addresses:
        return service.addresses
    return () if port.protocol in (Protocol.TLS, Protocol.AUTO) else ("",)


def _meet(one: MeshService, other: MeshService) -> bool:
    """Whether any namespace sees both."""
    named = {*one.export_to, *other.export_to} - {".", "*", "~"}
    homes = {one.namespace, other.namespace, *named, _ELSEWHERE}
    return any(
        exported(one.export_to, one.namespace, home) and exported(other.export_to, other.namespace, home)
        for home in homes
    )


def _called(service: MeshService) -> str:
    if service.origin == "registry":
        return f"service {service.namespace}/{service.name}"
    return f"ServiceEntry {service.origin} ({service.host})"


def _problem(service: MeshService, path: str, message: str) -> Problem:
    return Problem(Severity.WARNING, path, message, "", f"ServiceEntry {service.origin}")
