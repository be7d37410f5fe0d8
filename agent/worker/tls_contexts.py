"""TLS settings of the table as ssl contexts, and the verdict on a peer after its handshake.

Rule: the object stays, the context in it is replaced: new handshakes use new certificates, existing connections live on.
Keys come from files or memory (SDS); memory goes through a memfd, never through a file that others could read.
Not for: handshakes (tls_transport).
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from agent.http.request import PeerIdentity
from agent.table.tls import DataSource, DownstreamTls, Secret, TlsSettings, UpstreamTls
from agent.worker.certificates import compile_judge, identity, presented_with, with_issuers
from agent.worker.der import DerError
from agent.worker.tls_sessions import Sessions

_VERSIONS = {
    "TLSv1.0": ssl.TLSVersion.TLSv1, "TLSv1.1": ssl.TLSVersion.TLSv1_1,
    "TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3,
}  # fmt: skip
_CIPHERS = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-CHACHA20-POLY1305:"
    "ECDHE-RSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"
)


_REMEMBERED = 2048
_TICKET_EVERY = 4
"""Handshakes of which one brings a session ticket."""


class TlsError(Exception):
    """Settings that cannot be used, with the reason."""


class SecretMissing(TlsError):
    """A named secret has not been delivered (yet)."""


@dataclass(slots=True)
class Renewal:
    """What a set of secrets makes of a context: computed by `Tls.renewal`, which may fail, used by `Tls.adopt`."""

    context: ssl.SSLContext | None = None
    used: dict[str, Secret | None] = field(default_factory=dict)
    uri_sans: tuple[str, ...] = ()
    missing: str = ""


class Tls:
    """One side's context. Invariant: `context` was made from `settings` and the secrets in `_used`."""

    def __init__(
        self,
        settings: TlsSettings,
        secrets: Mapping[str, Secret] | None,
        *,
        server: bool,
        alpn: Sequence[str],
    ) -> None:
        """Without `secrets` there is no context yet. Raises TlsError."""
        self.settings = settings
        self._server = server
        self._alpn = list(alpn)
        self._used: dict[str, Secret | None] = {}
        validation = settings.validation
        self._judge = compile_judge(validation.sans) if validation is not None else None
        self._verifies = (
            validation is not None and validation.ca is not None and not validation.accept_untrusted
        )
        self.local_uri_sans: tuple[str, ...] = ()
        self.context: ssl.SSLContext | None = None
        self._expiries: dict[bytes, float] = {}
        self.missing = ""
        """Why there is no context: a secret that has not been delivered yet, or a file that cannot be used."""
        renewal = None if secrets is None else self.renewal(secrets)
        if renewal is not None:
            self.adopt(renewal)

    def renewal(self, secrets: Mapping[str, Secret]) -> Renewal | None:
        """What renewed secrets make of the context, None where they change nothing. Changes nothing itself. Raises
        TlsError."""
        if self.context is not None and all(secrets.get(name) is one for name, one in self._used.items()):
            return None
        renewal = Renewal()
        try:
            renewal.context = self._make(secrets, renewal)
        except SecretMissing as error:
            renewal.missing = str(error)
        return renewal

    def adopt(self, renewal: Renewal) -> None:
        """Use it for the handshakes to come."""
        self.context, self.missing, self._used = renewal.context, renewal.missing, renewal.used
        if renewal.context is not None:
            self.local_uri_sans = renewal.uri_sans

    def verdict(self, connection: ssl.SSLSocket | ssl.SSLObject) -> tuple[PeerIdentity | None, str]:
        """The peer after the handshake, and why it is refused (empty: it is not)."""
        der = connection.getpeercert(True)
        if der is None:
            required = isinstance(self.settings, DownstreamTls) and self.settings.require_client_certificate
            return None, "no certificate" if required else ""
        try:
            others = presented_with(connection, der) if isinstance(self.settings, DownstreamTls) else ()
            peer = identity(der, others, verified=self._verifies)
        except DerError as error:
            return None, f"unreadable certificate: {error}"
        if connection.session_reused and self._valid_until(der, connection) <= time.time():
            return peer, "certificate has expired"
        if sum(uri.startswith("spiffe:") for uri in peer.uri_sans) > 1:
            return peer, "more than one SPIFFE id in the certificate"
        validation = self.settings.validation
        if validation is not None:
            if self._judge is not None and not self._judge(peer):
                return peer, "verify SAN list"
            if validation.certificate_hashes and peer.sha256 not in validation.certificate_hashes:
                return peer, "certificate hash"
        return peer, ""

    def _valid_until(self, der: bytes, connection: ssl.SSLSocket | ssl.SSLObject) -> float:
        """Until when a verified certificate is good, seconds since the epoch: OpenSSL asks only in whole handshakes."""
        until = self._expiries.get(der)
        if until is None:
            told = connection.getpeercert()
            until = ssl.cert_time_to_seconds(str(told["notAfter"])) if told else inf
            if len(self._expiries) >= _REMEMBERED:
                self._expiries.clear()
            self._expiries[der] = until
        return until

    def _resolve(self, secret: Secret | str, secrets: Mapping[str, Secret], renewal: Renewal) -> Secret:
        if isinstance(secret, Secret):
            return secret
        found = secrets.get(secret)
        renewal.used[secret] = found
        if found is None:
            raise SecretMissing(f"the secret {secret} is not there")
        return found

    def _make(self, secrets: Mapping[str, Secret], renewal: Renewal) -> ssl.SSLContext:
        settings = self.settings
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if self._server else ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = _VERSIONS[settings.min_version]
        context.maximum_version = _VERSIONS[settings.max_version]
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
        if isinstance(settings, DownstreamTls):
            context.num_tickets = 0
            if settings.client_ciphers_first:
                context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
            if not settings.tickets:
                context.options |= ssl.OP_NO_TICKET
        try:
            tls12 = [name for name in settings.ciphers if not name.startswith("TLS_")]
            context.set_ciphers(":".join(tls12) if tls12 else _CIPHERS)
            certificates = [self._resolve(secret, secrets, renewal) for secret in settings.certificates]
            trusted = b""
            validation = settings.validation
            if validation is not None and validation.ca is not None and not validation.accept_untrusted:
                trusted = load_roots(context, self._resolve(validation.ca, secrets, renewal))
                context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
                optional = isinstance(settings, DownstreamTls) and not settings.require_client_certificate
                context.verify_mode = ssl.CERT_OPTIONAL if optional else ssl.CERT_REQUIRED
            for certificate in certificates:
                load_certificate(context, certificate, trusted, renewal)
            if self._alpn:
                context.set_alpn_protocols(self._alpn)
        except (OSError, ValueError) as error:
            raise TlsError(str(error)) from error
        return context


