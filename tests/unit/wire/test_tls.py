"""The control plane's TLS: who gets in, who does not, and what a first contact proves."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
import trio

from wire import tls, x509
from wire.grpc import (
    ConnectionLimits,
    GrpcError,
    GrpcStatus,
    Limits,
    Peer,
    ServerCall,
    listen,
    open_channel,
    port_of,
    serve,
)
from wire.spiffe import SpiffeId

ISTIOD = SpiffeId("cluster.local", "hostmesh-system", "istiod")
REVIEWS = SpiffeId("cluster.local", "default", "reviews")


@dataclass
class Authority:
    key: x509.PrivateKey
    root: x509.Certificate

    @classmethod
    def make(cls) -> Authority:
        key = x509.new_key()
        yesterday = datetime.now(UTC) - timedelta(days=1)
        return cls(key, x509.self_signed_root(key, ttl=timedelta(days=2), now=yesterday))

    def identity(
        self, *names: SpiffeId | str, age: timedelta = timedelta(), ttl: timedelta = timedelta(hours=1)
    ) -> tuple[bytes, bytes]:
        """Certificate chain and key as PEM."""
        key = x509.new_key()
        leaf = x509.issue(
            key.public_key(),
            uri_sans=names,
            dns_sans=["istiod"],
            ca_cert=self.root,
            ca_key=self.key,
            ttl=ttl,
            now=datetime.now(UTC) - age,
        )
        return x509.to_pem([leaf, self.root]), x509.key_to_pem(key)

    @property
    def pem(self) -> bytes:
        return x509.to_pem(self.root)


CA, OTHER = Authority.make(), Authority.make()


def talk(
    context: ssl.SSLContext, client: Callable[[int], Awaitable[None]], limits: Limits | None = None
) -> list[Peer]:
    """Serve one method with that context while the client talks; gives the peers that were served."""
    peers: list[Peer] = []

    async def whoami(call: ServerCall) -> None:
        peers.append(call.peer)
        message = await call.receive()
        await call.send(b"%d bytes" % len(message or b""))

    async def main() -> None:
        listeners = await listen("127.0.0.1", 0, context)
        port = port_of(listeners[0])
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: serve(listeners, {"/t/whoami": whoami}, limits=limits))
                await client(port)
                nursery.cancel_scope.cancel()

    trio.run(main)
    return peers


async def call(
    port: int, context: ssl.SSLContext, expected: SpiffeId | None = ISTIOD, size: int = 3
) -> bytes:
    async with open_channel(lambda: tls.connect("127.0.0.1", port, context, expected), "istiod") as channel:
        return await channel.unary("/t/whoami", bytes(size), deadline=5)


def server(*, required: bool = False) -> ssl.SSLContext:
    return tls.server_context(*CA.identity(ISTIOD), client_ca_pem=CA.pem, client_required=required)


def test_both_sides_know_each_other_and_speak_tls_1_3() -> None:
    async def client(port: int) -> None:
        context = tls.client_context(CA.pem, *CA.identity(REVIEWS))
        assert await call(port, context) == b"3 bytes"
        stream = await tls.connect("127.0.0.1", port, context, ISTIOD)
        assert (stream.version(), stream.selected_alpn_protocol()) == ("TLSv1.3", "h2")
        assert tls.peer_spiffe_id(stream) == ISTIOD
        await trio.aclose_forcefully(stream)

    (peer,) = talk(server(required=True), client)
    assert peer.spiffe_id == REVIEWS
    assert peer.cert_der is not None
    assert SpiffeId.of_certificate(peer.cert_der) == REVIEWS
    assert peer.address.startswith("127.0.0.1:")


def test_without_a_certificate_a_client_is_anonymous_where_that_is_allowed_and_may_say_less() -> None:
    async def client(port: int) -> None:
        context = tls.client_context(CA.pem)
        await call(port, context)
        with pytest.raises(GrpcError) as caught:
            await call(port, context, size=100_000)
        assert caught.value.status is GrpcStatus.RESOURCE_EXHAUSTED

    peers = talk(server(), client)
    assert [(peer.spiffe_id, peer.cert_der) for peer in peers] == [(None, None)] * 2


@pytest.mark.parametrize("required", [True, False])
def test_a_certificate_that_is_presented_must_be_right(required: bool) -> None:
    refused = [
        tls.client_context(CA.pem, *OTHER.identity(REVIEWS)),
        tls.client_context(CA.pem, *CA.identity(REVIEWS, age=timedelta(hours=2))),
        tls.client_context(CA.pem, *CA.identity(REVIEWS, ISTIOD)),
        tls.client_context(CA.pem, *CA.identity("https://example.net/")),
    ]
    if required:
        refused.append(tls.client_context(CA.pem))

    async def client(port: int) -> None:
        for context in refused:
            with pytest.raises((GrpcError, ssl.SSLError, trio.BrokenResourceError)):
                await call(port, context)
        await call(port, tls.client_context(CA.pem, *CA.identity(REVIEWS)))

    (peer,) = talk(server(required=required), client)
    assert peer.spiffe_id == REVIEWS


def test_a_client_refuses_a_server_that_is_somebody_else() -> None:
    async def client(port: int) -> None:
        with pytest.raises(tls.TlsError, match="/sa/istiod, not spiffe://"):
            await call(port, tls.client_context(CA.pem), expected=REVIEWS)
        with pytest.raises(ssl.SSLError, match="certificate verify failed"):
            await call(port, tls.client_context(OTHER.pem))
        with pytest.raises((tls.TlsError, ssl.SSLError, trio.BrokenResourceError)):
            await call(port, tls.client_context(CA.pem, alpn=("http/1.1",)))

    assert talk(server(), client) == []


def test_a_first_contact_gets_the_root_that_its_token_names_and_no_other() -> None:
    async def client(port: int) -> None:
        async def root(pin: str) -> bytes:
            return await tls.pinned_root(await trio.open_tcp_stream("127.0.0.1", port), pin, "istiod")

        assert await root(x509.fingerprint(CA.root)) == CA.pem
        assert await call(port, tls.client_context(await root(x509.fingerprint(CA.root).upper())))
        with pytest.raises(tls.TlsError, match="pinned"):
            await root(x509.fingerprint(OTHER.root))

    talk(server(), client)


def test_an_impostor_with_the_right_root_in_its_chain_is_still_refused() -> None:
    leaf, key = OTHER.identity(ISTIOD)
    impostor = tls.server_context(x509.to_pem(x509.load_chain(leaf)[0]) + CA.pem, key)

    async def client(port: int) -> None:
        transport = await trio.open_tcp_stream("127.0.0.1", port)
        root = await tls.pinned_root(transport, x509.fingerprint(CA.root), "istiod")
        with pytest.raises(ssl.SSLError, match="certificate verify failed"):
            await call(port, tls.client_context(root))

    assert talk(impostor, client) == []


def test_old_versions_of_tls_are_refused() -> None:
    async def client(port: int) -> None:
        context = tls.client_context(CA.pem)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        assert await call(port, context)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname = False
        old.verify_mode = ssl.CERT_NONE
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning):
            old.minimum_version = ssl.TLSVersion.TLSv1
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, trio.BrokenResourceError)):
            await call(port, old)

    talk(server(), client)


def test_a_renewed_certificate_serves_later_connections() -> None:
    context = server()

    async def client(port: int) -> None:
        await call(port, tls.client_context(CA.pem))
        tls.load_identity(context, *OTHER.identity(ISTIOD))
        await call(port, tls.client_context(OTHER.pem))

    assert len(talk(context, client)) == 2


def test_a_peer_that_never_shakes_hands_is_let_go() -> None:
    async def client(port: int) -> None:
        silent = await trio.open_tcp_stream("127.0.0.1", port)
        assert await silent.receive_some() == b""
        await silent.aclose()

    assert talk(server(), client, Limits(connections=ConnectionLimits(handshake_timeout=0.1))) == []
