"""SPIFFE ids of workloads: the one form that the mesh issues and accepts.

Rule: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`, nothing else; what cannot be parsed is
refused, never repaired. Comparing two ids is comparing two values. Not for other SPIFFE paths and not for
deciding who may do what.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cryptography import x509

# SPIFFE-ID §2.1: lower-case letters, digits, dot, dash, underscore; the whole id has at most 2048 bytes.
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
# SPIFFE-ID §2.2: letters, digits, dot, dash, underscore; "." and ".." are no segments; no percent-encoding.
_SEGMENT = re.compile(r"[A-Za-z0-9._-]{1,253}")
_MAX_LENGTH = 2048


class SpiffeError(ValueError):
    """A text or a certificate that carries no acceptable workload identity; the message says why."""


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """A workload's identity. Invariant: every part is valid, so `str()` parses back to an equal value."""

    trust_domain: str
    namespace: str
    service_account: str

    def __post_init__(self) -> None:
        if not _TRUST_DOMAIN.fullmatch(self.trust_domain):
            raise SpiffeError(f"not a trust domain: {self.trust_domain!r}")
        for what, segment in (("namespace", self.namespace), ("service account", self.service_account)):
            if not _SEGMENT.fullmatch(segment) or segment in (".", ".."):
                raise SpiffeError(f"not a {what}: {segment!r}")

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """Read the id from its URI.

        Raises SpiffeError for any other scheme, shape, character or length.
        """
        if len(text) > _MAX_LENGTH:
            raise SpiffeError(f"longer than {_MAX_LENGTH} characters")
        if not text.startswith("spiffe://"):
            raise SpiffeError(f"not a SPIFFE id: {text!r}")
        match text.removeprefix("spiffe://").split("/"):
            case [trust_domain, "ns", namespace, "sa", service_account]:
                return cls(trust_domain, namespace, service_account)
        raise SpiffeError(f"not of the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT: {text!r}")

    @classmethod
    def of_certificate(cls, certificate: x509.Certificate | bytes) -> SpiffeId:
        """Read the id of a certificate (parsed, or DER), which must have exactly one URI SAN (X509-SVID §2).

        It says who the certificate names, not that the certificate is to be trusted: verify the chain first.
        Raises SpiffeError.
        """
        try:
            if isinstance(certificate, bytes):
                certificate = x509.load_der_x509_certificate(certificate)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            return sole_spiffe_id(names)
        except x509.ExtensionNotFound:
            raise SpiffeError("the certificate has no subject alternative name") from None
        except SpiffeError:
            raise
        except ValueError as error:
            raise SpiffeError(f"the certificate cannot be read: {error}") from error


def sole_spiffe_id(names: x509.SubjectAlternativeName) -> SpiffeId:
    """The identity among the names of a certificate or CSR; raises SpiffeError unless there is one URI."""
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise SpiffeError(f"{len(uris)} URI names where exactly one is allowed")
    return SpiffeId.parse(uris[0])
