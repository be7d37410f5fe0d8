"""Two proxies with mutual TLS between them, ours and the real Envoy in every pair: no byte is lost, no peer mistaken.

The proxies are processes that run what was built (compiled where it could be), as `bench` starts them.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bench import certificates
from bench.bootstraps import NO_RBAC, Hop
from bench.processes import free_port, proxy

PAIRS = (("ours", "ours"), ("ours", "envoy"), ("envoy", "ours"))
PIECES = [
    bytes([number % 251]) * size for number, size in enumerate((1, 100, 16_384, 16_385, 300_000, 5_000_000))
]


class _Echo(BaseHTTPRequestHandler):
    """Answers a POST with its body."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.send_header("x-caller", self.headers["x-forwarded-client-cert"] or "")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@contextlib.contextmanager
def _web() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def _opaque() -> Iterator[int]:
    """Sends everything back, and ends when its client has ended."""

    def echo(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                threading.Thread(target=echo, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextlib.contextmanager
def _two_hops(first: str, second: str, backend: int, folder: Path, mode: str) -> Iterator[int]:
    certificates.make(folder)
    entry, between = free_port(), free_port()
    inner = Hop("hop2", between, free_port(), backend, folder, mode=mode, tls_in=True, features=NO_RBAC)
    outer = Hop("hop1", entry, free_port(), between, folder, mode=mode, tls_out=True, features=NO_RBAC)
    with proxy(second, inner) as behind, proxy(first, outer) as before:
        behind.wait_for(between)
        before.wait_for(entry)
        yield entry
        behind.check()
        before.check()
        for running in (before, behind):
            assert "Traceback" not in running.output()


@pytest.mark.envoy
@pytest.mark.parametrize(("first", "second"), PAIRS, ids=str)
def test_requests_of_every_size_come_back_over_mutual_tls(first: str, second: str, tmp_path: Path) -> None:
    with _web() as backend, _two_hops(first, second, backend, tmp_path, "http") as entry:
        for _ in range(3):
            client = http.client.HTTPConnection("127.0.0.1", entry, timeout=20)
            for piece in PIECES:
                client.request("POST", "/", piece, {"content-type": "application/octet-stream"})
                answer = client.getresponse()
                assert (answer.status, hashlib.sha256(answer.read()).digest()) == (
                    200,
                    hashlib.sha256(piece).digest(),
                )
            client.close()


@pytest.mark.envoy
@pytest.mark.parametrize(("first", "second"), PAIRS, ids=str)
def test_opaque_bytes_come_back_over_mutual_tls_and_a_half_close_passes(
    first: str, second: str, tmp_path: Path
) -> None:
    with _opaque() as backend, _two_hops(first, second, backend, tmp_path, "tcp") as entry:
        for _ in range(6):  # the later ones resume the TLS session
            with socket.create_connection(("127.0.0.1", entry), timeout=20) as client:
                sender = threading.Thread(target=_send_all, args=(client,))
                sender.start()
                received = hashlib.sha256()
                while data := client.recv(65536):
                    received.update(data)
                sender.join()
                assert received.digest() == hashlib.sha256(b"".join(PIECES)).digest()


def _send_all(client: socket.socket) -> None:
    for piece in PIECES:
        client.sendall(piece)
    client.shutdown(socket.SHUT_WR)
