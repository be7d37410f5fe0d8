"""How connections end, ours beside the real Envoy: broken off, drained, slow, stuck, refused.

Every upstream is this process; a test says what it does by a function of the connection.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.differential.bootstrap import template
from tests.differential.proxies import Proxy

KINDS = ("envoy", "ours")
both = pytest.mark.parametrize("kind", KINDS)
_TYPE = "type.googleapis.com/envoy.extensions."
_PATIENCE = 20.0
Serve = Callable[[socket.socket], None]


class Upstream:
    """A server that does with each connection what it is told to, in a thread."""

    def __init__(self, serve: Serve) -> None:
        self._server = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._server.getsockname()[1]
        self._serve = serve
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            connection.settimeout(_PATIENCE)
            self._threads.append(threading.Thread(target=self._one, args=(connection,)))
            self._threads[-1].start()

    def _one(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            self._serve(connection)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join()
        self._server.close()


def _tcp(*network: dict[str, Any], **config: Any) -> dict[str, Any]:
    proxy = {
        "@type": _TYPE + "filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "tcp",
        "cluster": "a",
        **config,
    }
    line = (
        "flags=%RESPONSE_FLAGS% details=%RESPONSE_CODE_DETAILS% received=%BYTES_RECEIVED% sent=%BYTES_SENT%\n"
    )
    proxy["access_log"] = [
        {
            "name": "f",
            "typed_config": {
                "@type": _TYPE + "access_loggers.file.v3.FileAccessLog",
                "path": "@{folder}/@{kind}.access",
                "log_format": {"text_format_source": {"inline_string": line}},
            },
        }
    ]
    return {"filters": [*network, {"name": "t", "typed_config": proxy}]}


def _http(**more: Any) -> dict[str, Any]:
    route = {"match": {"prefix": "/"}, "route": {"cluster": "a", "timeout": "0s"}}
    return {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}], **more}


@contextmanager
def running(
    kind: str,
    spec: dict[str, Any],
    folder: Path,
    serve: Serve | None = None,
    clusters: dict[str, Any] | None = None,
) -> Iterator[Proxy]:
    """One proxy, and the upstream behind its cluster `a` (nobody, without `serve`)."""
    upstream = Upstream(serve) if serve is not None else None
    text, names = template({"listeners": {"main": spec}, "clusters": clusters or {}})
    port = str(upstream.port) if upstream is not None else "1"
    proxy = Proxy(kind, text, names, {"a": port, "b": "1", "dead": "1"}, folder)
    try:
        proxy.wait()
        until("the start is over", lambda: page(proxy, "ready").startswith("LIVE"))
        yield proxy
    finally:
        proxy.close()
        if upstream is not None:
            upstream.close()


def page(proxy: Proxy, path: str, method: str = "GET") -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{proxy.ports['admin']}/{path}", method=method)
    with suppress(OSError), urllib.request.urlopen(request, timeout=_PATIENCE) as response:
        return str(response.read().decode())
    return ""


def statistic(proxy: Proxy, name: str) -> int:
    """A counter or gauge; the one whose name ends so."""
    found = json.loads(page(proxy, f"stats?format=json&filter={name}$"))["stats"]
    return sum(each["value"] for each in found if "name" in each and "admin" not in each["name"])


def until(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {_PATIENCE:g} s: {what}"


def client(proxy: Proxy, *, receive_buffer: int = 0) -> socket.socket:
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(_PATIENCE)
    sock.connect(("127.0.0.1", proxy.ports["main"]))
    return sock


def ending(sock: socket.socket) -> tuple[bytes, str]:
    """Everything until the connection ends, and how it does."""
    received = b""
    while True:
        try:
            data = sock.recv(65536)
        except OSError as error:
            return received, type(error).__name__
        if not data:
            return received, "end"
        received += data


def break_off(sock: socket.socket) -> None:
    """Close with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def flags(proxy: Proxy) -> set[str]:
    """Of two connections: the test's, and the one by which the harness has seen that the proxy listens."""
    return {line.split()[0] for line in proxy.lines(0, 2)}


# Broken off


