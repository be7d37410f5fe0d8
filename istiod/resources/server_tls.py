"""TLS that a server terminates: of a Gateway's servers and a Sidecar's ingress listeners."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from istiod.resources.schema import Bool, NonEmpty, Spec, Str

TlsVersion = Literal["TLS_AUTO", "TLSV1_0", "TLSV1_1", "TLSV1_2", "TLSV1_3"]


class TlsCertificate(Spec):
    """One certificate by file names."""

    server_certificate: Str = ""
    private_key: Str = ""
    ca_certificates: Str = ""


class ServerTls(Spec):
    """TLS of a gateway's server or a sidecar's ingress."""

    https_redirect: Bool = False
    mode: Literal[
        "PASSTHROUGH", "SIMPLE", "MUTUAL", "AUTO_PASSTHROUGH", "ISTIO_MUTUAL", "OPTIONAL_MUTUAL"
    ] = "PASSTHROUGH"
    server_certificate: Str = ""
    private_key: Str = ""
    ca_certificates: Str = ""
    ca_crl: Str = ""
    credential_name: Str = ""
    credential_names: Annotated[tuple[NonEmpty, ...], Field(min_length=1, max_length=2)] | None = None
    ca_cert_credential_name: Str = ""
    tls_certificates: Annotated[tuple[TlsCertificate, ...], Field(min_length=1, max_length=2)] | None = None
    subject_alt_names: tuple[NonEmpty, ...] = ()
    verify_certificate_spki: tuple[NonEmpty, ...] = ()
    verify_certificate_hash: tuple[NonEmpty, ...] = ()
    min_protocol_version: TlsVersion = "TLS_AUTO"
    max_protocol_version: TlsVersion = "TLS_AUTO"
    cipher_suites: tuple[NonEmpty, ...] = ()
    insecure_skip_verify: Bool | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.mode == "ISTIO_MUTUAL":
            for name, value in self._files():
                if value:
                    yield name, "may not be set for ISTIO_MUTUAL"
            return
        if self.credential_names is not None and self.tls_certificates is not None:
            yield "credentialNames", "only one of credentialNames or tlsCertificates can be set"
        if self.credential_name and self.credential_names is not None:
            yield "credentialNames", "only one of credentialName or credentialNames can be set"
        if self.credential_name and self.tls_certificates is not None:
            yield "tlsCertificates", "only one of credentialName or tlsCertificates can be set"
        if self.mode in ("PASSTHROUGH", "AUTO_PASSTHROUGH"):
            return
        if not self.credential_name and not self.credential_names and not self.tls_certificates:
            for name, value in self._files()[: 2 if self.mode == "SIMPLE" else 3]:
                if not value:
                    yield name, f"must be set for {self.mode}"
        if self.ca_crl and (self.mode == "SIMPLE" or self.credential_name):
            yield "caCrl", "has no meaning for SIMPLE or with credentialName"

    def _files(self) -> tuple[tuple[str, str], ...]:
        return (
            ("serverCertificate", self.server_certificate),
            ("privateKey", self.private_key),
            ("caCertificates", self.ca_certificates),
            ("credentialName", self.credential_name),
        )
