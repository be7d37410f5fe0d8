"""A workload's identity: a key and the certificate chain that istiod issued for it.

Rule: key, chain and SPIFFE id fit each other, whatever file or answer they came from.
Not for: getting and renewing it (`keeper`). Source: X509-SVID.
"""

from __future__ import annotations

from dataclasses import dataclass

from wire.spiffe import SpiffeError, SpiffeId
from wire.x509 import X509Error, key_from_pem, load_chain, to_pem

_END = b"-----END PRIVATE KEY-----\n"


class IdentityError(Exception):
    """No identity could be had; says why and what to do."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A key and its chain (leaf first, root last). Invariant: the leaf is the key's, and names `spiffe`."""

    spiffe: SpiffeId
    key_pem: bytes
    chain_pem: bytes
    issued: float
    expires: float
    """Both in seconds since the epoch."""
    serial: str

    @property
    def pem(self) -> bytes:
        """Key and chain as one text, the form in which it is stored."""
        return self.key_pem + self.chain_pem

    def renew_at(self, chance: float) -> float:
        """When to renew: at half of its life, a twentieth earlier or later. `chance` is from 0 to 1."""
        return self.issued + (self.expires - self.issued) * (0.45 + 0.1 * chance)


def read(pem: bytes, spiffe: SpiffeId, issued: float) -> Identity:
    """Check a stored or received identity; IdentityError when its parts do not fit each other."""
    head, end, chain_pem = pem.partition(_END)
    try:
        key = key_from_pem(head + end)
        chain = load_chain(chain_pem)
        actual = SpiffeId.of_certificate(chain[0])
    except (X509Error, SpiffeError) as error:
        raise IdentityError(str(error)) from error
    if actual != spiffe:
        raise IdentityError(f"the certificate is for {actual}, not for {spiffe}")
    if chain[0].public_key() != key.public_key():
        raise IdentityError("the certificate is not for this key")
    leaf = chain[0]
    start, expires = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    return Identity(
        spiffe=spiffe,
        key_pem=head + end,
        chain_pem=to_pem(chain),
        issued=min(max(issued, start), expires),
        expires=expires,
        serial=f"{leaf.serial_number:x}",
    )
