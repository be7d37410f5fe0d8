"""The mesh at one moment: services, endpoints and resources, immutable and indexed for compiling.

Rule: built from registry values alone; equal inputs give equal keys, so caches survive a rebuild. A stored
resource that cannot be read is left out and reported, a policy fails closed (istiod/resources/stored.py).
Not for: Envoy's resources (istiod/compile) or watching the registry.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from istiod import conflicts
from istiod.access.facts import Access
from istiod.access.group import grants_of
from istiod.access.policy import revoked
from istiod.merge import merge_entries
from istiod.proxy import ProxyInfo
from istiod.resources.destination_rule import DestinationRule
from istiod.resources.document import Document
from istiod.resources.mesh_config import MeshConfig
from istiod.resources.problem import Problem, Severity
from istiod.resources.routing.http_route import Delegate
from istiod.resources.selector import selector_labels
from istiod.resources.sidecar import Sidecar
from istiod.resources.stored import Stored, damaged, stored
from istiod.resources.virtual_service import VirtualService
from istiod.scope import EgressHost, Scope, egress_hosts, exported, host_covers
from istiod.services import MeshService, from_entries, from_registry, includes
from registry.model import Instance, Resource, ResourceKey, Service

Typed = tuple[Stored, str]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment of the mesh. Make it with `build`."""

    mesh: MeshConfig
    mesh_key: str
    services: tuple[MeshService, ...]
    by_host: Mapping[str, tuple[MeshService, ...]]
    """Services of the same host in several namespaces: the catalog's first, then by age."""
    documents: Mapping[str, tuple[Document[Any], ...]]
    """By kind, in order of age, then namespace and name: the older wins a conflict, as in Istio."""
    keys: Mapping[ResourceKey, str]
    """A content hash of every resource."""
    problems: tuple[Problem, ...] = ()
    """What cannot be used, and as warnings what is used and would be refused today."""
    conflicts: tuple[Problem, ...] = ()
    """Parts of stored resources that have no effect (istiod/conflicts.py)."""
    instances: tuple[Instance, ...] = ()
    access: Access = field(default_factory=Access)
    """The registry's grants and those of WorkloadGroups."""
    _typed: Mapping[tuple[ResourceKey, str], Typed] = field(default_factory=dict, repr=False)
    _rules: Mapping[tuple[str, str], tuple[Document[DestinationRule], ...]] = field(
        default_factory=dict, repr=False
    )
    _patterns: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    """The wildcard hosts of each namespace's DestinationRules, the longest first."""
    _delegates: Mapping[tuple[str, str], Document[VirtualService]] = field(default_factory=dict, repr=False)
    """VirtualServices without hosts, by namespace and name."""
    _scopes: dict[tuple[str, str], Scope] = field(default_factory=dict, repr=False, compare=False)

    def of(self, kind: str) -> tuple[Document[Any], ...]:
        """All resources of a kind, the oldest first."""
        return self.documents.get(kind, ())

    def key(self, document: Document[Any]) -> str:
        """The content hash of a resource."""
        return self.keys[document.resource.key]

    def resolve(self, host: str, namespace: str) -> str:
        """A host as a resource of `namespace` writes it, in full: a name without dots is a service there."""
        if "." in host or "*" in host:
            return host.lower()
        return f"{host}.{namespace}.svc.{self.mesh.domain_suffix}".lower()

    def delegate(self, root: Document[VirtualService], named: Delegate) -> Document[VirtualService] | None:
        """The VirtualService without hosts that a rule of `root` names, if it is exported to root's namespace."""
        home = root.resource.namespace
        found = self._delegates.get((named.namespace or home, named.name))
        if found is None:
            return None
        export_to = found.spec.export_to or self.mesh.default_virtual_service_export_to
        return found if exported(export_to, found.resource.namespace, home) else None

    def delegates_of(self, root: Document[VirtualService]) -> list[Document[VirtualService]]:
        """All delegates of a VirtualService."""
        named = [rule.delegate for rule in root.spec.http if rule.delegate is not None]
        return [found for one in named if (found := self.delegate(root, one)) is not None]

    def selected(self, kind: str, namespace: str, labels: Mapping[str, str]) -> list[Document[Any]]:
        """Resources of `namespace` whose selector (`selector` or `workloadSelector`) takes a workload in."""
        return [
            document
            for document in self.of(kind)
            if document.resource.namespace == namespace and includes(labels, selector_labels(document.spec))
        ]

    def scope(self, proxy: ProxyInfo) -> Scope:
        """What the proxy sees."""
        sidecar = self._sidecar(proxy)
        cached = (proxy.namespace, self.key(sidecar) if sidecar else "")
        scope = self._scopes.get(cached)
        if scope is None:
            scope = self._scopes[cached] = self._make_scope(proxy.namespace, sidecar)
        return scope

    def rules_for(
        self, host: str, service_namespace: str, proxy: ProxyInfo
    ) -> tuple[Document[DestinationRule], ...]:
        """The DestinationRules in force for calls of `proxy` to `host`, which are merged in this order.

        Istio's order: the caller's namespace, the service's, the root namespace; in the first that has any,
        the most specific host wins, and all rules of that host count; but a rule that selects the caller's workload
        replaces those that select none.
        """
        seen = []
        for namespace in (proxy.namespace, service_namespace, self.mesh.root_namespace):
            if not namespace or namespace in seen:
                continue
            seen.append(namespace)
            found = tuple(
                rule
                for rule in self._most_specific(namespace, host)
                if (namespace == proxy.namespace or self._exports_rule(rule, proxy.namespace))
                and self._rule_applies(rule, proxy)
            )
            chosen = tuple(rule for rule in found if rule.spec.workload_selector is not None)
            if chosen:
                selector = chosen[0].spec.workload_selector
                return tuple(rule for rule in chosen if rule.spec.workload_selector == selector)
            if found:
                return found
        return ()

    def _exports_rule(self, rule: Document[DestinationRule], namespace: str) -> bool:
        export_to = rule.spec.export_to or self.mesh.default_destination_rule_export_to
        return exported(export_to, rule.resource.namespace, namespace)

    def _rule_applies(self, rule: Document[DestinationRule], proxy: ProxyInfo) -> bool:
        selector = rule.spec.workload_selector
        if selector is None:
            return True
        return rule.resource.namespace == proxy.namespace and includes(proxy.labels, selector.match_labels)

    def _most_specific(self, namespace: str, host: str) -> tuple[Document[DestinationRule], ...]:
        exact = self._rules.get((namespace, host))
        if exact:
            return exact
        for pattern in self._patterns.get(namespace, ()):
            if host_covers(pattern, host):
                return self._rules[(namespace, pattern)]
        return ()

    def _sidecar(self, proxy: ProxyInfo) -> Document[Sidecar] | None:
        """Istio: a Sidecar that selects the workload, else the namespace's, else the root namespace's."""
        plain: Document[Sidecar] | None = None
        for document in self.of("Sidecar"):
            labels = selector_labels(document.spec)
            if document.resource.namespace == proxy.namespace:
                if labels and includes(proxy.labels, labels):
                    return document
                if not labels and (plain is None or plain.resource.namespace != proxy.namespace):
                    plain = document
            elif document.resource.namespace == self.mesh.root_namespace and not labels and plain is None:
                plain = document
        return plain

    def _make_scope(self, namespace: str, sidecar: Document[Sidecar] | None) -> Scope:
        imports = egress_hosts(sidecar, namespace) if sidecar else None
        policy = self.mesh.outbound_traffic_policy.mode
        if sidecar and sidecar.spec.outbound_traffic_policy:
            policy = sidecar.spec.outbound_traffic_policy.mode
        routes = tuple(
            document
            for document in self.of("VirtualService")
            if document.spec.hosts
            and document.spec.applies_to_mesh()
            and self._sees(document, namespace, imports)
        )
        # Istio: the own namespace's, those that were exported to it, then everybody's; each by age.
        routes = tuple(sorted(routes, key=lambda document: self._publicity(document, namespace)))
        wanted = self._destinations(routes) if imports is not None else frozenset()
        services: dict[str, MeshService] = {}
        for host, candidates in self.by_host.items():
            found = [one for one in candidates if exported(one.export_to, one.namespace, namespace)]
            if imports is not None:
                admitted = [one for one in found if any(i.admits(one.namespace, host) for i in imports)]
                found = admitted or (found if host in wanted else [])
            if found:
                own = [one for one in found if one.namespace == namespace]
                services[host] = (own or found)[0]
        parts = [namespace, policy, self.key(sidecar) if sidecar else "", self.mesh_key]
        parts += [service.key for service in services.values()]
        parts += [f"{document.resource.key}{self.key(document)}" for document in routes]
        key = _digest(parts)
        seen = [key, *(service.endpoints_key for service in services.values())]
        for rule in self.of("DestinationRule"):
            host = self.resolve(rule.spec.host, rule.resource.namespace)
            if rule.resource.namespace != namespace and not self._exports_rule(rule, namespace):
                continue
            if host in services or (host.startswith("*") and any(host_covers(host, one) for one in services)):
                seen.append(f"{rule.resource.key}{self.key(rule)}")
        # A delegate is seen through the route that names it, whoever it is exported to.
        seen += [self.key(one) for one in self.of("VirtualService") if not one.spec.hosts]
        return Scope(namespace, sidecar, services, routes, policy == "REGISTRY_ONLY", key, _digest(seen))

    def _publicity(self, document: Document[VirtualService], namespace: str) -> int:
        export_to = document.spec.export_to or self.mesh.default_virtual_service_export_to
        if "*" in export_to:
            return 2
        return 0 if document.resource.namespace == namespace else 1

    def _sees(
        self, document: Document[VirtualService], namespace: str, imports: tuple[EgressHost, ...] | None
    ) -> bool:
        home = document.resource.namespace
        export_to = document.spec.export_to or self.mesh.default_virtual_service_export_to
        if not exported(export_to, home, namespace):
            return False
        if imports is None:
            return True
        hosts = [self.resolve(host, home) for host in document.spec.hosts]
        return any(one.meets(home, host) for one in imports for host in hosts)

    def _destinations(self, routes: Iterable[Document[VirtualService]]) -> frozenset[str]:
        """The hosts that the visible VirtualServices send calls to: they are imported with them."""
        hosts: set[str] = set()
        for document in (one for route in routes for one in (route, *self.delegates_of(route))):
            home = document.resource.namespace
            for rule in document.spec.http:
                hosts.update(self.resolve(target.host, home) for target in rule.destinations())
            opaque = [rule.route for rule in document.spec.tcp] + [rule.route for rule in document.spec.tls]
            for targets in opaque:
                hosts.update(self.resolve(target.destination.host, home) for target in targets)
        return frozenset(hosts)


