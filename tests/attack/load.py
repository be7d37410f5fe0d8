"""One proxy under attack: the proxy with its upstreams, and a client that wants to be served meanwhile.

Rule: attackers are threads that do what hostile peers do, as fast as they can; the client measures how long it waits for
each answer. What the attack leaves behind is compared by tests/leftovers.py.
"""

from __future__ import annotations

import mmap
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests import leftovers
from tests.differential.bootstrap import template
from tests.differential.proxies import Proxy

GET = b"GET /%b HTTP/1.1\r\nhost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Upstream:
    """A server on loopback: `talk` has each of its connections, in a thread of its own, until it returns or the peer is gone."""

    def __init__(self, talk: Callable[[socket.socket], None]) -> None:
        self._talk = talk
        self._server = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._open: set[socket.socket] = set()
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._server.accept()
            except OSError:
                return
            self._open.add(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with suppress(OSError), sock:
            self._talk(sock)
        self._open.discard(sock)

    def close(self) -> None:
        """Stop listening, and cut what is open."""
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for sock in tuple(self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def answers(sock: socket.socket) -> None:
    """An upstream that answers every request with `ok`."""
    waiting = b""
    while data := sock.recv(65536):
        waiting += data
        while b"\r\n\r\n" in waiting:
            waiting = waiting.partition(b"\r\n\r\n")[2]
            sock.sendall(OK)


class Attack:
    """A running proxy of ours, one worker."""

    def __init__(self, proxy: Proxy, left: leftovers.Leftovers) -> None:
        self.proxy = proxy
        self.left = left
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []

    def connect(self, listener: str = "main") -> socket.socket:
        """A client's connection; ended with the attack."""
        sock = socket.create_connection(("127.0.0.1", self.proxy.ports[listener]), timeout=20)
        self._sockets.append(sock)
        return sock

    def attacker(self, work: Callable[[socket.socket], object], listener: str = "main") -> None:
        """A client that does this again and again on one connection, and on a new one when that has ended."""

        def run() -> None:
            sock = self.connect(listener)
            while not self._over.is_set():
                try:
                    work(sock)
                except OSError:
                    sock.close()
                    with suppress(OSError):
                        sock = self.connect(listener)

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def waits(self, seconds: float, path: bytes = b"good") -> list[float]:
        """Seconds that another client waits for each of its answers, sorted."""
        found: list[float] = []
        end = time.monotonic() + seconds
        with socket.create_connection(("127.0.0.1", self.proxy.ports["main"]), timeout=20) as sock:
            while time.monotonic() < end:
                began = time.monotonic()
                sock.sendall(GET % path)
                answer = b""
                while not answer.endswith(b"ok"):
                    answer += sock.recv(65536) or _fail(answer)
                found.append(time.monotonic() - began)
        return sorted(found)

    def page(self, path: str) -> str:
        """An admin page."""
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.proxy.ports['admin']}/{path}", timeout=20
        ) as answer:
            return str(answer.read().decode())

    def resident(self) -> int:
        """Bytes of memory of the proxy."""
        return int(Path(f"/proc/{self.proxy.pid}/statm").read_text().split()[1]) * mmap.PAGESIZE

    def end(self) -> None:
        """All attackers leave."""
        self._over.set()
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)
        for sock in self._sockets:
            sock.close()


def _fail(answer: bytes) -> bytes:
    raise AssertionError(f"the other client's connection ended: {answer[-200:]!r}")


@contextmanager
def under_attack(
    spec: dict[str, Any], folder: Path, upstreams: dict[str, Callable[[socket.socket], None]], **fixed: str
) -> Iterator[Attack]:
    """Our proxy on this bootstrap (tests.differential.bootstrap), with an upstream for each cluster `a`, `b`. When the attack is
    over and its upstreams are gone, nothing may be left."""
    servers = {name: Upstream(talk) for name, talk in upstreams.items()}
    ports = {"a": "1", "b": "1", "dead": "1", **{name: str(server.port) for name, server in servers.items()}}
    text, names = template(spec)
    proxy = Proxy("ours", text, names, {**ports, **fixed}, folder)
    try:
        proxy.wait()
        attack = Attack(proxy, leftovers.of_proxy(proxy.ports["admin"]))
        try:
            yield attack
        finally:
            attack.end()
            for server in servers.values():
                server.close()
        assert proxy.running, proxy.log.read_text()[-3000:]
        attack.left.check()
    finally:
        for server in servers.values():
            server.close()
        proxy.close()
