"""The same bootstrap and the same bytes through our proxy and the real Envoy: a client and a backend see the same.

Cases are in cases/*.yaml. A call may also state what is expected (`expect`), lest both be wrong together.
Wanted differences are listed with a reason in wanted_differences.yaml and nowhere else. After the cases of a file, our worker
holds what it held before them (tests/leftovers.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import leftovers
from tests.differential.backend import Backend, Received
from tests.differential.bootstrap import template
from tests.differential.client import Answer, Conversation, build, converse
from tests.differential.proxies import Proxy
from tests.ports import free_port

HERE = Path(__file__).parent
KINDS = ("envoy", "ours")
FILES = sorted((HERE / "cases").glob("*.yaml"))
WANTED: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "wanted_differences.yaml").read_text()) or {}

_VOLATILE_RESPONSE = {"date", "x-envoy-upstream-service-time"}
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def _cases() -> Iterator[Any]:
    for path in FILES:
        for call in yaml.safe_load(path.read_text())["calls"]:
            yield pytest.param(path, call, id=f"{path.stem}: {call['name']}")
        yield pytest.param(path, None, id=f"{path.stem}: nothing is left")


class Stand:
    """Backends and both proxies for one case file."""

    def __init__(self, path: Path, folder: Path) -> None:
        spec = yaml.safe_load(path.read_text())
        backends = spec.get("backends", ["a", "b"])
        # Backends of its own for each proxy: nothing is mistaken for the other's, and both can be asked at once.
        self.backends = {kind: {name: Backend(name) for name in backends} for kind in KINDS}
        self.dead = free_port()
        text, names = template(spec)
        self.proxies = {kind: Proxy(kind, text, names, self._fixed(kind), folder) for kind in KINDS}
        self.pool = ThreadPoolExecutor(len(KINDS))
        try:
            for proxy in self.proxies.values():
                proxy.wait()
            self._leftovers = leftovers.of_proxy(self.proxies["ours"].ports["admin"])
        except BaseException:
            self.close()
            raise

    def check_leftovers(self) -> None:
        """The last case: without its backends, our worker has no connection to keep."""
        for backend in self.backends["ours"].values():
            backend.close()
        self._leftovers.check()

    def close(self) -> None:
        for proxy in self.proxies.values():
            proxy.close()
        for backends in self.backends.values():
            for backend in backends.values():
                backend.close()
        self.pool.shutdown()

    def _fixed(self, kind: str) -> dict[str, str]:
        return {name: str(backend.port) for name, backend in self.backends[kind].items()} | {
            "dead": str(self.dead)
        }

    def ports(self, kind: str) -> dict[str, int]:
        """Every port that may be seen in an answer, by name."""
        backends = {name: backend.port for name, backend in self.backends[kind].items()}
        return {**backends, "dead": self.dead, **self.proxies[kind].ports}

    def run(self, call: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What Envoy's and what our client and backends saw, both asked at once."""
        theirs, ours = (self.pool.submit(_run, self, kind, call) for kind in KINDS)
        return theirs.result(), ours.result()


@pytest.fixture(scope="module")
def stands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    open_stands: dict[str, Any] = {}
    yield open_stands
    for stand in open_stands.values():
        if isinstance(stand, Stand):
            stand.close()


def _stand(stands: dict[str, Any], path: Path, folders: pytest.TempPathFactory) -> Stand:
    if path.stem not in stands:
        for other in [name for name, stand in stands.items() if isinstance(stand, Stand)]:
            stands.pop(other).close()
        try:
            stands[path.stem] = Stand(path, folders.mktemp(path.stem))
        except RuntimeError as error:
            stands[path.stem] = error
    stand = stands[path.stem]
    if isinstance(stand, RuntimeError):
        pytest.fail(str(stand))
    assert isinstance(stand, Stand)
    return stand


def _payloads(call: dict[str, Any]) -> tuple[list[bytes], int, tuple[bool, ...]]:
    """Payloads to send in turn, how many answers to read, which of them have no body whatever their head says."""
    if "raw" in call:
        raw = call["raw"] if isinstance(call["raw"], list) else [call["raw"]]
        payloads = [part.encode("latin-1").decode("unicode_escape").encode("latin-1") for part in raw]
        # A 2xx to CONNECT has no body (RFC 9110 section 9.3.6): what follows is the tunnel's.
        bodiless = tuple(payload.startswith(b"CONNECT ") for payload in payloads)
        return payloads, int(call.get("answers", len(payloads))), bodiless
    requests = call.get("requests") or [call.get("request", {})]
    requests = [request for request in requests for _ in range(int(request.get("repeat", 1)))]
    heads = tuple(request.get("method") == "HEAD" for request in requests)
    payloads = [build(request) for request in requests]
    if call.get("pipelined"):
        return [b"".join(payloads)], len(payloads), heads
    return payloads, len(payloads), heads


