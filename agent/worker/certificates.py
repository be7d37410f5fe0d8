"""What a peer's certificate says, read once per certificate.

Rule: names are read from DER (der.py), never from text, so that a NUL or a comma inside a name stays inside it.
The judgement of names is Envoy's match_typed_subject_alt_names: any of the matchers on any of the names.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from agent.http.request import PeerIdentity
from agent.table.matchers import compile_string
from agent.table.tls import SanMatch
from agent.worker.der import read_names

Judge = Callable[[PeerIdentity], bool]


@lru_cache(maxsize=2048)
def identity(der: bytes, others: tuple[bytes, ...] = ()) -> PeerIdentity:
    """The identity in a DER certificate; `others` came with it. Raises DerError."""
    names = read_names(der)
    pem = ssl.DER_cert_to_PEM_cert(der)
    return PeerIdentity(
        uri_sans=names.uris,
        dns_sans=names.dns,
        subject=names.subject,
        issuer=names.issuer,
        serial=names.serial,
        sha256=hashlib.sha256(der).hexdigest(),
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


def compile_judge(sans: Sequence[SanMatch]) -> Judge | None:
    """The function that accepts a peer by its names; None where every verified peer is accepted."""
    if not sans:
        return None
    tests = [(san.kind, compile_string(san.match)) for san in sans]

    def judge(peer: PeerIdentity) -> bool:
        for kind, test in tests:
            if kind in ("uri", "any") and any(test(name.encode()) for name in peer.uri_sans):
                return True
            if kind in ("dns", "any") and any(test(name.encode()) for name in peer.dns_sans):
                return True
        return False

    return judge