@pytest.mark.envoy
@both
def test_an_upstream_that_breaks_off_does_not_look_complete_to_the_client(kind: str, tmp_path: Path) -> None:
    heard = threading.Event()

    def serve(connection: socket.socket) -> None:
        if connection.recv(100):
            connection.sendall(b"half of the dump")
            heard.wait(_PATIENCE)
            break_off(connection)

    with running(kind, _tcp(), tmp_path, serve) as proxy, client(proxy) as sock:
        sock.sendall(b"dump")
        assert sock.recv(100) == b"half of the dump"
        heard.set()
        assert ending(sock) == (b"", "ConnectionResetError")
        assert "flags=UR" in flags(proxy)
        until("nothing is left", lambda: statistic(proxy, "cx_active") == 0)


@pytest.mark.envoy
@both
def test_a_client_that_breaks_off_does_not_look_complete_to_the_upstream(kind: str, tmp_path: Path) -> None:
    seen: list[tuple[bytes, str]] = []
    there = threading.Event()

    def serve(connection: socket.socket) -> None:
        first = connection.recv(100)
        if first:
            there.set()
            rest, how = ending(connection)
            seen.append((first + rest, how))

    with running(kind, _tcp(), tmp_path, serve) as proxy:
        sock = client(proxy)
        sock.sendall(b"INSERT")
        assert there.wait(_PATIENCE)
        break_off(sock)
        until("the upstream has seen the end", lambda: bool(seen))
        assert seen == [(b"INSERT", "ConnectionResetError")]
        assert flags(proxy) == {"flags=-"}
        until("nothing is left", lambda: statistic(proxy, "cx_active") == 0)


@pytest.mark.envoy
@both
@pytest.mark.parametrize("attempts", [1, 3])
def test_an_upstream_that_cannot_be_reached_is_told_in_the_flags(
    kind: str, attempts: int, tmp_path: Path
) -> None:
    with running(kind, _tcp(max_connect_attempts=attempts), tmp_path) as proxy, client(proxy) as sock:
        ending(sock)
        assert "flags=UF,URX" in flags(proxy)


@pytest.mark.envoy
@both
def test_each_direction_still_ends_by_itself(kind: str, tmp_path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        received, how = ending(connection)
        if received:
            connection.sendall(received + how.encode())

    with running(kind, _tcp(), tmp_path, serve) as proxy, client(proxy) as sock:
        sock.sendall(b"question")
        sock.shutdown(socket.SHUT_WR)
        assert ending(sock) == (b"questionend", "end")


# Slow and stuck


def _much(size: int) -> Serve:
    def serve(connection: socket.socket) -> None:
        if b"\r\n\r\n" in connection.recv(65536):
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + bytes(size))

    return serve


@pytest.mark.envoy
@both
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_slow_reader_gets_all_of_a_response_that_ends_its_connection(
    kind: str, version: str, tmp_path: Path
) -> None:
    """It takes six times as long as a client that reads nothing would be given."""
    size = 12_000_000
    options = {"delayed_close_timeout": "0.2s", "http_protocol_options": {"accept_http_10": True}}
    with (
        running(kind, _http(hcm=options), tmp_path, _much(size)) as proxy,
        client(proxy, receive_buffer=65536) as sock,
    ):
        sock.sendall(f"GET / HTTP/{version}\r\nhost: a\r\nconnection: close\r\n\r\n".encode())
        received = 0
        began = time.monotonic()
        while True:
            data = sock.recv(65536)
            if not data:
                break
            received += len(data)
            pause = began + 1.2 * received / size - time.monotonic()
            if pause > 0:
                threading.Event().wait(pause)
        assert size < received < size + 1000


@pytest.mark.envoy
@both
@pytest.mark.parametrize("half_closed", [False, True])
def test_an_opaque_client_that_takes_nothing_is_not_kept(
    kind: str, half_closed: bool, tmp_path: Path
) -> None:
    """Neither while the upstream wants to send nor after both have said everything."""

    def serve(connection: socket.socket) -> None:
        if connection.recv(100):
            connection.sendall(bytes(30_000_000))
            connection.shutdown(socket.SHUT_WR)
            ending(connection)

    with (
        running(kind, _tcp(idle_timeout="0.5s"), tmp_path, serve) as proxy,
        client(proxy, receive_buffer=4096) as sock,
    ):
        sock.sendall(b"x")
        if half_closed:
            sock.shutdown(socket.SHUT_WR)
        until("nothing is left", lambda: statistic(proxy, "cx_active") == 0)
        assert statistic(proxy, "tcp.tcp.idle_timeout") >= 1


