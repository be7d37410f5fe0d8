"""Keys, signing requests and certificates: making, reading, storing them.

Rule: time is an argument; a key or certificate read from outside is checked before it is used. Not for
deciding who may have which identity (istiod.enrolment), nor for verifying a peer's chain (wire.tls).
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import Certificate
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wire.spiffe import SpiffeError, SpiffeId, sole_spiffe_id

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

CLOCK_SKEW = timedelta(minutes=2)
"""How far before `now` a certificate's validity begins (Istio's default grace for clocks that run behind)."""

_MAX_CSR_BYTES = 64 * 1024
_MIN_RSA_BITS = 2048


class X509Error(ValueError):
    """A key, request or certificate that cannot be read or must not be used; the message says why."""


def new_key() -> ec.EllipticCurvePrivateKey:
    """A new EC P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: PrivateKey) -> bytes:
    """The private key as unencrypted PKCS #8 PEM; store it with `wire.secret_file` only."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def key_from_pem(pem: bytes) -> PrivateKey:
    """Read an unencrypted EC or RSA private key (PKCS #8, SEC 1 or PKCS #1 PEM); raises X509Error."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise X509Error(f"the private key cannot be read: {error}") from error
    if not isinstance(key, PrivateKey):
        raise X509Error(f"{type(key).__name__} is neither an EC nor an RSA key")
    return key


def make_csr(key: PrivateKey, spiffe_id: SpiffeId) -> bytes:
    """A PEM signing request (PKCS #10) for the identity, signed with its key; empty subject as Istio's."""
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(spiffe_id))])
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(names, critical=True)
        .sign(key, hashes.SHA256())
    )
    return csr.public_bytes(serialization.Encoding.PEM)


def read_csr(pem: bytes | str) -> tuple[PublicKey, SpiffeId]:
    """Read a signing request and verify that its sender holds the key.

    Raises X509Error for anything that is not one well-formed request, signed by its own key (EC P-256/P-384,
    RSA of 2048 bits or more), with one URI name that is a SPIFFE id and no other names.
    """
    data = pem.encode() if isinstance(pem, str) else pem
    if len(data) > _MAX_CSR_BYTES:
        raise X509Error(f"the signing request is longer than {_MAX_CSR_BYTES} bytes")
    try:
        csr = x509.load_pem_x509_csr(data)
        public_key = csr.public_key()
        signed = csr.is_signature_valid
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        spiffe_id = sole_spiffe_id(names)
    except x509.ExtensionNotFound:
        raise X509Error("the signing request has no subject alternative name") from None
    except SpiffeError as error:
        raise X509Error(f"the signing request names no workload: {error}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise X509Error(f"the signing request cannot be read: {error}") from error
    if not signed:
        raise X509Error("the signing request is not signed by its own key")
    if len(names) != 1:
        raise X509Error("the signing request asks for names beside the SPIFFE id")
    return _acceptable(public_key), spiffe_id


def _acceptable(key: object) -> PublicKey:
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        return key
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= _MIN_RSA_BITS:
        return key
    raise X509Error(f"keys of this kind or size are not certified: {type(key).__name__}")


def self_signed_root(
    key: PrivateKey, *, ttl: timedelta, now: datetime, organisation: str = "hostmesh"
) -> Certificate:
    """A root CA certificate for the key; `now` must be timezone-aware.

    Only leaves are signed by it or by one intermediate below it (path length 1).
    """
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{organisation} root {now:%Y-%m-%d}"),
        ]
    )
    subject_key = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + ttl)
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(subject_key, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject_key), critical=False
        )
        .sign(key, hashes.SHA256())
    )


def issue(
    public_key: PublicKey,
    *,
    ca_cert: Certificate,
    ca_key: PrivateKey,
    ttl: timedelta,
    now: datetime,
    uri_sans: Iterable[SpiffeId | str] = (),
    dns_sans: Iterable[str] = (),
    ip_sans: Iterable[str] = (),
) -> Certificate:
    """A leaf certificate for both TLS client and server use, valid from two minutes ago until `now + ttl`.

    It never outlives the CA. `now` must be timezone-aware. Raises X509Error when no name is given, the key is
    not of an accepted kind, the CA has expired, or `ca_key` is not the CA certificate's.
    """
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(uri)) for uri in uri_sans]
    names += [x509.DNSName(name) for name in dns_sans]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in ip_sans]
    if not names:
        raise X509Error("a certificate needs a name")
    if ca_key.public_key() != ca_cert.public_key():
        raise X509Error("the CA's key does not belong to the CA's certificate")
    expiry = min(now + ttl, ca_cert.not_valid_after_utc)
    if expiry <= now or now < ca_cert.not_valid_before_utc:
        raise X509Error("the CA's certificate is not valid now, or the lifetime is not positive")
    try:
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
            ca_cert.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        )
    except x509.ExtensionNotFound:
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    key = _acceptable(public_key)
    is_rsa = isinstance(key, rsa.RSAPublicKey)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(ca_cert.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(now - CLOCK_SKEW, ca_cert.not_valid_before_utc))
        .not_valid_after(expiry)
        # RFC 5280 §4.2.1.6: with an empty subject the names must be critical.
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True, key_encipherment=is_rsa), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(issuer_key, critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _key_usage(
    *,
    digital_signature: bool = False,
    key_encipherment: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_encipherment=key_encipherment,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def serial_of(der: bytes) -> str:
    """The serial number of a certificate in lower-case hexadecimal digits. Raises X509Error."""
    try:
        return f"{x509.load_der_x509_certificate(der).serial_number:x}"
    except ValueError as error:
        raise X509Error(f"the certificate cannot be read: {error}") from error


def fingerprint(certificate: Certificate | bytes) -> str:
    """The lower-case hexadecimal SHA-256 of the certificate's DER (64 characters)."""
    der = (
        certificate
        if isinstance(certificate, bytes)
        else certificate.public_bytes(serialization.Encoding.DER)
    )
    return hashlib.sha256(der).hexdigest()


def load_chain(pem: bytes | str) -> list[Certificate]:
    """All certificates of a PEM text in its order; raises X509Error when there is none or one is broken."""
    try:
        return x509.load_pem_x509_certificates(pem.encode() if isinstance(pem, str) else pem)
    except ValueError as error:
        raise X509Error(f"the certificates cannot be read: {error}") from error


def to_pem(certificates: Certificate | Sequence[Certificate]) -> bytes:
    """Certificates as PEM, one after the other."""
    chain = [certificates] if isinstance(certificates, Certificate) else certificates
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in chain)
