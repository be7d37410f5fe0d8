"""Grants, revocations and evictions as one immutable value, and the decisions that follow from them.

Rule: pure. A grant is an administrator's record, and the only thing that lets an identity register instances of a
service or appear among the identities that callers accept for it (DESIGN, "Who may serve what"): what a host says
about itself never widens one. Not for keeping them (istiod.access.records) nor for what a host claims (istiod.xds.node).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from registry.model import Instance, Port
from wire.spiffe import SpiffeId

__all__ = ["OWN", "Access", "Eviction", "Grant", "NotGrantedError", "Revocation"]

OWN = "own"
"""Among a grant's addresses: the one that the instance's connection comes from."""

Principal = tuple[str, str]
"""Namespace and service account: the same principal in every trust domain of the mesh."""


class NotGrantedError(Exception):
    """The identity may not register this instance; the message says why and what an administrator can do."""


@dataclass(frozen=True, slots=True)
class Grant:
    """One identity may serve one service, at `addresses`: CIDR blocks, or OWN.

    `service` is a name in `namespace`, or a host of a ServiceEntry there. What follows `created` is a WorkloadGroup's
    template: `labels` win over the host's own, the rest is for hosts that do not say it themselves.
    """

    namespace: str
    service: str
    service_account: str
    addresses: tuple[str, ...] = (OWN,)
    source: str = ""
    """Who made it, for people: `join token ID`, `meshctl`, `upgrade`, `WorkloadGroup NAME`."""
    created: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    locality: str = ""
    weight: int = 0

    @property
    def principal(self) -> Principal:
        """Whom it is for."""
        return (self.namespace, self.service_account)

    def covers(self, address: str) -> bool:
        """Whether one of the blocks has this address."""
        where = _address(address)
        blocks = (ipaddress.ip_network(block) for block in self.addresses if block != OWN)
        return where is not None and any(where in block for block in blocks)


@dataclass(frozen=True, slots=True)
class Revocation:
    """An identity (`spiffe://…`) or a certificate (its serial number in hex) that counts no more."""

    subject: str
    reason: str = ""
    created: float = 0.0


@dataclass(frozen=True, slots=True)
class Eviction:
    """An instance that an administrator keeps out of the catalog, by its id (NAMESPACE/NAME)."""

    instance: str
    reason: str = ""
    created: float = 0.0


@dataclass(frozen=True, slots=True)
class Access:
    """All of them at one moment. Make it with `of`."""

    grants: tuple[Grant, ...] = ()
    revocations: Mapping[str, Revocation] = field(default_factory=dict)
    """By subject."""
    evictions: Mapping[str, Eviction] = field(default_factory=dict)
    """By instance id."""
    trusting: bool = False
    """Whether every instance may join whatever selects it: for trials without a registry, never for a running mesh."""
    _by_service: Mapping[tuple[str, str], tuple[Grant, ...]] = field(default_factory=dict, repr=False)
    _barred: frozenset[Principal] = field(default=frozenset(), repr=False)

    @classmethod
    def of(
        cls,
        grants: Iterable[Grant] = (),
        revocations: Iterable[Revocation] = (),
        evictions: Iterable[Eviction] = (),
    ) -> Access:
        """The value with its indexes. Of several grants of one service to one identity all count."""
        ordered = tuple(
            sorted(grants, key=lambda one: (one.namespace, one.service, one.service_account, one.source))
        )
        by_service: dict[tuple[str, str], tuple[Grant, ...]] = {}
        for grant in ordered:
            key = (grant.namespace, grant.service)
            by_service[key] = (*by_service.get(key, ()), grant)
        revoked = {one.subject: one for one in revocations}
        identities = (SpiffeId.parse(subject) for subject in revoked if subject.startswith("spiffe://"))
        return cls(
            grants=ordered,
            revocations=revoked,
            evictions={one.instance: one for one in evictions},
            _by_service=by_service,
            _barred=frozenset((one.namespace, one.service_account) for one in identities),
        )

    @classmethod
    def of_instances(cls, instances: Iterable[Instance]) -> Access:
        """What the instances themselves would need: for an upgrade, and for trials without a registry."""
        blocks: dict[tuple[str, str, str], set[str]] = {}
        for one in instances:
            known = blocks.setdefault((one.namespace, one.service, one.service_account), {OWN})
            known.update(block for address in one.addresses if (block := _single(address)))
        return cls.of(Grant(*key, tuple(sorted(addresses)), "upgrade") for key, addresses in blocks.items())

    def with_grants(self, more: Iterable[Grant]) -> Access:
        """The same with further grants."""
        found = Access.of((*self.grants, *more), self.revocations.values(), self.evictions.values())
        return replace(found, trusting=self.trusting)

    @property
    def barred_principals(self) -> frozenset[Principal]:
        """The revoked identities, of whatever trust domain of the mesh."""
        return self._barred

    def of_service(self, namespace: str, service: str) -> tuple[Grant, ...]:
        """The grants of a service."""
        return self._by_service.get((namespace, service), ())

    def servers(self, namespace: str, service: str) -> tuple[Principal, ...]:
        """Who may serve it: the identities that its callers accept."""
        found = {grant.principal for grant in self.of_service(namespace, service)}
        return tuple(sorted(found - self._barred))

    def barred(self, identity: SpiffeId, serial: str = "") -> str | None:
        """Why an identity, or the certificate with this serial, may do nothing here; None when it may."""
        if (identity.namespace, identity.service_account) in self._barred:
            return f"the identity {identity} was revoked"
        if serial and serial in self.revocations:
            return f"the certificate {serial} of {identity} was revoked"
        return None

    def may_serve(self, instance: Instance) -> bool:
        """Whether a registered instance counts: granted, not revoked, not evicted, at a granted address.

        Where it is its own address was judged when it registered: no grant of addresses is needed for that here.
        """
        if instance.id in self.evictions or (instance.namespace, instance.service_account) in self._barred:
            return False
        return any(
            grant.service_account == instance.service_account
            and (OWN in grant.addresses or any(grant.covers(address) for address in instance.addresses))
            for grant in self.of_service(instance.namespace, instance.service)
        )

    def may_join(self, instance: Instance, namespace: str, host: str, wanted: Mapping[str, str]) -> bool:
        """Whether an instance that a ServiceEntry selects by the labels `wanted` is an endpoint of its host.

        A host chooses labels for itself, so being selected is not enough: its identity is granted the host by name, or
        a WorkloadGroup gives it these labels.
        """
        principal = (instance.namespace, instance.service_account)
        if self.trusting or principal in self.servers(namespace, host):
            return True
        return any(
            grant.principal == principal
            and grant.labels
            and all(grant.labels.get(key) == value for key, value in wanted.items())
            for grant in self.of_service(instance.namespace, instance.service)
        )

    def check_eviction(self, instance_id: str) -> None:
        """Raise NotGrantedError for an instance that an administrator keeps out."""
        if (eviction := self.evictions.get(instance_id)) is not None:
            why = f": {eviction.reason}" if eviction.reason else ""
            raise NotGrantedError(
                f"{instance_id} was evicted{why} (undo: meshctl workload readmit {instance_id})"
            )

    def admit(self, instance: Instance, peer_host: str, is_local: Callable[[str], bool]) -> Instance:
        """The instance as it may be registered: with its granted addresses and its WorkloadGroup's template.

        `peer_host` is where the connection comes from; a peer on this very host may be at any address for which
        `is_local` is true. Raises NotGrantedError.
        """
        who = f"{instance.namespace}/{instance.service_account}"
        what = f"{instance.namespace}/{instance.service}"
        matching = [
            grant
            for grant in self.of_service(instance.namespace, instance.service)
            if grant.service_account == instance.service_account
        ]
        if not matching:
            raise NotGrantedError(
                f"{who} may not serve {what} (allow: meshctl service grants {what} --add {instance.service_account})"
            )
        addresses = tuple(
            address
            for address in instance.addresses
            if any(_own_or_granted(grant, address, peer_host, is_local) for grant in matching)
        )
        if not addresses:
            allowed = ", ".join(dict.fromkeys(word for grant in matching for word in grant.addresses))
            raise NotGrantedError(
                f"{who} may serve {what} at {allowed.replace(OWN, f'its own address ({peer_host})')}, not at "
                f"{', '.join(instance.addresses) or 'none'} (allow: meshctl service grants {what} --add "
                f"{instance.service_account} --address CIDR)"
            )
        admitted = replace(instance, addresses=addresses)
        for grant in matching:
            admitted = _from_template(admitted, grant)
        return admitted


def _own_or_granted(grant: Grant, address: str, peer_host: str, is_local: Callable[[str], bool]) -> bool:
    if grant.covers(address):
        return True
    if OWN not in grant.addresses:
        return False
    own, claimed = _address(peer_host), _address(address)
    if own is None or claimed is None:
        return False
    return own == claimed or (own.is_loopback and is_local(address))


def _from_template(instance: Instance, grant: Grant) -> Instance:
    ports = tuple(
        Port(one.name, one.number, one.protocol, one.target_port or grant.ports.get(one.name, 0))
        for one in instance.ports
    )
    return replace(
        instance,
        labels={**instance.labels, **grant.labels},
        ports=ports,
        locality=instance.locality or grant.locality,
        weight=instance.weight or grant.weight,
    )


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _single(address: str) -> str:
    """The block of one address, "" if it is none."""
    where = _address(address)
    return str(ipaddress.ip_network(where)) if where is not None else ""
