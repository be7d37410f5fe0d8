"""No descriptor is left when a request needs a connection: answered as the real Envoy does, and nothing of it remains."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import urllib.request
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest

from tests.differential.backend import Backend
from tests.differential.bootstrap import template
from tests.differential.client import build
from tests.differential.proxies import Proxy

KINDS = ("envoy", "ours")
SPEC: dict[str, Any] = {
    "virtual_hosts": [
        {
            "name": "all",
            "domains": ["*"],
            "routes": [
                {"match": {"prefix": "/direct"}, "direct_response": {"status": 200}},
                {"match": {"prefix": "/"}, "route": {"cluster": "a"}},
            ],
        }
    ],
    # One of each: what is not given back is missed by the next request; and each request needs a connection.
    "clusters": {
        "a": {
            "circuit_breakers": {"thresholds": [{"max_connections": 1, "max_pending_requests": 1}]},
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {"http_protocol_options": {}},
                    "common_http_protocol_options": {"max_requests_per_connection": 1},
                }
            },
        }
    },
}
_TCP = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
OPAQUE: dict[str, Any] = {
    "listeners": {
        "main": {
            "filters": [{"name": "t", "typed_config": {"@type": _TCP, "stat_prefix": "t", "cluster": "a"}}]
        }
    },
    "clusters": SPEC["clusters"],
}


@contextlib.contextmanager
def running(kind: str, spec: dict[str, Any], folder: Path) -> Iterator[tuple[Proxy, Backend]]:
    backend = Backend("a")
    text, names = template(spec)
    proxy = Proxy(kind, text, names, {"a": str(backend.port), "b": "1", "dead": "1"}, folder)
    try:
        proxy.wait()
        while not serves(proxy):
            assert proxy.running
        yield proxy, backend
    finally:
        proxy.close()
        backend.close()


def serves(proxy: Proxy) -> bool:
    """The start is over: nothing more is opened for it."""
    with (
        contextlib.suppress(OSError),
        urllib.request.urlopen(f"http://127.0.0.1:{proxy.ports['admin']}/ready", timeout=10) as page,
    ):
        return bool(page.read().startswith(b"LIVE"))
    return False


@contextlib.contextmanager
def descriptors_left(pid: int, left: int) -> Iterator[None]:
    """The process can open so many more: the number of the next one is over its limit."""
    held = {int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir()}
    lowest = next(islice((number for number in count() if number not in held), left, None))
    former = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, former[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, former)


class Client:
    """A connection that is kept."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=10)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def status(self, request: dict[str, Any]) -> int:
        self.sock.sendall(build(request))
        answer = b""
        while b"\r\n\r\n" not in answer:
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                return 0
            if not data:
                return 0
            answer += data
        head, _, body = answer.partition(b"\r\n\r\n")
        length = next(
            int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
        )
        while len(body) < length:
            body += self.sock.recv(65536)
        return int(head.split(b" ")[1])


def gauges(proxy: Proxy) -> dict[str, int]:
    """Everything of the cluster that goes up and down, once nothing is in progress."""
    with urllib.request.urlopen(
        f"http://127.0.0.1:{proxy.ports['admin']}/stats?format=json&filter=^cluster.a.*active$", timeout=10
    ) as page:
        return {each["name"]: each["value"] for each in json.load(page)["stats"] if "name" in each}


@pytest.mark.envoy
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("body", ["", "abc"], ids=["GET", "POST"])
def test_a_request_is_answered_503_and_leaves_nothing_behind(kind: str, body: str, tmp_path: Path) -> None:
    """Descriptors of connections that are closing may still be used: so many requests as are answered come through, no more."""
    with running(kind, SPEC, tmp_path) as (proxy, backend), Client(proxy.ports["main"]) as client:
        assert client.status({"path": "/direct"}) == 200
        answers: dict[str, int] = {}
        while list(answers.values()).count(503) < 3:
            path = f"/{len(answers)}"
            with descriptors_left(proxy.pid, 0):
                answers[path] = client.status(
                    {"path": path, "method": "POST" if body else "GET", "body": body}
                )
        for number in range(3):
            answers[f"/after/{number}"] = client.status({"path": f"/after/{number}"})
        assert list(answers.values())[-3:] == [200] * 3
        assert [each.line.split()[1] for each in backend.received] == [
            path for path, status in answers.items() if status == 200
        ]
        flags = [line.split("flags=")[1].split()[0] for line in proxy.lines(0, len(answers) + 1)]
        assert flags == ["-", *("-" if status == 200 else "UF" for status in answers.values())]
        assert not any(value for name, value in gauges(proxy).items() if "upstream_rq" in name)


def test_an_opaque_connection_ends_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """The last descriptor is the client's own. The real Envoy ends with a failed assertion there."""
    with running("ours", OPAQUE, tmp_path) as (proxy, backend):
        answers: list[int] = []
        while answers.count(0) < 3:
            with descriptors_left(proxy.pid, 1), Client(proxy.ports["main"]) as client:
                answers.append(client.status({"path": "/first"}))
        backend.reset()
        with Client(proxy.ports["main"]) as client:
            assert client.status({"path": "/after"}) == 200
        assert [each.line.split()[1] for each in backend.received] == ["/after"]
