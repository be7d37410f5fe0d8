"""Who may renew with a certificate that has lapsed: its owner, for a limited time.

Rule: this CA issued the certificate, its key signed the request, and it lapsed no longer ago than `ca.renewalGrace`. What
revocation says of identity and serial number is asked as for every other renewal (istiod.ca.service).
Not for: the bytes (wire.lapsed).
"""

from __future__ import annotations

from datetime import datetime, timedelta

from cryptography.exceptions import InvalidSignature
from cryptography.x509 import BasicConstraints, Certificate
from cryptography.x509.extensions import ExtensionNotFound

from istiod.ca.authority import Authority
from wire import lapsed
from wire.grpc import Metadata
from wire.spiffe import SpiffeError, SpiffeId
from wire.x509 import X509Error

__all__ = ["LapsedError", "owner"]


class LapsedError(Exception):
    """The certificate gives no right to another one; the message says why."""


def owner(
    metadata: Metadata, csr: str, authority: Authority, now: datetime, grace: timedelta
) -> tuple[SpiffeId, Certificate] | None:
    """The identity that the call's lapsed certificate proves, and the certificate; None when the call shows none.

    Raises LapsedError.
    """
    der, signature = metadata.binary(lapsed.CERTIFICATE), metadata.binary(lapsed.SIGNATURE)
    if der is None or signature is None:
        return None
    try:
        certificate = lapsed.proven(der, signature, csr.encode())
        identity = SpiffeId.of_certificate(certificate)
    except (X509Error, SpiffeError) as error:
        raise LapsedError(str(error)) from error
    if not any(_issued_by(certificate, issuer) for issuer in (authority.certificate, *authority.roots)):
        raise LapsedError("the lapsed certificate was not issued by this mesh's CA")
    if _is_ca(certificate):
        raise LapsedError("the lapsed certificate is a CA's")
    expired = certificate.not_valid_after_utc
    if now > expired + grace:
        raise LapsedError(
            f"the certificate lapsed at {expired:%Y-%m-%d %H:%M} UTC, longer ago than ca.renewalGrace allows "
            f"({grace}): a new join token is needed (meshctl token create)"
        )
    return identity, certificate


def _issued_by(certificate: Certificate, issuer: Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _is_ca(certificate: Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(BasicConstraints).value.ca
    except ExtensionNotFound:
        return False
