"""Clients that connect, say something and leave, thousands a second: one process with one epoll, and TLS clients beside it.

`python -m tests.attack.churn` is not a test: `Churn` starts processes of this module and waits for them.
"""

from __future__ import annotations

import multiprocessing
import select
import socket
import ssl
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

_AT_ONCE = 64
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Kind:
    """What a client does: `say`, then leave once `until` has come (empty: anything, or the end). `tls`: after a handshake."""

    name: str
    port: int
    say: bytes
    until: bytes = b""
    tls: bool = False
    reset: bool = False
    """Leave with RST."""


def run(kinds: Sequence[tuple[Kind, int]]) -> None:
    """So many connections of each kind, and then return; mixed, in processes of their own. Raises AssertionError."""
    plain = [(kind, count) for kind, count in kinds if not kind.tls]
    secure = [(kind, count) for kind, count in kinds if kind.tls]
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=target, args=(part,))
        for target, part in ((_plain, plain), (_secure, secure))
        if part
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(worker.exitcode == 0 for worker in workers), "a client did not get what it waited for"


def echo() -> tuple[Any, int]:
    """A process that sends back what it gets, until it is terminated; and its port."""
    server = socket.create_server(("127.0.0.1", 0), backlog=1024)
    process = multiprocessing.get_context("fork").Process(target=_echo, args=(server,), daemon=True)
    process.start()
    port = server.getsockname()[1]
    server.close()
    return process, port


def _interleaved(kinds: Sequence[tuple[Kind, int]]) -> list[Kind]:
    """All kinds, evenly mixed."""
    placed = [((number + 0.5) / count, kind) for kind, count in kinds for number in range(count)]
    return [kind for _, kind in sorted(placed, key=lambda item: item[0])]


def _plain(kinds: Sequence[tuple[Kind, int]]) -> None:
    todo = iter(_interleaved(kinds))
    epoll = select.epoll()
    open_: dict[int, tuple[Kind, socket.socket, bytes]] = {}

    def begin() -> bool:
        kind = next(todo, None)
        if kind is None:
            return False
        sock = socket.create_connection(("127.0.0.1", kind.port), timeout=20)
        if kind.reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        with suppress(OSError):  # refused already: its end is what it waits for
            sock.sendall(kind.say)
        open_[sock.fileno()] = (kind, sock, b"")
        epoll.register(sock.fileno(), select.EPOLLIN)
        return True

    for _ in range(_AT_ONCE):
        begin()
    while open_:
        events = epoll.poll(20)
        assert events, f"no answer for {[kind.name for kind, _, _ in open_.values()]}"
        for descriptor, _ in events:
            kind, sock, got = open_[descriptor]
            data = b""
            with suppress(OSError):
                data = sock.recv(65536)
            got += data
            if data and kind.until and kind.until not in got:
                open_[descriptor] = (kind, sock, got)
                continue
            assert not kind.until or kind.until in got, f"{kind.name}: {got!r}"
            del open_[descriptor]
            sock.close()
            begin()


def _secure(kinds: Sequence[tuple[Kind, int]]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for kind in _interleaved(kinds):
        with (
            socket.create_connection(("127.0.0.1", kind.port), timeout=20) as sock,
            context.wrap_socket(sock, server_hostname="a") as secure,
        ):
            secure.sendall(kind.say)
            got = b""
            while kind.until not in got:
                data = secure.recv(65536)
                assert data, f"{kind.name}: {got!r}"
                got += data


def _echo(server: socket.socket) -> None:
    """HTTP requests are answered, everything else comes back."""
    server.setblocking(False)
    epoll = select.epoll()
    epoll.register(server.fileno(), select.EPOLLIN)
    open_: dict[int, socket.socket] = {}
    while True:
        for descriptor, _ in epoll.poll():
            if descriptor == server.fileno():
                with suppress(BlockingIOError):
                    while True:
                        sock, _ = server.accept()
                        sock.setblocking(False)
                        open_[sock.fileno()] = sock
                        epoll.register(sock.fileno(), select.EPOLLIN)
                continue
            sock = open_[descriptor]
            data = b""
            with suppress(OSError):
                data = sock.recv(65536)
            if not data:
                del open_[descriptor]
                sock.close()
                continue
            if data.startswith(b"GET "):
                data = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok" * data.count(b"\r\n\r\n")
            with suppress(OSError):
                sock.send(data)