def load_certificate(context: ssl.SSLContext, secret: Secret, trusted: bytes, renewal: Renewal) -> None:
    """Present the secret's certificate, with its issuers among the `trusted` roots. Raises TlsError, OSError or ValueError."""
    if secret.certificate_chain is None or secret.private_key is None:
        raise TlsError(f"the secret {secret.name} has no certificate and key")
    chain, key = _read(secret.certificate_chain), _read(secret.private_key)
    descriptor = os.memfd_create("hostmesh-key", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, key + b"\n" + with_issuers(chain, trusted))
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    if not renewal.uri_sans:
        first = chain.split(b"-----END CERTIFICATE-----")[0].decode("ascii", "ignore")
        at = first.find("-----BEGIN CERTIFICATE-----")
        der = ssl.PEM_cert_to_DER_cert(first[at:] + "-----END CERTIFICATE-----")
        try:
            renewal.uri_sans = identity(der).uri_sans
        except DerError as error:
            raise TlsError(f"the certificate of {secret.name} cannot be read: {error}") from error


def load_roots(context: ssl.SSLContext, secret: Secret) -> bytes:
    """Trust the secret's roots, and return them. Raises TlsError, OSError or ValueError."""
    if secret.trusted_ca is None:
        raise TlsError("a validation secret without trusted_ca")
    trusted = _read(secret.trusted_ca)
    context.load_verify_locations(cadata=trusted.decode("ascii", "ignore"))
    return trusted


def check_secret(secret: Secret) -> None:
    """Can the secret be used? Raises TlsError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if secret.trusted_ca is not None:
            load_roots(context, secret)
        else:
            load_certificate(context, secret, b"", Renewal())
    except (OSError, ValueError) as error:
        raise TlsError(str(error)) from error


class ServerTls(Tls):
    """The listening side of a filter chain."""

    def __init__(
        self, settings: DownstreamTls, secrets: Mapping[str, Secret] | None, *, http: bool, missing: str = ""
    ) -> None:
        """`missing`: why there are no secrets."""
        alpn = [name for name in settings.alpn if name != "h2"] if http else settings.alpn
        super().__init__(settings, secrets, server=True, alpn=alpn)
        self.missing = self.missing or missing
        self._handshakes = 0
        self._tickets = settings.tickets

    def next_context(self) -> ssl.SSLContext | None:
        """The context of the next handshake, None while a secret is missing. OpenSSL reads the client's certificate again
        for each ticket, at a quarter of a handshake's cost; a peer uses its ticket many times, so some get none."""
        context = self.context
        if context is not None and self._tickets:
            context.num_tickets = 0 if self._handshakes % _TICKET_EVERY else 1
            self._handshakes += 1
        return context


class ClientTls(Tls):
    """The connecting side of a cluster or of one transport_socket_match."""

    def __init__(self, settings: UpstreamTls, secrets: Mapping[str, Secret], *, http: bool) -> None:
        alpn = [name for name in settings.alpn if name != "h2"] if http else settings.alpn
        super().__init__(settings, secrets, server=False, alpn=alpn)
        self.sni = settings.sni or None
        self.sessions = Sessions(enabled=settings.resume)


def _read(source: DataSource) -> bytes:
    return Path(source.filename).read_bytes() if source.filename else source.inline
