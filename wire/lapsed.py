"""Renewal after a certificate has lapsed: proof of its key, beside a signing request for a new one.

A host that was away for longer than its certificate's life cannot show it in a handshake any more. It sends the certificate
and a signature by the certificate's key over the new signing request, as call metadata. A copied request is of no use: what
it asks for is a certificate of a key that only its sender has.

Rule: both sides compute the same bytes here. Not for deciding who may renew like this (istiod.ca.lapsed).
"""

from __future__ import annotations

import hashlib

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import Certificate

from wire.x509 import PrivateKey, X509Error

CERTIFICATE = "hostmesh-lapsed-certificate-bin"
"""Call metadata: the lapsed certificate (DER)."""
SIGNATURE = "hostmesh-lapsed-signature-bin"
"""Call metadata: its key's signature (ECDSA or RSA PKCS #1 v1.5, SHA-256)."""
_CONTEXT = b"hostmesh renewal of a lapsed certificate, 1\0"
_MAX_BYTES = 16 * 1024


def prove(certificate: Certificate, key: PrivateKey, csr: bytes) -> tuple[tuple[str, bytes], ...]:
    """The call metadata that goes with this signing request (as sent, PEM)."""
    message = _message(csr)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        signature = key.sign(message, ec.ECDSA(hashes.SHA256()))
    else:
        signature = key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    return (CERTIFICATE, certificate.public_bytes(Encoding.DER)), (SIGNATURE, signature)


def proven(certificate_der: bytes, signature: bytes, csr: bytes) -> Certificate:
    """The certificate whose key signed this signing request; X509Error when it did not. Says nothing of its issuer."""
    if len(certificate_der) > _MAX_BYTES:
        raise X509Error(f"the lapsed certificate is longer than {_MAX_BYTES} bytes")
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
        key = certificate.public_key()
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, _message(csr), ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, _message(csr), padding.PKCS1v15(), hashes.SHA256())
        else:
            raise X509Error(f"keys of this kind are not certified: {type(key).__name__}")
    except InvalidSignature:
        raise X509Error(
            "the signature over the signing request is not by the lapsed certificate's key"
        ) from None
    except ValueError as error:
        if isinstance(error, X509Error):
            raise
        raise X509Error(f"the lapsed certificate cannot be read: {error}") from error
    return certificate


def _message(csr: bytes) -> bytes:
    return _CONTEXT + hashlib.sha256(csr).digest()
