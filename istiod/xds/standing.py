"""What the peer of an ADS stream may do: nothing, take configuration, or have its workload in the catalog.

Job: judge a stream once at its start, and say later whether a new judgement would be another. A stream whose standing
changes is ended: its agent connects anew and is judged anew, so that nothing has to change under a running stream.
Rule: identity says who, grants say what it may serve (istiod.access); what the node says about itself only asks.
Not for: the catalog (istiod.registration) nor the protocol (istiod.xds.stream).
"""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass, replace

from istiod.access.facts import Access, NotGrantedError
from istiod.access.records import AccessRecords
from istiod.feed import Feed
from istiod.log import fields
from istiod.registration import Registration
from istiod.xds.node import ProxyNode
from registry.errors import RegistryError
from registry.model import Instance
from wire import x509
from wire.grpc import GrpcError, GrpcStatus, Peer, host_of
from wire.spiffe import SpiffeId

log = logging.getLogger("istiod.xds")


@dataclass(frozen=True, slots=True)
class Standing:
    """The verdict. `node` has the name under which this stream is known; `instance` is None for a client only."""

    node: ProxyNode
    instance: Instance | None = None
    refused: str = ""
    """Why the workload is not in the catalog although its node says that it serves something."""


class Judge:
    """Judges streams by the newest snapshot, and by the registry where that is newer."""

    def __init__(self, feed: Feed, records: AccessRecords, registration: Registration, owner: str) -> None:
        self._feed = feed
        self._records = records
        self._registration = registration
        self._owner = owner

    def barred(self, identity: SpiffeId | None, certificate: bytes | None) -> str | None:
        """Why the identity or its certificate may do nothing; None when it may."""
        access = self._feed.snapshot.access
        if identity is None or not access.revocations:
            return None
        return access.barred(identity, x509.serial_of(certificate) if certificate is not None else "")

    async def begin(self, node: ProxyNode, peer: Peer) -> Standing:
        """The verdict on a new stream. Raises GrpcError for a peer that was revoked."""
        self._refuse_barred(peer)
        access = self._feed.snapshot.access
        standing = self._judge(access, node, peer)
        if standing.refused:
            # A grant that was made a moment ago is in the registry before it is in a snapshot.
            try:
                standing = self._judge(
                    access.with_grants((await self._records.read()).access.grants), node, peer
                )
            except RegistryError as error:
                log.warning("grants cannot be read: %s", error, extra=fields(proxy=node.key))
        if standing.refused:
            log.warning(
                "workload is not registered",
                extra=fields(proxy=standing.node.key, peer=peer, reason=standing.refused),
            )
        elif standing.instance is not None and len(standing.instance.addresses) < len(node.addresses):
            others = ",".join(a for a in node.addresses if a not in standing.instance.addresses)
            log.warning(
                "addresses are not registered: neither the connection's own nor granted (--address)",
                extra=fields(proxy=standing.node.key, peer=peer, addresses=others),
            )
        return standing

    def changed(self, before: Standing, node: ProxyNode, peer: Peer) -> None:
        """Raise GrpcError when the newest snapshot gives another verdict than `before` on the same stream."""
        self._refuse_barred(peer)
        now = self._judge(self._feed.snapshot.access, node, peer)
        if now.instance == before.instance and now.refused == before.refused:
            return
        if before.instance is not None and now.instance is None:
            log.warning(
                "workload may not serve any more", extra=fields(proxy=before.node.key, reason=now.refused)
            )
        raise GrpcError(GrpcStatus.UNAVAILABLE, "what this workload may serve has changed: connect anew")

    def _refuse_barred(self, peer: Peer) -> None:
        reason = self.barred(peer.spiffe_id, peer.cert_der)
        if reason is not None:
            log.warning("ADS stream refused: %s", reason, extra=fields(peer=peer))
            raise GrpcError(GrpcStatus.PERMISSION_DENIED, reason)

    def _judge(self, access: Access, node: ProxyNode, peer: Peer) -> Standing:
        wanted = node.instance(self._owner)
        # Only an agent over mTLS may put its workload into the catalog; the plaintext port proves nothing.
        if wanted is None or peer.spiffe_id is None:
            return Standing(node)
        try:
            admitted = access.admit(wanted, host_of(peer.address), _is_own_address)
        except NotGrantedError as error:
            # A client that names its service for the sake of a name, and serves nothing, needs no grant.
            return Standing(node, refused=str(error) if wanted.ports else "")
        name = self._registration.name_for(admitted)
        known = replace(node, name=name.partition("/")[2], labels=admitted.labels)
        admitted = replace(admitted, id=name)
        try:
            access.check_eviction(name)
        except NotGrantedError as error:
            return Standing(known, refused=str(error))
        return Standing(known, admitted)


def _is_own_address(address: str) -> bool:
    """Whether this machine has the address: only then can a socket be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
