"""Resumption: what is remembered of a host, when it is used, and that it never outlives what it rests on."""

from __future__ import annotations

import ssl
import time
from datetime import UTC, datetime, timedelta

import pytest

from agent.table.tls import DataSource, DownstreamTls, Secret, UpstreamTls, Validation
from agent.worker.tls_contexts import ClientTls, ServerTls, TlsError
from agent.worker.tls_sessions import LIFETIME, MISSES
from wire import x509
from wire.spiffe import SpiffeId

HOST = "192.0.2.1:9080"


class _Authority:
    def __init__(self) -> None:
        self.now = datetime.now(UTC)
        self.key = x509.new_key()
        self.root = x509.self_signed_root(self.key, ttl=timedelta(days=1), now=self.now)

    def settings(self, name: str, ttl: timedelta = timedelta(hours=1)) -> tuple[tuple[Secret], Validation]:
        key = x509.new_key()
        leaf = x509.issue(
            key.public_key(), ca_cert=self.root, ca_key=self.key, ttl=ttl, now=self.now,
            uri_sans=[SpiffeId.parse(f"spiffe://cluster.local/ns/default/sa/{name}")],
        )  # fmt: skip
        chain, secret = DataSource(inline=x509.to_pem(leaf)), DataSource(inline=x509.key_to_pem(key))
        roots = Secret("roots", trusted_ca=DataSource(inline=x509.to_pem(self.root)))
        return (Secret(name, chain, secret),), Validation(roots)


def _server(authority: _Authority) -> ServerTls:
    certificates, validation = authority.settings("server")
    return ServerTls(DownstreamTls(certificates, validation, require_client_certificate=True), {}, http=False)


def _client(authority: _Authority, ttl: timedelta = timedelta(hours=1)) -> ClientTls:
    return ClientTls(UpstreamTls(*authority.settings("client", ttl)), {}, http=False)


def _handshake(server: ServerTls, client: ClientTls, now: float) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends after a handshake and a byte from the server; the client remembers what it is sent."""
    context = server.next_context()
    assert context is not None and client.context is not None
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = client.sessions.find(HOST, None, client.context, now)
    far = context.wrap_bio(up, down, server_side=True)
    near = client.context.wrap_bio(down, up, session=session)
    ends = [near, far]
    while ends:
        for end in tuple(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            ends.remove(end)
    far.write(b"x")
    assert near.read(1) == b"x"
    if session is not None:
        client.sessions.resumed(HOST, None, bool(near.session_reused))
    if client.sessions.wanted(HOST, None):
        client.sessions.keep(HOST, None, near, now)
    return near, far


def test_the_second_handshake_resumes_and_both_sides_still_know_who_it_is() -> None:
    authority = _Authority()
    server, client = _server(authority), _client(authority)
    first, _ = _handshake(server, client, 0.0)
    near, far = _handshake(server, client, 1.0)
    assert not first.session_reused and near.session_reused and far.session_reused
    peer, refused = server.verdict(far)
    assert (peer and peer.uri_sans, refused) == (("spiffe://cluster.local/ns/default/sa/client",), "")
    peer, refused = client.verdict(near)
    assert (peer and peer.uri_sans, refused) == (("spiffe://cluster.local/ns/default/sa/server",), "")


def test_a_session_is_not_used_for_ever_nor_for_another_host() -> None:
    authority = _Authority()
    server, client = _server(authority), _client(authority)
    _handshake(server, client, 0.0)
    context = client.context
    assert context is not None
    assert client.sessions.find("192.0.2.2:9080", None, context, 1.0) is None
    assert client.sessions.find(HOST, "other.example", context, 1.0) is None
    assert client.sessions.find(HOST, None, context, LIFETIME - 1) is not None
    assert client.sessions.find(HOST, None, context, LIFETIME + 1) is None


def test_a_new_context_begins_with_a_whole_handshake() -> None:
    """Renewed certificates and changed roots make new contexts; sessions of the old one must not speak for them."""
    authority = _Authority()
    server, client = _server(authority), _client(authority)
    _handshake(server, client, 0.0)
    client.context = _client(authority).context
    near, _ = _handshake(server, client, 1.0)
    assert not near.session_reused
    near, _ = _handshake(_server(authority), client, 2.0)
    assert not near.session_reused, "a ticket of other keys was taken"


def test_a_host_that_never_resumes_is_asked_for_another_session_in_the_end() -> None:
    authority = _Authority()
    server, client = _server(authority), _client(authority)
    _handshake(server, client, 0.0)
    for _ in range(MISSES):
        client.sessions.resumed(HOST, None, False)
    assert client.sessions.wanted(HOST, None)


def test_a_resumption_does_not_outlive_the_certificate_that_it_rests_on() -> None:
    authority = _Authority()
    server, client = _server(authority), _client(authority, timedelta(seconds=2))
    _handshake(server, client, 0.0)
    deadline = time.monotonic() + 10
    while True:
        near, far = _handshake(server, client, 1.0)
        assert near.session_reused, "a whole handshake would be refused by OpenSSL itself"
        refused = server.verdict(far)[1]
        if refused or time.monotonic() > deadline:
            break
    assert refused == "certificate has expired"


def test_a_proxy_says_the_identity_that_it_has_now() -> None:
    """XFCC's By= is of the certificate in use, also after another one was delivered or refused."""
    authority = _Authority()
    (first,), validation = authority.settings("first")
    (second,), _ = authority.settings("second")
    tls = ServerTls(DownstreamTls(("own",), validation), {"own": first}, http=True)
    assert tls.local_uri_sans == ("spiffe://cluster.local/ns/default/sa/first",)
    renewal = tls.renewal({"own": second})
    assert renewal is not None
    tls.adopt(renewal)
    assert tls.local_uri_sans == ("spiffe://cluster.local/ns/default/sa/second",)
    broken = Secret("own", DataSource(inline=b"no certificate"), second.private_key)
    with pytest.raises(TlsError):
        tls.renewal({"own": broken})
    assert tls.local_uri_sans == ("spiffe://cluster.local/ns/default/sa/second",)


@pytest.mark.parametrize("verifies", [True, False])
def test_a_peer_is_verified_only_where_there_are_roots(verifies: bool) -> None:
    authority = _Authority()
    server = _server(authority)
    certificates, validation = authority.settings("client")
    client = ClientTls(UpstreamTls(certificates, validation if verifies else None), {}, http=False)
    near, far = _handshake(server, client, 100.0)
    peer, refused = client.verdict(near)
    assert peer is not None and not refused
    assert peer.verified is verifies
    caller, _ = server.verdict(far)
    assert caller is not None and caller.verified
