"""A certificate authority in use: the key that signs, its chain to the root, and the roots that are trusted.

Rule: only makes certificates, for names that somebody else has approved; time is an argument. Not for where
keys come from (istiod.ca.keys) nor for who may have which identity (istiod.ca.service).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography.x509 import Certificate

from wire import x509
from wire.spiffe import SpiffeId

__all__ = [
    "ISTIOD_NAMESPACE",
    "ISTIOD_SERVICE_ACCOUNT",
    "Authority",
    "Issued",
    "granted",
    "istiod_identity",
]

ISTIOD_NAMESPACE = "hostmesh-system"
ISTIOD_SERVICE_ACCOUNT = "istiod"
_SHORTEST = timedelta(minutes=1)


def istiod_identity(trust_domain: str) -> SpiffeId:
    """The identity by which agents know istiod. No workload may ever have it."""
    return SpiffeId(trust_domain, ISTIOD_NAMESPACE, ISTIOD_SERVICE_ACCOUNT)


@dataclass(frozen=True, slots=True)
class Issued:
    """A new certificate and what must be presented with it."""

    certificate: Certificate
    intermediates: tuple[Certificate, ...]
    roots: tuple[Certificate, ...]

    @property
    def messages(self) -> list[str]:
        """As Istio's CA answers: one PEM text each, the leaf first; the last text has all roots, ours first."""
        single = [x509.to_pem(one).decode("ascii") for one in (self.certificate, *self.intermediates)]
        return [*single, x509.to_pem(self.roots).decode("ascii")]

    @property
    def presented(self) -> bytes:
        """The PEM chain for a TLS server: leaf first, the root last, so that a first contact can pin it."""
        return x509.to_pem((self.certificate, *self.intermediates, self.roots[0]))


@dataclass(frozen=True, slots=True)
class Authority:
    """Invariant: `certificate` is `key`'s, and `intermediates` lead from it to `roots[0]`.

    `intermediates` begins with `certificate` unless that is the root itself. `roots` are all trusted: ours
    first, then those of a root's rotation.
    """

    key: x509.PrivateKey
    certificate: Certificate
    intermediates: tuple[Certificate, ...]
    roots: tuple[Certificate, ...]
    origin: str
    """Where it comes from, for people: "own root in …" or "plugged from …"."""

    @property
    def root(self) -> Certificate:
        """The root above this authority."""
        return self.roots[0]

    @property
    def fingerprint(self) -> str:
        """The root's SHA-256 in hex, as join tokens carry it."""
        return x509.fingerprint(self.root)

    @property
    def roots_pem(self) -> bytes:
        """Every trusted root, as a PEM bundle."""
        return x509.to_pem(self.roots)

    def issue(
        self,
        public_key: x509.PublicKey,
        *,
        now: datetime,
        ttl: timedelta,
        uris: Iterable[SpiffeId | str] = (),
        dns: Iterable[str] = (),
        ips: Iterable[str] = (),
    ) -> Issued:
        """Certify the key for these names, for both ends of TLS. Raises wire.x509.X509Error."""
        leaf = x509.issue(
            public_key,
            ca_cert=self.certificate,
            ca_key=self.key,
            ttl=ttl,
            now=now,
            uri_sans=uris,
            dns_sans=dns,
            ip_sans=ips,
        )
        return Issued(leaf, self.intermediates, self.roots)


def granted(requested_seconds: int, longest: timedelta) -> timedelta:
    """The lifetime for a workload that asks for so many seconds (0: whatever the mesh gives)."""
    if requested_seconds <= 0:
        return longest
    return max(min(timedelta(seconds=min(requested_seconds, 10**9)), longest), min(_SHORTEST, longest))