def _seen_answer(answer: Answer, ports: dict[str, int], ignore: set[str]) -> dict[str, Any]:
    headers = sorted(
        (name, _stable(value, ports))
        for name, value in answer.headers
        if name.lower() not in _VOLATILE_RESPONSE | ignore
    )
    return {
        "status": answer.status, "reason": answer.reason, "headers": headers, "interim": answer.interim,
        "body": _stable(answer.body.decode("latin-1"), ports), "trailers": answer.trailers, "complete": answer.complete,
    }  # fmt: skip


def _stable(text: str, ports: dict[str, int]) -> str:
    for name, port in ports.items():
        text = text.replace(f":{port}", f":<{name}>")
    return _UUID.sub("<uuid>", text)


def _time_left(name: str, value: str) -> str:
    """A retry's remaining time depends on the back-off's dice: whole seconds, rounded up."""
    return str(-(-int(value) // 1000) * 1000) if name == "x-envoy-expected-rq-timeout-ms" else value


def _seen_request(request: Received, ports: dict[str, int], ignore: set[str]) -> dict[str, Any]:
    headers = sorted(
        (name, _time_left(name, _stable(value, ports)))
        for name, value in request.headers
        if name.lower() not in ignore
    )
    return {
        "backend": request.backend, "line": _stable(request.line, ports), "headers": headers,
        "body": request.body.decode("latin-1"), "trailers": request.trailers,
    }  # fmt: skip


def _run(stand: Stand, kind: str, call: dict[str, Any]) -> dict[str, Any]:
    proxy = stand.proxies[kind]
    backends, ports = stand.backends[kind].values(), stand.ports(kind)
    for backend in backends:
        backend.reset()
    payloads, expected, heads = _payloads(call)
    listener = call.get("listener") or next(iter(proxy.ports))
    logged = proxy.logged()
    conversation: Conversation = converse(
        proxy.ports[listener], payloads, expected=expected, heads=heads, shut=bool(call.get("shut")),
        timeout=float(call.get("timeout", 8)), linger=float(call.get("linger", 0.2)),
    )  # fmt: skip
    ignore = {name.lower() for name in call.get("ignore", [])}
    received = [request for backend in backends for request in backend.received]
    seen: dict[str, Any] = {
        "answers": [_seen_answer(answer, ports, ignore) for answer in conversation.answers],
        "ending": conversation.ending,
        "received": [_seen_request(request, ports, ignore) for request in received],
    }
    # Also lines that are not compared are waited for, lest they come during the next call.
    lines = proxy.lines(logged, int(call.get("lines", len(conversation.answers))))
    if not call.get("unlogged"):
        seen["log"] = [_stable(line, ports) for line in lines]
    assert proxy.running, f"{kind} died:\n{proxy.log.read_text()[-3000:]}"
    if call.get("compare") == "distribution":
        return {
            "statuses": sorted({a["status"] for a in seen["answers"]}),
            "backends": sorted({r["backend"] for r in seen["received"]}), "count": len(seen["answers"]),
        }  # fmt: skip
    if call.get("compare") == "ending":
        return {"statuses": [a["status"] for a in seen["answers"]], "ending": seen["ending"]}
    if call.get("compare") == "last":
        return {"status": seen["answers"][-1]["status"]}
    if call.get("compare") == "status":
        return {"statuses": [a["status"] for a in seen["answers"]], "received": len(seen["received"])}
    return seen


@pytest.mark.envoy
@pytest.mark.parametrize(("path", "call"), list(_cases()))
def test_ours_behaves_as_envoy(
    path: Path, call: dict[str, Any] | None, stands: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    stand = _stand(stands, path, tmp_path_factory)
    if call is None:
        try:
            stand.check_leftovers()
        finally:
            stands.pop(path.stem).close()
        return
    theirs, ours = stand.run(call)
    expect = call.get("expect", {})
    if "status" in expect and "answers" in theirs:
        assert [a["status"] for a in theirs["answers"]][-1:] == [expect["status"]], (
            f"the case misjudges Envoy: {theirs}"
        )
    if "received" in expect and isinstance(theirs.get("received"), list):
        assert len(theirs["received"]) == expect["received"], f"the case misjudges Envoy: {theirs}"
    wanted = WANTED.get(f"{path.stem}: {call['name']}")
    if wanted is not None:
        assert ours != theirs, "no longer different: take it out of wanted_differences.yaml"
        assert [a["status"] for a in ours["answers"]] == wanted["ours"], wanted["reason"]
        return
    assert ours == theirs
