"""TLS of the control plane: contexts, first contact by pinned root, and who the peer is.

Rule: a chain is verified by OpenSSL against a root that we chose; names are not compared there. Whom we talk
to is the SPIFFE id, checked here after the handshake and before the first byte of application data. Keys
reach OpenSSL through memory files only. Not for the data plane, whose TLS has no trio streams (agent.worker).
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Any

import trio

from wire.memory_file import memory_file
from wire.spiffe import SpiffeError, SpiffeId
from wire.x509 import fingerprint

TlsStream = trio.SSLStream[trio.abc.Stream]

H2 = ("h2",)
HANDSHAKE_SECONDS = 10.0


class TlsError(Exception):
    """A peer that is not the one we were promised, or speaks another protocol; the message says why."""


def server_context(
    cert_chain_pem: bytes,
    key_pem: bytes,
    client_ca_pem: bytes | None = None,
    client_required: bool = True,
    alpn: Sequence[str] = H2,
) -> ssl.SSLContext:
    """A server's context: TLS 1.2 at least, no session tickets.

    With `client_ca_pem` a client certificate is asked for and, when presented, verified; it must be presented
    when `client_required`. Without `client_ca_pem` none is asked for. `cert_chain_pem` is leaf first; put the
    root last so that first contacts can pin it (`pinned_root`). Raises ssl.SSLError when certificate and key
    do not fit.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, alpn)
    # Every connection proves its identity anew: a resumed session would outlive a certificate.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_CIPHER_SERVER_PREFERENCE
    load_identity(context, cert_chain_pem, key_pem)
    if client_ca_pem is not None:
        context.load_verify_locations(cadata=client_ca_pem.decode("ascii"))
        context.verify_mode = ssl.CERT_REQUIRED if client_required else ssl.CERT_OPTIONAL
    return context


def client_context(
    ca_pem: bytes,
    cert_chain_pem: bytes | None = None,
    key_pem: bytes | None = None,
    alpn: Sequence[str] = H2,
) -> ssl.SSLContext:
    """A client's context that trusts `ca_pem` only, with a client certificate when both other PEMs are given.

    Host names are not compared: check `peer_spiffe_id` (`connect` does). For a first contact with nothing but
    a fingerprint, get `ca_pem` from `pinned_root`.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, alpn)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=ca_pem.decode("ascii"))
    if cert_chain_pem is not None and key_pem is not None:
        load_identity(context, cert_chain_pem, key_pem)
    return context


def load_identity(context: ssl.SSLContext, cert_chain_pem: bytes, key_pem: bytes) -> None:
    """Give the context a certificate and its key; on a live context later handshakes use the new ones."""
    # OpenSSL reads files; a memory file has no name, and /proc/self/fd is ours alone.
    with memory_file(cert_chain_pem) as certificate, memory_file(key_pem) as key:
        context.load_cert_chain(certificate, key)


def peer_certificate(stream: TlsStream) -> bytes | None:
    """The verified peer certificate in DER, None when the peer presented none; after the handshake."""
    der = stream.getpeercert(binary_form=True)
    assert der is None or isinstance(der, bytes)
    return der


def peer_spiffe_id(stream: TlsStream) -> SpiffeId | None:
    """The identity of the verified peer, or None when it presented no certificate.

    Raises SpiffeError when the certificate has no acceptable identity. The handshake must be done.
    """
    der = peer_certificate(stream)
    return None if der is None else SpiffeId.of_certificate(der)


async def connect(host: str, port: int, context: ssl.SSLContext, expected: SpiffeId | None) -> TlsStream:
    """Open a verified TLS connection to `host:port`.

    The peer must speak one of the context's protocols and, unless `expected` is None, be exactly that
    identity. Raises TlsError for a wrong peer, ssl.SSLError, OSError, trio.BrokenResourceError, or
    trio.TooSlowError after 10 s.
    """
    with trio.fail_after(HANDSHAKE_SECONDS):
        return await handshake(await trio.open_tcp_stream(host, port), context, expected, host)


async def handshake(
    transport: trio.abc.Stream, context: ssl.SSLContext, expected: SpiffeId | None, server_hostname: str
) -> TlsStream:
    """TLS as a client over an open transport, with the checks and errors of `connect`, without its limit."""
    stream: TlsStream = trio.SSLStream(
        transport, context, server_hostname=server_hostname, https_compatible=True
    )
    try:
        await stream.do_handshake()
        if stream.selected_alpn_protocol() is None:
            raise TlsError("the peer speaks none of the offered protocols (ALPN)")
        if expected is not None and (actual := _peer(stream)) != expected:
            raise TlsError(f"the peer is {actual}, not {expected}")
    except BaseException as error:
        await trio.aclose_forcefully(stream)
        if isinstance(error, trio.BrokenResourceError) and isinstance(error.__cause__, ssl.SSLError):
            raise error.__cause__ from error
        raise
    return stream


async def pinned_root(transport: trio.abc.Stream, pin: str, server_hostname: str) -> bytes:
    """Ask a server for its root certificate and return it as PEM if its SHA-256 (hex) is `pin`.

    For the first contact, when the join token's fingerprint is all that is known. It proves nothing about the
    server: verify the next connection against the root returned. Uses up and closes `transport`. Raises
    TlsError.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, H2)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=server_hostname)
    async with transport:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await transport.send_all(outgoing.read())
                if not (data := await transport.receive_some()):
                    raise TlsError("the server closed the connection during the handshake") from None
                incoming.write(data)
            except ssl.SSLError as error:
                raise TlsError(f"the handshake failed: {error}") from error
    for der in _presented_chain(tls):
        if fingerprint(der) == pin.lower():
            return ssl.DER_cert_to_PEM_cert(der).encode("ascii")
    raise TlsError("no certificate that the server presented has the pinned fingerprint")


def _peer(stream: TlsStream) -> SpiffeId | None:
    try:
        return peer_spiffe_id(stream)
    except SpiffeError as error:
        raise TlsError(f"the peer has no acceptable identity: {error}") from error


def _presented_chain(tls: ssl.SSLObject) -> list[bytes]:
    """What the peer sent, leaf first, in DER: public since Python 3.13, before that on the inner object."""
    public: Any = getattr(tls, "get_unverified_chain", None)
    if public is not None:
        return list(public())
    inner: Any = tls._sslobj  # type: ignore[attr-defined]
    chain = inner.get_unverified_chain() or []
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in chain]


def _context(protocol: int, alpn: Sequence[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # RFC 9113 §9.2.2: forward secrecy and AEAD for TLS 1.2 as well (TLS 1.3 suites are always such).
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context
