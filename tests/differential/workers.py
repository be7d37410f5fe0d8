"""A host with an upstream of the test's own behind one proxy of several workers, and clients that say what they see.

Rule: the upstream is this process; it sees what was let through and answers when the test says so, so that every step waits
for an event and none for time.
"""

from __future__ import annotations

import selectors
import socket
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.differential.bootstrap import template
from tests.differential.proxies import Proxy

CLIENTS = 24
"""Enough for every worker to get some: the kernel spreads them by port."""
_PATIENCE = 20.0


class Conversation:
    """A client's connection, and what came back on it."""

    def __init__(self, port: int, head: str = "") -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE)
        self.answer = b""
        self.ended = False
        if head:
            self.send(head)

    def send(self, head: str = "x-nothing: 1") -> None:
        self.answer = b""
        self.sock.sendall(f"GET / HTTP/1.1\r\nhost: a\r\n{head}\r\n\r\n".encode())

    def hear(self) -> None:
        try:
            data = self.sock.recv(65536)
        except ConnectionError:
            data = b""
        self.answer += data
        self.ended = not data

    @property
    def status(self) -> int:
        """Of the answer; 0 while there is none."""
        return int(self.answer.split(b" ")[1]) if b"\r\n\r\n" in self.answer else 0


class Host:
    """A proxy with two workers, its clients, and the only upstream behind it."""

    def __init__(self, kind: str, spec: dict[str, Any], folder: Path, workers: int = 2) -> None:
        self.server = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._selector = selectors.DefaultSelector()
        self.accept(True)
        self.clients: list[Conversation] = []
        self.upstream: list[socket.socket] = []
        """Connections from the proxy that are open."""
        self.asked: list[socket.socket] = []
        """Those on which a request waits for an answer."""
        self.ended = 0
        """Connections that the proxy has closed."""
        text, names = template(spec)
        fixed = {"a": str(self.server.getsockname()[1]), "b": "1", "dead": "1"}
        self.proxy = Proxy(kind, text, names, fixed, folder, workers)
        self.port = self.proxy.ports["main"]
        self._await_listeners()

    def close(self) -> None:
        self.proxy.close()
        for client in self.clients:
            client.sock.close()
        for sock in (*self.upstream, self.server):
            sock.close()
        self._selector.close()

    def _await_listeners(self) -> None:
        """Ready when the admin page says so: a connection to see would be counted."""

        def ready() -> bool:
            if not self.proxy.running:
                raise RuntimeError(self.proxy.log.read_text()[-4000:])
            with suppress(OSError):
                return self.page("ready").startswith("LIVE")
            return False

        self.until("the proxy serves", ready)

    def accept(self, yes: bool) -> None:
        """Take connections from the proxy, or leave them to the kernel."""
        if yes:
            self._selector.register(self.server, selectors.EVENT_READ, self._accept)
        else:
            self._selector.unregister(self.server)

    # The world turns

    def turn(self, seconds: float = 0.05) -> None:
        """Handle what has happened."""
        for key, _ in self._selector.select(seconds):
            key.data()

    def until(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"not within {_PATIENCE:g} s: {what}"
            self.turn()

    def _accept(self) -> None:
        sock, _ = self.server.accept()
        self.upstream.append(sock)
        self._selector.register(sock, selectors.EVENT_READ, lambda: self._request(sock))

    def _request(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(65536)
        except ConnectionError:
            data = b""
        if data:
            self.asked.append(sock)
            return
        self._selector.unregister(sock)
        sock.close()
        self.upstream.remove(sock)
        if sock in self.asked:
            self.asked.remove(sock)
        self.ended += 1

    # What a test does

    def client(self, head: str = "") -> Conversation:
        """Connect, and ask with this header field if there is one."""
        made = Conversation(self.port, head)
        self.clients.append(made)
        self._selector.register(made.sock, selectors.EVENT_READ, lambda: self._hear(made))
        return made

    def _hear(self, client: Conversation) -> None:
        client.hear()
        if client.ended:
            self._selector.unregister(client.sock)

    def call(self, head: str = "x-nothing: 1") -> bool:
        """A new client's request: True if it comes through to the upstream, False if it is answered before."""
        before, client = len(self.asked), self.client(head)
        self.until("an answer or a request upstream", lambda: bool(client.status) or len(self.asked) > before)
        return not client.status

    def leave(self, client: Conversation) -> None:
        """Close a client's connection."""
        if not client.ended:
            self._selector.unregister(client.sock)
        client.sock.close()
        self.clients.remove(client)

    def answer(self, sock: socket.socket, status: int = 200) -> None:
        """Answer the request that waits there."""
        self.asked.remove(sock)
        sock.sendall(f"HTTP/1.1 {status} S\r\ncontent-length: 0\r\n\r\n".encode())

    def statuses(self) -> dict[int, int]:
        """How many clients have which answer."""
        found: dict[int, int] = {}
        for client in self.clients:
            found[client.status] = found.get(client.status, 0) + 1
        return found

    def page(self, path: str, method: str = "GET") -> str:
        """An admin page."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.proxy.ports['admin']}/{path}", method=method
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return str(response.read().decode())

    def statistic(self, name: str) -> int:
        """A counter or gauge of the admin page; 0 where it is not there."""
        lines = dict(line.rsplit(": ", 1) for line in self.page("stats").splitlines() if ": " in line)
        value = lines.get(name, "0")
        return int(value) if value.isdigit() else 0

    def counted(self, name: str, value: int) -> None:
        """A worker publishes what it has counted when it is at rest."""
        self.until(f"{name} is {value}", lambda: self.statistic(name) == value)

    def workers(self) -> list[int]:
        """Process ids of our workers."""
        children = Path(f"/proc/{self.proxy.pid}/task/{self.proxy.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def connections_of(self, pid: int) -> int:
        """How many client connections a process holds."""
        held = set()
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                held.add(str(descriptor.readlink()))
        port, found = f":{self.port:04X}", 0
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1].endswith(port) and fields[3] == "01" and f"socket:[{fields[9]}]" in held:
                found += 1
        return found
