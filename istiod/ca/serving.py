"""istiod's own certificates for its TLS listeners, and their renewal under way.

Rule: a new key with every certificate, in memory only; a live SSLContext is given the new certificate at half of the
old one's life, so that listeners and connections go on. Not for admin clients' certificates (istiod.ca.admin).
"""

from __future__ import annotations

import ipaddress
import logging
import ssl
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import trio

from istiod.ca.authority import Authority
from istiod.log import fields
from wire import tls, x509
from wire.spiffe import SpiffeId

__all__ = ["ServerNames", "ServingCertificate", "server_names", "utc_now"]

_log = logging.getLogger("istiod.ca")

_LIFETIME = timedelta(hours=24)
_LOOK_SECONDS = 60.0
"""How often the wall clock is looked at: it may jump, a sleep of hours would not notice."""


def utc_now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class ServerNames:
    """The names of a server's certificate."""

    uris: tuple[SpiffeId | str, ...]
    dns: tuple[str, ...]
    ips: tuple[str, ...]


def server_names(
    uris: Iterable[SpiffeId | str], *, configured: Iterable[str], listening: Iterable[str], hostname: str
) -> ServerNames:
    """All names under which this istiod may be called: configured, listened on, the host's, and local ones.

    `listening` are the hosts of listen addresses; wildcards among them name nobody and are left out.
    """
    dns, ips = {"istiod", "localhost"}, {"127.0.0.1", "::1"}
    for name in (*configured, *listening, hostname):
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            if name and name.isascii():
                dns.add(name.lower().rstrip("."))
        else:
            if not address.is_unspecified:
                ips.add(str(address))
    return ServerNames(tuple(uris), tuple(sorted(dns)), tuple(sorted(ips)))


class ServingCertificate:
    """A listener's TLS context, whose certificate stays fresh while `keep_fresh` runs."""

    def __init__(
        self,
        authority: Authority,
        names: ServerNames,
        *,
        client_roots: bytes,
        client_required: bool,
        alpn: Sequence[str] = tls.H2,
        now: datetime,
    ) -> None:
        self._authority = authority
        self._names = names
        chain, key = self._issue(now)
        self.context: ssl.SSLContext = tls.server_context(chain, key, client_roots, client_required, alpn)

    @property
    def expires(self) -> datetime:
        """When the certificate in use ends."""
        return self._certificate.not_valid_after_utc

    def renew(self, now: datetime) -> None:
        """Give later handshakes a new certificate. Raises wire.x509.X509Error when the CA has expired."""
        chain, key = self._issue(now)
        tls.load_identity(self.context, chain, key)
        _log.info("istiod's own certificate renewed", extra=fields(expires=self.expires.isoformat()))

    async def keep_fresh(self, clock: Callable[[], datetime] = utc_now) -> None:
        """Renew at half of each certificate's life, until cancelled."""
        while True:
            now = clock()
            if now >= self._renew_at or now < self._issued_at - x509.CLOCK_SKEW:
                try:
                    self.renew(now)
                except x509.X509Error as error:
                    _log.error("istiod's own certificate cannot be renewed", extra=fields(reason=str(error)))
            await trio.sleep(_LOOK_SECONDS)

    def _issue(self, now: datetime) -> tuple[bytes, bytes]:
        key = x509.new_key()
        issued = self._authority.issue(
            key.public_key(),
            now=now,
            ttl=_LIFETIME,
            uris=self._names.uris,
            dns=self._names.dns,
            ips=self._names.ips,
        )
        self._certificate = issued.certificate
        self._issued_at = now
        self._renew_at = now + (issued.certificate.not_valid_after_utc - now) / 2
        return issued.presented, x509.key_to_pem(key)
