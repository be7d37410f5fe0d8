"""networking.istio.io VirtualService: where calls to a host go.

The rules are in `istiod.resources.routing`. Not for: turning them into Envoy routes (istiod/compile/http_route.py,
istiod/compile/tcp_route.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from istiod.resources.names import (
    HostSet,
    domain_problem,
    export_to_problems,
    gateway_problem,
    ip_problem,
)
from istiod.resources.routing.http_route import HttpRoute
from istiod.resources.routing.l4_route import TcpRoute, TlsRoute
from istiod.resources.schema import NonEmpty, Spec

MESH = "mesh"


class VirtualService(Spec):
    """Routing rules for hosts. One without hosts is a delegate: its rules are used through another's."""

    hosts: tuple[NonEmpty, ...] = ()
    gateways: tuple[NonEmpty, ...] = ()
    http: tuple[HttpRoute, ...] = ()
    tls: tuple[TlsRoute, ...] = ()
    tcp: tuple[TcpRoute, ...] = ()
    export_to: tuple[NonEmpty, ...] = ()

    def applies_to_mesh(self) -> bool:
        """Whether sidecars (the gateway `mesh`) use it at all."""
        return not self.gateways or MESH in self.gateways

    def rules(self) -> Iterator[tuple[str, str]]:
        if not (self.http or self.tls or self.tcp):
            yield "", "one of http, tls, tcp must be set"
        for index, gateway in enumerate(self.gateways):
            if problem := gateway_problem(gateway):
                yield f"gateways[{index}]", problem
        if self.hosts:
            yield from self._host_rules()
        else:
            yield from self._delegate_rules()
        if self.applies_to_mesh():
            for position, rule in enumerate(self.http):
                for index, match in enumerate(rule.match):
                    for path in match.claims():
                        yield (
                            f"http[{position}].match[{index}].{path}",
                            "claims can be matched at gateways only",
                        )

    def document_rules(self, namespace: str, annotations: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        yield from export_to_problems(self.export_to, namespace)

    def _host_rules(self) -> Iterator[tuple[str, str]]:
        valid = True
        for index, host in enumerate(self.hosts):
            if host == "*" and self.applies_to_mesh():
                yield f"hosts[{index}]", "the wildcard * is not allowed for the gateway mesh"
                valid = False
            elif ip_problem(host) is not None and (problem := domain_problem(host, wildcard=True)):
                yield f"hosts[{index}]", problem
                valid = False
        if not valid:
            return
        known = HostSet(self.hosts)
        for index, earlier in known.overlaps():
            host, other = self.hosts[index], self.hosts[earlier]
            reason = "is there twice" if other == host else f"overlaps with {other!r}"
            yield f"hosts[{index}]", f"{host!r} {reason}: no two hosts of a VirtualService may overlap"
        for position, rule in enumerate(self.tls):
            for path, problem in rule.foreign_names(known):
                yield f"tls[{position}].{path}", problem

    def _delegate_rules(self) -> Iterator[tuple[str, str]]:
        what = "a delegate (a VirtualService without hosts)"
        if self.gateways:
            yield "gateways", f"{what} must not set gateways"
        if self.tls:
            yield "tls", f"{what} can have http rules only"
        if self.tcp:
            yield "tcp", f"{what} can have http rules only"
        for index, rule in enumerate(self.http):
            if rule.delegate is not None:
                yield f"http[{index}].delegate", f"{what} must not delegate further"

    def gaps(self) -> Iterator[tuple[str, str]]:
        for index, gateway in enumerate(self.gateways):
            if gateway != MESH:
                yield f"gateways[{index}]", f"gateway {gateway!r} is served by no proxy of this version"
