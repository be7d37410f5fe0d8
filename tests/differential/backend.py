"""An upstream server for comparisons: it records exactly what it received and answers as the path asks.

Plain threads and sockets, no HTTP library, so that neither proxy is flattered: what the proxy wrote is what is
recorded. Behaviours are words in the request's path, e.g. `/x/status/503` or `/close`.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field


@dataclass
class Received:
    """One request as it arrived at the backend."""

    backend: str
    line: str
    headers: list[tuple[str, str]]
    body: bytes
    trailers: list[tuple[str, str]] = field(default_factory=list)


class Backend:
    """Listens on a free loopback port and answers until `close`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.received: list[Received] = []
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._server.getsockname()[1]
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening and cut what is open."""
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Cut all open connections, as a crash would."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """Forget what was received."""
        with self._lock:
            self.received = []
            self._counts = {}

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with self._lock:
                self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                stream = connection.makefile("rb")
                while self._one(connection, stream):
                    pass
        except OSError:
            return
        finally:
            with self._lock:
                self._open.discard(connection)

    def _one(self, connection: socket.socket, stream) -> bool:  # type: ignore[no-untyped-def]
        line = stream.readline()
        if not line:
            return False
        headers = _read_fields(stream)
        named = {name.lower(): value for name, value in headers}
        path = line.split(b" ")[1].decode("latin-1") if line.count(b" ") >= 2 else ""
        words = re.split(r"[/?&]", path)
        if "early-413" in words:
            self._record(line, headers, b"", [])
            connection.sendall(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig")
            return False
        if "continue" in words and named.get("expect"):
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body, trailers = b"", []
        if "chunked" in named.get("transfer-encoding", "").lower():
            body, trailers = _read_chunked(stream)
        elif named.get("content-length", "0").isdigit():
            body = stream.read(int(named.get("content-length", "0")))
        self._record(line, headers, body, trailers)
        if named.get("upgrade", "").lower() == "websocket" and "refuse" not in words:
            connection.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
                b"sec-websocket-accept: x\r\n\r\n"
            )
            while data := connection.recv(65536):
                connection.sendall(b"echo:" + data)
            return False
        return self._answer(connection, words, line.startswith(b"HEAD "), path)

    def _answer(self, connection: socket.socket, words: list[str], head: bool, path: str) -> bool:
        def argument(word: str, default: str = "") -> str:
            at = words.index(word) + 1
            return words[at] if at < len(words) else default

        with self._lock:
            count = self._counts[path] = self._counts.get(path, 0) + 1
        if "flaky" in words and count <= int(argument("flaky")):
            status = argument("with", "503") if "with" in words else "503"
            if status == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
            if status == "shut":
                return False
            connection.sendall(f"HTTP/1.1 {status} Flaky\r\ncontent-length: 0\r\n\r\n".encode())
            return True
        if "close" in words:
            return False
        if "hang" in words:
            threading.Event().wait(float(argument("hang", "5") or 5))
        if "raw" in words:
            connection.sendall(bytes.fromhex(argument("raw")))
            return False
        if "half" in words:
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
            return False
        status = int(argument("status")) if "status" in words else 200
        extra = b""
        if "cookies" in words:
            extra += b"set-cookie: a=1\r\nset-cookie: b=2\r\n"
        if "hop" in words:
            extra += (
                b"connection: x-role\r\nx-role: admin\r\nkeep-alive: timeout=5\r\nproxy-connection: close\r\n"
            )
        if "location" in words:
            extra += b"location: http://elsewhere.example/\r\n"
        if "spoof" in words:
            extra += b"x-envoy-upstream-service-time: 99\r\nserver: backend\r\nx-envoy-overloaded: true\r\n"
        if "cachectl" in words:
            extra += b"cache-control: no-store\r\nx-internal: secret\r\n"
        if "early-hints" in words:
            connection.sendall(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")
        body = json.dumps({"backend": self.name}).encode()
        if "big" in words:
            body = b"x" * int(argument("big"))
        if status in (204, 304) or status < 200:
            connection.sendall(f"HTTP/1.1 {status} S\r\n".encode() + extra + b"\r\n")
            return True
        lead = f"HTTP/1.1 {status} Status\r\nx-backend: {self.name}\r\n".encode() + extra
        if "to-eof" in words:
            connection.sendall(lead + b"connection: close\r\n\r\n" + (b"" if head else body))
            return False
        if "http10" in words:
            connection.sendall(lead.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n" + (b"" if head else body))
            return False
        if "chunked" in words:
            chunks = b"%x\r\n%s\r\n0\r\n" % (len(body), body)
            trailers = b"x-trailer: yes\r\n" if "trailers" in words else b""
            connection.sendall(
                lead + b"transfer-encoding: chunked\r\n\r\n" + (b"" if head else chunks + trailers + b"\r\n")
            )
            return True
        connection.sendall(lead + f"content-length: {len(body)}\r\n\r\n".encode() + (b"" if head else body))
        return "then-close" not in words

    def _record(
        self, line: bytes, headers: list[tuple[str, str]], body: bytes, trailers: list[tuple[str, str]]
    ) -> None:
        with self._lock:
            self.received.append(
                Received(self.name, line.decode("latin-1").rstrip("\r\n"), headers, body, trailers)
            )


def _read_fields(stream) -> list[tuple[str, str]]:  # type: ignore[no-untyped-def]
    fields: list[tuple[str, str]] = []
    while (line := stream.readline()) not in (b"\r\n", b"\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        fields.append((name, value.strip()))
    return fields


def _read_chunked(stream) -> tuple[bytes, list[tuple[str, str]]]:  # type: ignore[no-untyped-def]
    body = b""
    while size := int(stream.readline().split(b";")[0] or b"0", 16):
        body += stream.read(size)
        stream.readline()
    return body, _read_fields(stream)
