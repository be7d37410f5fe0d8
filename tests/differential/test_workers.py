"""Two workers keep the limits of one: what is admitted through real Envoy `--concurrency 2` and through ours `--workers 2`.

The upstream is this process: it sees what was let through and answers when the test says so, so that every step waits for
an event and none for time. Clients are enough for both workers to get some (the kernel spreads them by port).
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.differential.bootstrap import template
from tests.differential.proxies import Proxy

KINDS = ("envoy", "ours")
CLIENTS = 24
_TYPE = "type.googleapis.com/envoy.extensions."
_PATIENCE = 20.0


def _tcp(*filters: dict[str, Any]) -> dict[str, Any]:
    proxy = {
        "@type": _TYPE + "filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "tcp",
        "cluster": "a",
    }
    return {"filters": [*filters, {"name": "tcp", "typed_config": proxy}]}


def _network(name: str, type_name: str, **config: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": _TYPE + type_name, "stat_prefix": name, **config}}


def _thresholds(**limits: Any) -> dict[str, Any]:
    return {"a": {"connect_timeout": "30s", "circuit_breakers": {"thresholds": [limits]}}}


def _routes(**action: Any) -> list[dict[str, Any]]:
    return [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, **action}]}]


_FORWARD = _routes(route={"cluster": "a", "timeout": "0s"})
_DIRECT = _routes(direct_response={"status": 200})
_ALWAYS = {"default_value": {"numerator": 100}}


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


@pytest.fixture
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Host]]:
    made: list[Host] = []

    def make(kind: str, spec: dict[str, Any], workers: int = 2) -> Host:
        made.append(Host(kind, spec, tmp_path, workers))
        return made[-1]

    yield make
    for each in made:
        each.close()


Make = Callable[..., Host]
both = pytest.mark.parametrize("kind", KINDS)


def every_worker_has_some(kind: str, at: Host) -> None:
    if kind == "ours":
        assert len(at.workers()) == 2
        assert all(at.connections_of(pid) for pid in at.workers()), "the kernel gave all to one worker"


@both
def test_requests(kind: str, host: Make) -> None:
    at = host(kind, {"virtual_hosts": _FORWARD, "clusters": _thresholds(max_requests=7)})
    admitted = sum(at.call() for _ in range(CLIENTS))
    every_worker_has_some(kind, at)
    assert admitted == 7
    at.counted("cluster.a.upstream_rq_active", 7)
    clusters = json.loads(at.page("clusters?format=json"))["cluster_statuses"]
    (endpoint,) = next(each for each in clusters if each["name"] == "a")["host_statuses"]
    active = next(each for each in endpoint["stats"] if each["name"] == "rq_active")
    assert int(active["value"]) == 7
    for sock in at.asked[:3]:
        at.answer(sock)
    at.until("three answers", lambda: at.statuses().get(200, 0) == 3)
    assert at.statuses() == {200: 3, 503: CLIENTS - 7, 0: 4}
    assert sum(at.call() for _ in range(CLIENTS)) == 3, "what was given back is there for others"


@both
def test_requests_that_wait_for_a_connection(kind: str, host: Make) -> None:
    at = host(kind, {"virtual_hosts": _FORWARD, "clusters": _thresholds(max_pending_requests=5)})
    at.server.listen(0)
    fillers = []
    while len(fillers) < 2:
        fillers.append(socket.socket())
        fillers[-1].setblocking(False)
        fillers[-1].connect_ex(at.server.getsockname())
    at.accept(False)
    for _ in range(CLIENTS):
        at.client("x-nothing: 1")
    at.until("refusals", lambda: at.statuses().get(503, 0) == CLIENTS - 5)
    every_worker_has_some(kind, at)
    at.server.listen(128)
    for filler in fillers:
        filler.close()
    at.accept(True)
    while at.statuses().get(200, 0) < 5:
        at.until("a request or an answer", lambda: bool(at.asked) or at.statuses().get(200, 0) == 5)
        for sock in list(at.asked):
            at.answer(sock)
    assert at.statuses() == {200: 5, 503: CLIENTS - 5}


def _connected(at: Host) -> bool:
    """A new client connects: True if that comes through to the upstream, False if it is closed."""
    before, client = len(at.upstream), at.client()
    at.until("a connection or its end", lambda: client.ended or len(at.upstream) > before)
    return not client.ended


@both
def test_connections_to_a_cluster(kind: str, host: Make) -> None:
    at = host(kind, {"listeners": {"main": _tcp()}, "clusters": _thresholds(max_connections=6)})

    assert sum(_connected(at) for _ in range(CLIENTS)) == 6
    for client in [each for each in at.clients if not each.ended][:2]:
        at.leave(client)
    at.until("their ends upstream", lambda: at.ended == 2)
    at.counted("cluster.a.upstream_cx_active", 4)
    assert sum(_connected(at) for _ in range(CLIENTS)) == 2


@both
def test_connections_that_a_filter_lets_in(kind: str, host: Make) -> None:
    limit = _network("cl", "filters.network.connection_limit.v3.ConnectionLimit", max_connections=6)
    at = host(kind, {"listeners": {"main": _tcp(limit)}})

    assert sum(_connected(at) for _ in range(CLIENTS)) == 6
    for client in [each for each in at.clients if not each.ended]:
        at.leave(client)
    at.until("their ends upstream", lambda: at.ended == 6)
    at.counted("cluster.a.upstream_cx_active", 0)
    assert sum(_connected(at) for _ in range(CLIENTS)) == 6


@both
def test_connections_by_rate(kind: str, host: Make) -> None:
    bucket = {"max_tokens": 6, "fill_interval": "3600s"}
    limit = _network("rl", "filters.network.local_ratelimit.v3.LocalRateLimit", token_bucket=bucket)
    at = host(kind, {"listeners": {"main": _tcp(limit)}})
    assert sum(_connected(at) for _ in range(CLIENTS)) == 6


def _retried(at: Host) -> bool:
    """A new client's request is refused upstream: True if it is tried again."""
    before, client = len(at.asked), at.client("x-nothing: 1")
    at.until("the first try", lambda: len(at.asked) > before)
    assert client.status == 0
    at.answer(at.asked[-1], 503)
    at.until("another try or the answer", lambda: bool(client.status) or len(at.asked) > before)
    return not client.status


