"""Byte streams that nobody of us wrote, through our running proxy and the real Envoy: the same class of verdict.

The streams are llhttp's request cases and Envoy's own HTTP/1 corpus (../shared/cases/http1). A verdict is what
happened to the first message: accepted, refused with a status, closed in silence, or still waiting for bytes.
Each difference that is wanted stands in explained.yaml with its reason; an explanation that is no longer needed fails.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.differential.backend import Backend
from tests.differential.bootstrap import template
from tests.differential.proxies import Proxy

CASES = Path(__file__).parents[2] / ".." / "shared" / "cases" / "http1"
EXPLAINED: dict[str, dict[str, str]] = (
    yaml.safe_load((Path(__file__).parent / "explained.yaml").read_text()) or {}
)
BOOTSTRAP = {
    "virtual_hosts": [
        {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "a"}}]}
    ],
    "clusters": {"b": {"backends": ["a"]}, "dead": {"backends": ["a"]}},
}


def _streams() -> Iterator[Any]:
    for item in json.loads((CASES / "llhttp.json").read_text()):
        if item["type"] == "request":
            yield pytest.param(bytes.fromhex(item["wire_hex"]), item["id"], id=item["id"])
    for path in sorted((CASES / "envoy-corpus").iterdir()):
        yield pytest.param(path.read_bytes(), path.name, id=path.name)


@pytest.fixture(scope="module")
def proxies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Proxy]]:
    backend = Backend("a")
    text, names = template(BOOTSTRAP)
    folder = tmp_path_factory.mktemp("http1")
    made = {kind: Proxy(kind, text, names, {"a": str(backend.port)}, folder) for kind in ("envoy", "ours")}
    try:
        for proxy in made.values():
            proxy.wait()
        yield made
    finally:
        for proxy in made.values():
            proxy.close()
        backend.close()


def _verdict(port: int, stream: bytes, patience: float) -> str:
    """`2xx`, `4xx`, … of the first final answer; `closed` without one; `waiting` after `patience` seconds."""
    deadline = time.monotonic() + patience
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as connection:
        try:
            connection.sendall(stream)
            while True:
                while received.startswith(b"HTTP/1.1 1") and b"\r\n\r\n" in received:
                    received = received.partition(b"\r\n\r\n")[2]
                if len(received) >= 12:
                    return received[9:10].decode() + "xx"
                connection.settimeout(max(0.01, deadline - time.monotonic()))
                data = connection.recv(65536)
                if not data:
                    return "closed"
                received += data
        except TimeoutError:
            return "waiting"
        except (ConnectionResetError, BrokenPipeError):
            return "closed"


def _verdicts(proxies: dict[str, Proxy], stream: bytes, patience: float) -> tuple[str, str]:
    with ThreadPoolExecutor(2) as pool:
        theirs, ours = (
            pool.submit(_verdict, proxies[kind].ports["main"], stream, patience) for kind in ("envoy", "ours")
        )
        return theirs.result(), ours.result()


@pytest.mark.envoy
@pytest.mark.parametrize(("stream", "name"), list(_streams()))
def test_the_verdict_is_envoys(stream: bytes, name: str, proxies: dict[str, Proxy]) -> None:
    theirs, ours = _verdicts(proxies, stream, 0.25)
    if ours != theirs and "waiting" in (ours, theirs):
        # One of the two may only have been slow: silence counts when it lasts.
        theirs, ours = _verdicts(proxies, stream, 3.0)
    assert proxies["ours"].running, proxies["ours"].log.read_text()[-3000:]
    if name in EXPLAINED:
        assert ours != theirs, "no longer different: take it out of explained.yaml"
        assert ours == EXPLAINED[name]["ours"], EXPLAINED[name]["reason"]
        return
    assert ours == theirs
