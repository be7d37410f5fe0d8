"""What a peer's certificate says, read once per certificate.

Rule: names are read from DER (der.py), never from text, so that a NUL or a comma inside a name stays inside it.
The judgement of names is Envoy's match_typed_subject_alt_names: any of the matchers on any of the names.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

from agent.http.request import PeerIdentity
from agent.table.matchers import compile_string
from agent.table.tls import SanMatch
from agent.worker.der import DerError, read_names

_CERTIFICATE: Final = re.compile(r"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----")
_LONGEST_CHAIN: Final = 8
Judge = Callable[[PeerIdentity], bool]


@lru_cache(maxsize=2048)
def identity(der: bytes, others: tuple[bytes, ...] = (), *, verified: bool = False) -> PeerIdentity:
    """The identity in a DER certificate; `others` came with it. `verified`: against roots, by the handshake. Raises DerError."""
    names = read_names(der)
    pem = ssl.DER_cert_to_PEM_cert(der)
    return PeerIdentity(
        uri_sans=names.uris,
        dns_sans=names.dns,
        subject=names.subject,
        issuer=names.issuer,
        serial=names.serial,
        sha256=hashlib.sha256(der).hexdigest(),
        verified=verified,
        pem=pem,
        chain_pem=pem + "".join(map(ssl.DER_cert_to_PEM_cert, others)),
    )


def presented_with(connection: ssl.SSLObject | ssl.SSLSocket, der: bytes) -> tuple[bytes, ...]:
    """The other certificates that the peer of a connection sent, in DER. Python shows them publicly from 3.13 on."""
    chain = getattr(connection, "get_unverified_chain", None)
    if chain is not None:
        return tuple(one for one in chain() if one != der)
    held: Any = getattr(connection, "_sslobj", None)
    shown = getattr(held, "get_unverified_chain", None)
    if shown is None:
        return ()
    found = (ssl.PEM_cert_to_DER_cert(one.public_bytes()) for one in shown() or ())
    return tuple(one for one in found if one != der)


def with_issuers(chain: bytes, trusted: bytes) -> bytes:
    """A chain that is one certificate, with its issuers from the trusted ones (both PEM); any other chain as it is.

    OpenSSL sends these issuers anyway, but finds and verifies them anew in every handshake if the chain does not have them: a
    tenth of a handshake. By name only: where two have the issuer's name, OpenSSL goes on choosing."""
    own = _certificates(chain)
    if len(own) != 1:
        return chain
    candidates = _certificates(trusted)
    found: list[str] = []
    try:
        names = read_names(ssl.PEM_cert_to_DER_cert(own[0]))
        issuers = [(one, read_names(ssl.PEM_cert_to_DER_cert(one))) for one in candidates]
    except (ValueError, DerError):
        return chain  # OpenSSL says what is wrong with it
    while names.issuer != names.subject and len(found) < _LONGEST_CHAIN:
        fitting = [(one, its) for one, its in issuers if its.subject == names.issuer]
        if len(fitting) != 1:
            break
        found.append(fitting[0][0])
        names = fitting[0][1]
    return b"\n".join([chain.rstrip(b"\n"), *(one.encode() for one in found), b""])


def _certificates(pem: bytes) -> list[str]:
    return _CERTIFICATE.findall(pem.decode("ascii", "ignore"))


def compile_judge(sans: Sequence[SanMatch]) -> Judge | None:
    """The function that accepts a peer by its names; None where every verified peer is accepted."""
    if not sans:
        return None
    tests = [(san.kind, compile_string(san.match)) for san in sans]
    hosts = [san.match.value for san in sans if san.kind == "dns" and san.match.kind == "exact"]

    def judge(peer: PeerIdentity) -> bool:
        for kind, test in tests:
            if kind in ("uri", "any") and any(test(name.encode()) for name in peer.uri_sans):
                return True
            if kind in ("dns", "any") and any(test(name.encode()) for name in peer.dns_sans):
                return True
        return any(covers(name, host) for host in hosts for name in peer.dns_sans)

    return judge


def covers(pattern: str, host: str) -> bool:
    """Whether a certificate's DNS name stands for a host: `*` for one label, or within the first one (Envoy dnsNameMatch)."""
    pattern, host = pattern.lower(), host.lower()
    label, _, rest = pattern.partition(".")
    first, _, tail = host.partition(".")
    if pattern == host:
        return True
    if not rest or rest != tail or label.count("*") != 1 or "*" in rest or label.startswith("xn--"):
        return False
    before, _, after = label.partition("*")
    return len(first) >= len(label) - 1 and first.startswith(before) and first.endswith(after)