_RETRY = _routes(
    route={
        "cluster": "a",
        "timeout": "0s",
        "retry_policy": {
            "retry_on": "5xx",
            "num_retries": 1,
            "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.002s"},
        },
    }
)


@both
def test_retries(kind: str, host: Make) -> None:
    at = host(kind, {"virtual_hosts": _RETRY, "clusters": _thresholds(max_retries=3)})
    assert sum(_retried(at) for _ in range(CLIENTS)) == 3
    every_worker_has_some(kind, at)


@both
def test_retries_by_budget(kind: str, host: Make) -> None:
    budget = {"budget_percent": {"value": 8.0}, "min_retry_concurrency": 1}
    at = host(kind, {"virtual_hosts": _RETRY, "clusters": _thresholds(retry_budget=budget)})
    assert sum(at.call() for _ in range(40)) == 40
    assert sum(_retried(at) for _ in range(CLIENTS)) == 3, "8 % of 40 to 44 requests"
    every_worker_has_some(kind, at)


def _limited(bucket: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "envoy.filters.http.local_ratelimit": {
            "type": "filters.http.local_ratelimit.v3.LocalRateLimit",
            "stat_prefix": "rl",
            "token_bucket": bucket,
            "filter_enabled": _ALWAYS,
            "filter_enforced": _ALWAYS,
            **more,
        }
    }


def _asked(at: Host, head: str) -> int:
    """How many of so many new clients are let through."""
    clients = [at.client(head) for _ in range(CLIENTS)]

    def answered() -> bool:
        for sock in list(at.asked):
            at.answer(sock)
        return all(client.status for client in clients)

    at.until("all answers", answered)
    return sum(client.status == 200 for client in clients)


@both
def test_requests_by_rate(kind: str, host: Make) -> None:
    bucket = {"max_tokens": 11, "tokens_per_fill": 1, "fill_interval": "3600s"}
    at = host(kind, {"virtual_hosts": _DIRECT, "http_filters": [_limited(bucket)]})
    assert _asked(at, "x-nothing: 1") == 11
    every_worker_has_some(kind, at)
    at.counted("rl.http_local_rate_limit.ok", 11)
    at.counted("rl.http_local_rate_limit.rate_limited", CLIENTS - 11)
    assert _asked(at, "x-nothing: 1") == 0