@pytest.mark.envoy
@both
def test_a_connection_over_the_limit_is_closed_after_the_delay(kind: str, tmp_path: Path) -> None:
    limit = {
        "name": "limit",
        "typed_config": {
            "@type": _TYPE + "filters.network.connection_limit.v3.ConnectionLimit",
            "stat_prefix": "limit",
            "max_connections": 1,
            "delay": "0.4s",
        },
    }

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"hello")
        ending(connection)

    with running(kind, _tcp(limit), tmp_path, serve) as proxy:
        until("the harness's own has ended", lambda: statistic(proxy, "cx_active") == 0)
        with client(proxy) as first:
            assert first.recv(100) == b"hello"
            with client(proxy) as second:
                began = time.monotonic()
                received, _ = ending(second)
                assert received == b""
                assert time.monotonic() - began >= 0.35


# Drained


def _ok(connection: socket.socket) -> None:
    buffer = b""
    while True:
        while b"\r\n\r\nab" not in buffer:
            data = connection.recv(65536)
            if not data:
                return
            buffer += data
        buffer = buffer.partition(b"\r\n\r\nab")[2]
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")


class Keeping(threading.Thread):
    """A client that keeps its connection and asks again and again, until it is told to close."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port
        self.answered = 0
        self.told = self.lost = False
        self.enough = threading.Event()

    def run(self) -> None:
        dice = random.Random(id(self))
        with socket.create_connection(("127.0.0.1", self.port), timeout=_PATIENCE) as sock:
            while not self.enough.wait(dice.random() * 0.02):
                data = b""
                with suppress(OSError):
                    sock.sendall(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n")
                    sock.sendall(b"\r\nab")
                    while not data.endswith(b"\r\n\r\nok"):
                        piece = sock.recv(4096)
                        if not piece:
                            break
                        data += piece
                if not data.endswith(b"ok"):
                    self.lost = True
                    return
                self.answered += 1
                if b"connection: close" in data:
                    self.told = True
                    return


def _drain(proxy: Proxy, how: str) -> None:
    if how == "SIGTERM":
        proxy.terminate()
    else:
        assert page(proxy, how, "POST").startswith("OK")


@pytest.mark.envoy
@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("envoy", "drain_listeners?graceful"),
        ("ours", "drain_listeners?graceful"),
        ("envoy", "healthcheck/fail"),
        ("ours", "healthcheck/fail"),
        ("ours", "SIGTERM"),
    ],
)
def test_every_client_is_asked_to_leave_and_no_request_is_lost(kind: str, how: str, tmp_path: Path) -> None:
    with running(kind, _http(hcm={"access_log": None}), tmp_path, _ok) as proxy:
        clients = [Keeping(proxy.ports["main"]) for _ in range(30)]
        for each in clients:
            each.start()
        until("all are at work", lambda: all(each.answered > 1 for each in clients))
        _drain(proxy, how)
        if how != "SIGTERM":  # nobody is refused, at first
            with client(proxy) as sock:
                sock.sendall(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nab")
                assert sock.recv(100).startswith(b"HTTP/1.1 200")
        until("all have left", lambda: not any(each.is_alive() for each in clients))
        assert [(each.told, each.lost) for each in clients] == [(True, False)] * len(clients)


@pytest.mark.envoy
@both
def test_what_passes_health_checks_again_keeps_its_clients(kind: str, tmp_path: Path) -> None:
    with running(kind, _http(), tmp_path, _ok) as proxy:
        _drain(proxy, "healthcheck/fail")
        _drain(proxy, "healthcheck/ok")
        with client(proxy) as sock:
            for _ in range(3):
                sock.sendall(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nab")
                answer = sock.recv(65536)
                assert answer.startswith(b"HTTP/1.1 200") and b"connection: close" not in answer


@pytest.mark.envoy
@both
def test_listeners_that_are_drained_at_once_keep_their_connections(kind: str, tmp_path: Path) -> None:
    with running(kind, _http(), tmp_path, _ok) as proxy, client(proxy) as sock:
        for told in (None, "drain_listeners"):
            if told is not None:
                _drain(proxy, told)
                until("the listener is closed", lambda: _refused(proxy.ports["main"]))
            sock.sendall(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nab")
            answer = sock.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200") and b"connection: close" not in answer


def _refused(port: int) -> bool:
    with suppress(ConnectionResetError), socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0
    return False
