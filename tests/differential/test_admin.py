"""What both proxies tell on their admin ports after the same calls: a name that we show is one of Envoy's, with its value."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.differential.backend import Backend
from tests.differential.bootstrap import template
from tests.differential.client import build, converse
from tests.differential.proxies import Proxy
from tests.ports import free_port

KINDS = ("envoy", "ours")
SPEC: dict[str, Any] = {
    "virtual_hosts": [
        {
            "name": "all",
            "domains": ["*"],
            "routes": [
                {"match": {"prefix": "/direct"}, "direct_response": {"status": 200}},
                {"match": {"prefix": "/to"}, "redirect": {"path_redirect": "/"}},
                {"match": {"prefix": "/b"}, "route": {"cluster": "b"}},
                {"match": {"prefix": "/dead"}, "route": {"cluster": "dead", "retry_policy": {"retry_on": "connect-failure"}}},
                {
                    "match": {
                        "prefix": "/rare",
                        "runtime_fraction": {"default_value": {}, "runtime_key": "my.rate"},
                    },
                    "route": {"cluster": "b"},
                },
                {"match": {"prefix": "/a"}, "route": {"cluster": "a"}},
            ],
        }
    ],
    "clusters": {"b": {"outlier_detection": {}, "circuit_breakers": {"thresholds": [{"max_retries": 5}]}}},
}  # fmt: skip
RUNTIME = [
    {"name": "base", "static_layer": {"my": {"rate": 50}, "envoy": {"reloadable_features": {"x": False}}}},
    {"name": "over", "static_layer": {"my.rate": 60}},
]
CALLS = ("/a", "/a/503", "/b", "/direct", "/to", "/dead", "/nowhere")
NOT_ALIKE = re.compile(
    r"memory_|uptime|_time|_ms$|_length|bytes|server\.(version|stats_recent_lookups|total_connections|config_|access_log|statistics)|"
    r"listener\.admin|_rq_retry_backoff|upstream_cx_(destroy|active|total|http1)|http\.admin|default\.total_match_count|"
    r"days_until|max_host_weight"
)  # fmt: skip
"""Of one proxy only by its nature: sizes, times, its own admin port, connections that retries share in another way."""


class Both:
    """The two proxies, their backends, and their admin pages."""

    def __init__(self, folder: Path) -> None:
        text, names = template(SPEC)
        tree = text.replace(
            "static_resources:", f"layered_runtime: {json.dumps({'layers': RUNTIME})}\nstatic_resources:"
        )
        self.backends = {kind: {name: Backend(name) for name in ("a", "b")} for kind in KINDS}
        dead = str(free_port())
        self.proxies = {
            kind: Proxy(
                kind, tree, names, {name: str(each.port) for name, each in self.backends[kind].items()} | {"dead": dead}, folder
            )
            for kind in KINDS
        }  # fmt: skip
        for proxy in self.proxies.values():
            proxy.wait()

    def close(self) -> None:
        for proxy in self.proxies.values():
            proxy.close()
        for backends in self.backends.values():
            for backend in backends.values():
                backend.close()

    def page(self, kind: str, path: str) -> str:
        proxy = self.proxies[kind]
        with urllib.request.urlopen(
            f"http://127.0.0.1:{proxy.ports['admin']}/{path}", timeout=10
        ) as response:
            text = str(response.read().decode())
        return text.replace(str(proxy.ports["main"]), "10001").replace(str(proxy.ports["admin"]), "10002")

    def statistics(self, kind: str) -> dict[str, str]:
        lines = [line.rsplit(": ", 1) for line in self.page(kind, "stats").splitlines()]
        return {name: value for name, value in lines if not NOT_ALIKE.search(name)}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    made = Both(tmp_path_factory.mktemp("admin"))
    for kind in KINDS:
        for path in CALLS:
            answered = converse(made.proxies[kind].ports["main"], [build({"path": path})], expected=1).answers
            assert len(answered) == 1
    yield made
    made.close()


@pytest.mark.envoy
def test_every_statistic_that_we_show_is_envoys(both: Both) -> None:
    deadline = time.monotonic() + 10
    while True:  # connections that are ending are counted a little later
        theirs, ours = both.statistics("envoy"), both.statistics("ours")
        different = {
            name: (theirs.get(name), value) for name, value in ours.items() if theirs.get(name) != value
        }
        if not different or time.monotonic() > deadline:
            break
    assert not different, json.dumps(different, indent=1)


@pytest.mark.envoy
@pytest.mark.parametrize("path", ["runtime", "ready", "init_dump", "contention", "listeners?format=json"])
def test_pages_say_what_envoys_say(both: Both, path: str) -> None:
    theirs, ours = both.page("envoy", path), both.page("ours", path)
    if theirs.startswith("{"):
        assert json.loads(ours) == json.loads(theirs)
    else:
        assert ours.strip() == theirs.strip()