@both
def test_requests_by_the_rate_of_a_descriptor_and_its_values(kind: str, host: Make) -> None:
    by_header = {"actions": [{"request_headers": {"header_name": "x-client", "descriptor_key": "client"}}]}
    routes = _routes(route={"cluster": "a", "timeout": "0s", "rate_limits": [by_header]})
    bucket = {"max_tokens": 5, "tokens_per_fill": 1, "fill_interval": "3600s"}
    descriptors = [
        {
            "entries": [{"key": "client", "value": "known"}],
            "token_bucket": {**bucket, "max_tokens": 9},
        },
        {"entries": [{"key": "client"}], "token_bucket": bucket},
    ]
    limited = _limited({**bucket, "max_tokens": 1000}, descriptors=descriptors)
    at = host(kind, {"virtual_hosts": routes, "http_filters": [limited]})
    assert _asked(at, "x-client: known") == 9
    assert _asked(at, "x-client: one") == 5
    assert _asked(at, "x-client: two") == 5
    assert _asked(at, "x-client: one") == 0


@both
def test_requests_under_a_fault(kind: str, host: Make) -> None:
    fault = {
        "envoy.filters.http.fault": {
            "type": "filters.http.fault.v3.HTTPFault",
            "max_active_faults": 4,
            "delay": {"fixed_delay": "60s", "percentage": {"numerator": 100}},
        }
    }
    at = host(kind, {"virtual_hosts": _DIRECT, "http_filters": [fault]})
    for _ in range(CLIENTS):
        at.client("x-nothing: 1")
    at.until("answers without a fault", lambda: at.statuses().get(200, 0) == CLIENTS - 4)
    every_worker_has_some(kind, at)
    at.counted("http.ingress.fault.delays_injected", 4)
    at.counted("http.ingress.fault.faults_overflow", CLIENTS - 4)


@both
def test_one_admin_port_speaks_for_all_workers(kind: str, host: Make) -> None:
    at = host(kind, {"virtual_hosts": _DIRECT})
    assert _asked(at, "x-nothing: 1") == CLIENTS
    every_worker_has_some(kind, at)
    at.counted("http.ingress.downstream_rq_2xx", CLIENTS)
    at.counted("http.ingress.downstream_cx_active", CLIENTS)
    metrics = [line for line in at.page("stats/prometheus").splitlines() if "downstream_rq_xx{" in line]
    of_ours = [line for line in metrics if '"2"' in line and '"ingress"' in line and "listener" not in line]
    assert [line.rsplit(" ", 1)[1] for line in of_ours] == [str(CLIENTS)]
    assert "OK" in at.page("reset_counters", "POST")
    at.counted("http.ingress.downstream_rq_2xx", 0)
    for client in at.clients:
        client.send()
    at.until("answers", lambda: all(client.status for client in at.clients))
    at.counted("http.ingress.downstream_rq_2xx", CLIENTS)
    assert json.loads(at.page("server_info"))["command_line_options"]["concurrency"] == 2
    at.page("drain_listeners", "POST")

    def refused() -> bool:
        try:
            socket.create_connection(("127.0.0.1", at.port), timeout=5).close()
        except ConnectionRefusedError:
            return True
        return False

    at.until("nobody listens", refused)
    at.page("quitquitquit", "POST")
    assert at.proxy.wait_for_end() == 0


def test_when_a_worker_is_killed_the_proxy_ends_for_its_supervisor_to_see(host: Make) -> None:
    at = host("ours", {"virtual_hosts": _FORWARD, "clusters": _thresholds(max_requests=7)})
    assert sum(at.call() for _ in range(CLIENTS)) == 7
    victim = at.workers()[0]
    os.kill(victim, signal.SIGKILL)
    for sock in at.asked[:]:
        with suppress(OSError):
            at.answer(sock)
    at.until("everybody has heard", lambda: all(client.ended for client in at.clients))
    assert at.proxy.wait_for_end() == 1
    assert "worker 0 ended with status -9" in at.proxy.log.read_text()


def test_a_bootstrap_that_cannot_be_served_is_refused_once(tmp_path: Path) -> None:
    text, names = template({"virtual_hosts": _DIRECT})
    elsewhere = text.replace("127.0.0.1", "192.0.2.1", 2)
    proxy = Proxy("ours", elsewhere, names, dict.fromkeys(("a", "b", "dead"), "1"), tmp_path, 2)
    assert proxy.wait_for_end() == 1
    assert proxy.log.read_text().count("cannot listen on 192.0.2.1") == 1
