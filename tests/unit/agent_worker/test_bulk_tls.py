"""TLS of opaque streams: not a byte is lost when the kernel takes less than is offered, and the end is told."""

from __future__ import annotations

import logging
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio

from agent.worker.reactor import Reactor
from agent.worker.tls_transport import BulkTlsTransport
from wire import x509
from wire.secret_file import write_secret


@pytest.fixture
def contexts(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of a server and of a client that trusts it."""
    now = datetime.now(UTC)
    root_key, key = x509.new_key(), x509.new_key()
    root = x509.self_signed_root(root_key, ttl=timedelta(days=1), now=now)
    leaf = x509.issue(
        key.public_key(), ca_cert=root, ca_key=root_key, ttl=timedelta(days=1), now=now, dns_sans=["server"]
    )
    (tmp_path / "chain.pem").write_bytes(x509.to_pem([leaf, root]))
    write_secret(tmp_path / "key.pem", x509.key_to_pem(key))
    (tmp_path / "root.pem").write_bytes(x509.to_pem(root))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem")
    client = ssl.create_default_context(cafile=str(tmp_path / "root.pem"))
    return server, client


class Side:
    """One end: keeps what it hears."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.heard = bytearray()
        self.over = trio.Event()
        self.secure = trio.Event()
        self.drains = 0
        self.broken = ""

    def handshaken(self) -> bool:
        self.secure.set()
        return True

    def received(self, data: bytes) -> None:
        self.heard += data

    def ended(self) -> None:
        self.over.set()

    def lost(self, reason: str) -> None:
        self.broken = reason
        self.over.set()

    def drained(self) -> None:
        self.drains += 1


def run(contexts: tuple[ssl.SSLContext, ssl.SSLContext], talk) -> None:  # type: ignore[no-untyped-def]
    """Two transports on one reactor, with tiny socket buffers between them."""

    async def main() -> None:
        reactor = Reactor()
        left, right = socket.socketpair()
        for sock in (left, right):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        hears, speaks = Side(reactor), Side(reactor)
        server = BulkTlsTransport(left, contexts[0], reactor, hears, server_side=True)
        client = BulkTlsTransport(
            right, contexts[1], reactor, speaks, server_side=False, server_name="server"
        )
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reactor.run)
                reactor.call(server.start)
                reactor.call(client.start)
                await speaks.secure.wait()
                await talk(reactor, client, speaks, server, hears)
                reactor.stop()
        server.close()
        client.close()
        reactor.close()

    trio.run(main)


def test_what_the_kernel_does_not_take_at_once_follows_in_order_before_the_end(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    sent = bytes(range(256)) * 40_000

    async def talk(reactor, client, speaks, server, hears) -> None:  # type: ignore[no-untyped-def]
        def speak() -> None:
            for start in range(0, len(sent), 100_000):
                client.write(sent[start : start + 100_000])
            client.flush()
            assert client.backlog > 0, "the socket took everything: the test shows nothing"
            client.finish()

        reactor.call(speak)
        await hears.over.wait()
        assert hears.broken == ""
        assert bytes(hears.heard) == sent
        assert speaks.drains >= 1

    run(contexts, talk)


def test_a_failing_flush_costs_its_own_connection_only(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty:
        closed = False

        def flush(self) -> None:
            raise RuntimeError("a bug")

        def on_failure(self) -> None:
            self.closed = True

    faulty = Faulty()

    async def talk(reactor, client, speaks, server, hears) -> None:  # type: ignore[no-untyped-def]
        def speak() -> None:
            reactor.dirty.append(faulty)
            client.write(b"still here")
            client.finish()

        reactor.call(lambda: 1 / 0)
        reactor.call(speak)
        await hears.over.wait()
        assert bytes(hears.heard) == b"still here"

    with caplog.at_level(logging.CRITICAL):
        run(contexts, talk)
    assert faulty.closed
