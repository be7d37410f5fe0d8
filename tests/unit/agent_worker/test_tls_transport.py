"""TLS of HTTP connections: large writes are not copied for each record, and a departure is seen while nothing is read."""

from __future__ import annotations

import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from agent.worker.reactor import Reactor
from agent.worker.tls_transport import TlsOwner, TlsTransport
from tests.unit.agent_worker.test_bulk_tls import contexts

__all__ = ["contexts"]


class Owner(TlsOwner):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.secure = False

    def handshaken(self) -> bool:
        self.secure = True
        return True

    def received(self, data: bytes) -> None:
        self.heard.append(data)

    def ended(self) -> None:
        self.heard.append("ended")

    def lost(self, reason: str) -> None:
        self.heard.append(reason)

    def drained(self) -> None:
        self.heard.append("drained")

    def hung_up(self, broken: bool) -> None:
        self.heard.append(("hung up", broken))


class Pair:
    """A server's transport on a reactor, and a client with blocking calls."""

    def __init__(self, folder: Path, server: ssl.SSLContext, client: ssl.SSLContext) -> None:
        self.reactor = Reactor()
        self.owner = Owner()
        near, far = socket.socketpair()
        near.setblocking(False)
        wrapped = server.wrap_socket(near, server_side=True, do_handshake_on_connect=False)
        self.transport = TlsTransport(wrapped, self.reactor, self.owner, 1 << 20)
        self.client: ssl.SSLSocket
        shaking = threading.Thread(target=self._shake, args=(client, far))
        shaking.start()
        self.transport.start()
        self.until(lambda: self.owner.secure)
        shaking.join(10)

    def _shake(self, context: ssl.SSLContext, far: socket.socket) -> None:
        self.client = context.wrap_socket(far, server_hostname="server")

    def until(self, condition) -> None:  # type: ignore[no-untyped-def]
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, self.owner.heard
            self.reactor.turn(0.005)

    def close(self) -> None:
        self.transport.close()
        with suppress(OSError):
            self.client.close()
        self.reactor.close()


@pytest.fixture
def pair(tmp_path: Path, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> Iterator[Pair]:
    made = Pair(tmp_path, *contexts)
    yield made
    made.close()


def test_what_a_slow_reader_has_taken_waits_no_longer(pair: Pair) -> None:
    """Who fills the transport goes on when half of it is gone, not when all is; and nothing is copied for each record."""
    size = 4 << 20
    pair.transport.write(bytes(size))
    pair.transport.flush()
    assert pair.transport.full
    tracemalloc.start()
    pair.client.setblocking(False)
    got = 0

    def read() -> bool:
        nonlocal got
        with suppress(ssl.SSLWantReadError):
            while "drained" not in pair.owner.heard:
                got += len(pair.client.recv(65536))
        return "drained" in pair.owner.heard or got == size

    pair.until(read)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert got < size
    assert pair.transport.backlog > 0, "it went on when everything was gone"
    assert most < size // 4, f"{most} bytes were copied at once to send the rest of {size}"


def test_the_departure_of_a_client_is_seen_while_reading_is_paused(pair: Pair) -> None:
    pair.client.sendall(b"before")
    pair.transport.pause()
    pair.client.shutdown(socket.SHUT_WR)
    pair.until(lambda: bool(pair.owner.heard))
    assert pair.owner.heard == [("hung up", False)]
    assert not pair.reactor.turn(0.0), "its end comes up again in every turn"
    pair.transport.resume()
    pair.until(lambda: "ended" in pair.owner.heard)
    assert pair.owner.heard[1:] == [b"before", "ended"]