def build(
    services: Iterable[Service],
    instances: Iterable[Instance],
    resources: Iterable[Resource],
    mesh: MeshConfig,
    previous: Snapshot | None = None,
    access: Access | None = None,
    damaged_rows: Iterable[ResourceKey] = (),
) -> Snapshot:
    """A snapshot of the registry's values; `previous` spares reading unchanged resources again.

    Instances that may not serve what they say are left out. Without `access` every instance is taken at its word: for
    trials of resources, never for a running mesh. `damaged_rows` are stored resources of which the key alone can be read.
    """
    registered = tuple(instances)
    known = previous._typed if previous is not None else {}
    read: dict[tuple[ResourceKey, str], Typed] = {}
    kinds: dict[str, list[Document[Any]]] = {}
    keys: dict[ResourceKey, str] = {}
    problems: list[Problem] = []

    def use(one: Stored, key: str) -> None:
        problems.extend(one.problems)
        if one.document is not None:
            kinds.setdefault(one.document.resource.kind, []).append(one.document)
            keys[one.document.resource.key] = key

    held = sorted(resources, key=lambda one: (one.created, one.namespace, one.name))
    for key in sorted(set(damaged_rows).difference(one.key for one in held)):
        one = damaged(key)
        use(one, _content_key(one.document.resource) if one.document is not None else "")
    for resource in held:
        mark = (resource.key, resource.version)
        entry = known.get(mark) if resource.version else None
        if entry is None:
            one = stored(resource)
            try:
                entry = (one, _content_key(one.document.resource) if one.document is not None else "")
            except Exception as error:
                problems.append(_unusable(str(resource.key), error))
                continue
        read[mark] = entry
        use(*entry)

    def unusable(what: str, error: Exception) -> None:
        problems.append(_unusable(what, error))

    if access is None:
        access = replace(Access.of_instances(registered), trusting=True)
    access = access.with_grants(grants_of(kinds.get("WorkloadGroup", ())))
    if previous is not None and access == previous.access:
        access = previous.access  # the same object: whoever compares finds at once that nothing changed
    members = tuple(one for one in registered if access.may_serve(one))
    if (policy := revoked(access, mesh)) is not None:
        kinds.setdefault("AuthorizationPolicy", []).append(policy)
        keys[policy.resource.key] = _content_key(policy.resource)
    found = from_registry(services, members, mesh, access, unusable)
    taken = {address for service in found for address in service.addresses}
    of_kind, machines = kinds.get("ServiceEntry", ()), kinds.get("WorkloadEntry", ())
    entries, lost = merge_entries(from_entries(of_kind, machines, members, mesh, access, taken, unusable))
    found += entries
    by_host: dict[str, list[MeshService]] = {}
    for service in found:
        by_host.setdefault(service.host, []).append(service)
    rules: dict[tuple[str, str], tuple[Document[DestinationRule], ...]] = {}
    patterns: dict[str, tuple[str, ...]] = {}
    snapshot = Snapshot(
        mesh=mesh,
        mesh_key=hashlib.sha256(mesh.model_dump_json().encode()).hexdigest()[:16],
        services=tuple(found),
        by_host={host: tuple(same) for host, same in by_host.items()},
        documents={kind: tuple(members_of) for kind, members_of in kinds.items()},
        keys=keys,
        problems=tuple(problems),
        instances=members,
        access=access,
        _typed=read,
        _rules=rules,
        _patterns=patterns,
        _delegates={
            (one.resource.namespace, one.resource.name): one
            for one in kinds.get("VirtualService", ())
            if not one.spec.hosts
        },
    )
    # Filled in here because hosts are resolved by the snapshot; nobody else has seen it yet.
    for rule in snapshot.of("DestinationRule"):
        home = rule.resource.namespace
        host = snapshot.resolve(rule.spec.host, home)
        rules[home, host] = (*rules.get((home, host), ()), rule)
        if host.startswith("*"):
            known_patterns = {host, *patterns.get(home, ())}
            patterns[home] = tuple(sorted(known_patterns, key=lambda text: (-len(text), text)))
    hosts = [
        (snapshot.resolve(one.spec.host, one.resource.namespace), one)
        for one in kinds.get("DestinationRule", ())
    ]
    try:
        found_conflicts = (
            *conflicts.between_entries(found, lost),
            *conflicts.of_rules(hosts, found),
            *conflicts.of_server_names(kinds.get("VirtualService", ()), found),
        )
    except Exception as error:  # remarks only: without them the snapshot is as good
        return replace(snapshot, problems=(*problems, _unusable("the search for conflicts", error)))
    return replace(snapshot, conflicts=found_conflicts)


def _unusable(what: str, error: Exception) -> Problem:
    """A value of the registry that passed its own checks and still cannot be used: a defect, kept to that value."""
    return Problem(Severity.ERROR, "", f"cannot be used: {type(error).__name__}: {error}", subject=what)


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _content_key(resource: Resource) -> str:
    content = [resource.kind, resource.namespace, resource.name, resource.spec, dict(resource.labels)]
    text = json.dumps(content, sort_keys=True, default=dict)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
