"""One proxy's look at a snapshot: its scope, and the rules in force for each host it can call.

Rule: answers are remembered for the length of one compile; nothing here makes Envoy messages.
"""

from __future__ import annotations

from istiod.compile import naming
from istiod.compile.traffic_policy import HostRule, merge
from istiod.proxy import ProxyInfo
from istiod.resources.document import Document
from istiod.resources.routing.destination import Destination
from istiod.resources.traffic.load_balancer import ConsistentHash
from istiod.resources.virtual_service import VirtualService
from istiod.scope import host_covers
from istiod.services import MeshService, Protocol
from istiod.snapshot import Snapshot
from registry.vips import all_virtual


class View:
    """A snapshot as one proxy sees it."""

    def __init__(self, snapshot: Snapshot, proxy: ProxyInfo) -> None:
        self.snapshot = snapshot
        self.mesh = snapshot.mesh
        self.proxy = proxy
        self.scope = snapshot.scope(proxy)
        self._rules: dict[str, tuple[HostRule, str]] = {}
        self._exact: dict[str, Document[VirtualService]] = {}
        patterns: dict[str, Document[VirtualService]] = {}
        for document in self.scope.virtual_services:
            for host in self.hosts(document):
                (patterns if host.startswith("*") else self._exact).setdefault(host, document)
        self._patterns = sorted(patterns.items(), key=lambda item: (-len(item[0]), item[0]))
        # Two proxies whose labels differ only where no rule looks share what is made for them.
        looked_at = {
            label
            for document in self.scope.virtual_services
            for one in (document, *snapshot.delegates_of(document))
            for label in source_labels(one.spec)
        }
        self.labels_key = tuple(sorted((k, v) for k, v in proxy.labels.items() if k in looked_at))

    def hosts(self, document: Document[VirtualService]) -> list[str]:
        """The hosts of a VirtualService, in full."""
        return [self.snapshot.resolve(host, document.resource.namespace) for host in document.spec.hosts]

    def addresses(self, service: MeshService) -> list[str]:
        """The service's own addresses in the families that the proxy's host has; all of them if it has neither."""
        found = [address for address in service.addresses if "/" not in address]
        families = [address for address in found if (self.proxy.ipv6 if ":" in address else self.proxy.ipv4)]
        return families or found

    def rule(self, service: MeshService) -> HostRule:
        """The DestinationRules for a service, merged."""
        return self._rule(service)[0]

    def rule_key(self, service: MeshService) -> str:
        """The content of `rule(service)`."""
        return self._rule(service)[1]

    def virtual_service(self, host: str) -> Document[VirtualService] | None:
        """The VirtualService of a host: an exact one before a wildcard, the oldest first."""
        found = self._exact.get(host)
        if found is not None:
            return found
        return next((document for pattern, document in self._patterns if host_covers(pattern, host)), None)

    def phantom_hosts(self) -> list[tuple[str, Document[VirtualService]]]:
        """Hosts that only a VirtualService knows; they are routed on port 80 (Istio)."""
        known = self.scope.services
        found = [(host, document) for host, document in self._exact.items() if host not in known]
        for pattern, document in self._patterns:
            if pattern not in known and not any(host_covers(pattern, host) for host in known):
                found.append((pattern, document))
        return found

    def service(self, destination: Destination, namespace: str) -> MeshService | None:
        """The service that a destination means, if the proxy sees it."""
        return self.scope.services.get(self.snapshot.resolve(destination.host, namespace))

    def port_of(self, destination: Destination, namespace: str, listener_port: int) -> int:
        """The destination's port: its own, else the service's only one, else the one that was called (Istio)."""
        if destination.port is not None:
            return destination.port.number
        service = self.service(destination, namespace)
        return service.ports[0].number if service and len(service.ports) == 1 else listener_port

    def cluster_of(self, destination: Destination, namespace: str, listener_port: int) -> str:
        """The name of the cluster for HTTP."""
        port = self.port_of(destination, namespace, listener_port)
        host = self.snapshot.resolve(destination.host, namespace)
        return naming.outbound_cluster(port, destination.subset, host)

    def opaque_cluster_of(self, destination: Destination, namespace: str, listener_port: int) -> str:
        """The name of the cluster for opaque TCP."""
        number = self.port_of(destination, namespace, listener_port)
        service = self.service(destination, namespace)
        port = service.port(number) if service else None
        sniffed = port is not None and port.protocol is Protocol.AUTO
        name = naming.opaque_cluster if sniffed else naming.outbound_cluster
        return name(number, destination.subset, self.snapshot.resolve(destination.host, namespace))

    def hash_of(self, destination: Destination, namespace: str, listener_port: int) -> ConsistentHash | None:
        """The consistent hash that balances a destination."""
        service = self.service(destination, namespace)
        if service is None:
            return None
        port = self.port_of(destination, namespace, listener_port)
        balancer = self.rule(service).effective(port, destination.subset).load_balancer
        return balancer.consistent_hash if balancer is not None else None

    def destinations_key(self, document: Document[VirtualService]) -> tuple[str, ...]:
        """The content of what the routes of a VirtualService read about their destinations and delegates."""
        found: list[str] = []
        for rule in document.spec.http:
            owner = document
            if rule.delegate is not None:
                target = self.snapshot.delegate(document, rule.delegate)
                found.append(self.snapshot.key(target) if target else "")
                if target is None:
                    continue
                owner = target
            for inner in owner.spec.http if owner is not document else (rule,):
                for one in inner.route:
                    service = self.service(one.destination, owner.resource.namespace)
                    found.append(f"{service.key}/{self.rule_key(service)}" if service else "")
        return tuple(found)

    def _rule(self, service: MeshService) -> tuple[HostRule, str]:
        found = self._rules.get(service.host)
        if found is None:
            rules = self.snapshot.rules_for(service.host, service.namespace, self.proxy)
            key = ",".join(
                f"{rule.resource.namespace}/{rule.resource.name}:{self.snapshot.key(rule)}" for rule in rules
            )
            found = self._rules[service.host] = (merge(rules, virtual=all_virtual(service.addresses)), key)
        return found


def source_labels(spec: VirtualService) -> set[str]:
    """The names of the labels that a VirtualService looks at."""
    labels = [match.source_labels for http in spec.http for match in http.match]
    labels += [match.source_labels for tcp in spec.tcp for match in tcp.match]
    labels += [match.source_labels for tls in spec.tls for match in tls.match]
    return {name for wanted in labels for name in wanted}
