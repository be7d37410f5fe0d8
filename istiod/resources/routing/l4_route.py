"""A VirtualService's rules for opaque TCP and for TLS that is passed through."""

from __future__ import annotations

from collections.abc import Iterator

from istiod.resources.names import (
    HostSet,
    address_problem,
    domain_problem,
    ip_problem,
)
from istiod.resources.routing.destination import TcpDestination, weight_problems
from istiod.resources.routing.origin import origin_problems
from istiod.resources.schema import NonEmpty, Spec, Str, UInt32, empty, unsupported


class _Conditions(Spec):
    """What both kinds of rules can ask of a connection; all must hold."""

    destination_subnets: tuple[NonEmpty, ...] = ()
    port: UInt32 = 0
    source_labels: dict[str, Str] = empty()
    source_namespace: Str = ""
    gateways: tuple[NonEmpty, ...] = ()

    def rules(self) -> Iterator[tuple[str, str]]:
        for index, subnet in enumerate(self.destination_subnets):
            if problem := address_problem(subnet):
                yield f"destinationSubnets[{index}]", problem
        yield from origin_problems(self.port, self.source_labels, self.source_namespace, self.gateways)


class L4Match(_Conditions):
    """Conditions on a TCP connection; all must hold."""

    source_subnet: Str = unsupported(
        "", reason="is not implemented by Istio: the rule would be for every source"
    )


class TlsMatch(_Conditions):
    """Conditions on a TLS connection that is passed through; at least one name."""

    sni_hosts: tuple[NonEmpty, ...]

    def rules(self) -> Iterator[tuple[str, str]]:
        yield from super().rules()
        if not self.sni_hosts:
            yield "sniHosts", "must not be empty"
        for index, host in enumerate(self.sni_hosts):
            if ip_problem(host) is not None and (problem := domain_problem(host, wildcard=True)):
                yield f"sniHosts[{index}]", problem


class TcpRoute(Spec):
    """One rule for opaque TCP."""

    match: tuple[L4Match, ...] = ()
    route: tuple[TcpDestination, ...] = ()

    def rules(self) -> Iterator[tuple[str, str]]:
        if not self.route:
            yield "route", "must not be empty"
        yield from weight_problems(self.route, "route")


class TlsRoute(Spec):
    """One rule for TLS that is passed through, by server name."""

    match: tuple[TlsMatch, ...]
    route: tuple[TcpDestination, ...] = ()

    def rules(self) -> Iterator[tuple[str, str]]:
        if not self.match:
            yield "match", "must not be empty"
        if not self.route:
            yield "route", "must not be empty"
        yield from weight_problems(self.route, "route")

    def foreign_names(self, hosts: HostSet) -> Iterator[tuple[str, str]]:
        """Server names that none of the VirtualService's hosts includes: the rule would never be asked for them."""
        for position, match in enumerate(self.match):
            for index, name in enumerate(match.sni_hosts):
                if ip_problem(name) is not None and not hosts.includes(name):
                    path = f"match[{position}].sniHosts[{index}]"
                    yield path, f"{name!r} is none of the hosts of this VirtualService"
