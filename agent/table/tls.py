"""TLS settings of listeners and clusters, as values (Envoy CommonTlsContext and its two users).

Secrets are named, not held: the table's `secrets` map resolves a name, and certificates can be
renewed without a new table. Not for: ssl contexts, which agent/worker makes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.table.matchers import StringMatch


@dataclass(frozen=True, slots=True)
class DataSource:
    """Envoy DataSource: a file's name or the bytes themselves. They never reach a log."""

    filename: str = ""
    inline: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Secret:
    """One certificate with key, or one set of trusted roots."""

    name: str
    certificate_chain: DataSource | None = None
    private_key: DataSource | None = None
    trusted_ca: DataSource | None = None


@dataclass(frozen=True, slots=True)
class SanMatch:
    """`kind` is `uri`, `dns`, `ip` or `email`, or `any` for the deprecated untyped matcher."""

    kind: str
    match: StringMatch


@dataclass(frozen=True, slots=True)
class Validation:
    """How the peer's certificate is judged. Without trusted roots a certificate is only presented."""

    ca: Secret | str | None = None
    """A secret, or the name of one."""
    sans: tuple[SanMatch, ...] = ()
    certificate_hashes: tuple[str, ...] = ()
    accept_untrusted: bool = False


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """Shared by both sides. Versions are `TLSv1.2`, `TLSv1.3`."""

    certificates: tuple[Secret | str, ...] = ()
    validation: Validation | None = None
    alpn: tuple[str, ...] = ()
    min_version: str = "TLSv1.2"
    max_version: str = "TLSv1.3"
    ciphers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DownstreamTls(TlsSettings):
    """Envoy DownstreamTlsContext."""

    require_client_certificate: bool = False
    tickets: bool = True
    """Offer session tickets."""
    client_ciphers_first: bool = False


@dataclass(frozen=True, slots=True)
class UpstreamTls(TlsSettings):
    """Envoy UpstreamTlsContext."""

    sni: str = ""
    resume: bool = True
    """Keep sessions and resume them."""
