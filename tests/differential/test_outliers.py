"""How many hosts of a cluster outlier detection takes out of the rotation, beside the real Envoy."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.differential.backend import Backend
from tests.differential.bootstrap import template
from tests.differential.client import build, converse
from tests.differential.proxies import Proxy

KINDS = ("envoy", "ours")
HOSTS = ("one", "two", "three", "four")
SHARES = {
    "a single host and the default share": (1, None, 0),
    "two hosts and the default share": (2, None, 0),
    "a single host and the whole": (1, 100, 1),
    "two hosts and a half": (2, 50, 1),
    "three hosts and a half": (3, 50, 1),
    "four hosts and a half": (4, 50, 2),
    "four hosts and three quarters": (4, 75, 3),
    "four hosts and 74 %": (4, 74, 2),
}


def _cluster(hosts: int, share: int | None) -> dict[str, Any]:
    detection: dict[str, Any] = {"consecutive_5xx": 1, "base_ejection_time": "300s"}
    if share is not None:
        detection["max_ejection_percent"] = share
    return {
        "backends": list(HOSTS[:hosts]),
        "lb_policy": "ROUND_ROBIN",
        "common_lb_config": {"healthy_panic_threshold": {}},
        "outlier_detection": detection,
    }


SPEC: dict[str, Any] = {
    "clusters": {f"c{number}": _cluster(*share[:2]) for number, share in enumerate(SHARES.values())},
    "virtual_hosts": [
        {
            "name": "all",
            "domains": ["*"],
            "routes": [
                {"match": {"prefix": f"/c{number}/"}, "route": {"cluster": f"c{number}"}}
                for number in range(len(SHARES))
            ],
        }
    ],
}


@pytest.fixture(scope="module", params=KINDS)
def proxy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    backends = {name: Backend(name) for name in HOSTS}
    ports = {name: str(backend.port) for name, backend in backends.items()}
    text, names = template(SPEC)
    started = Proxy(
        request.param,
        text,
        names,
        {**ports, "a": "1", "b": "1", "dead": "1"},
        tmp_path_factory.mktemp("outliers"),
    )
    started.wait()
    yield started
    started.close()
    for backend in backends.values():
        backend.close()


@pytest.mark.envoy
@pytest.mark.parametrize("case", SHARES)
def test_no_more_hosts_are_ejected_than_the_share_allows(case: str, proxy: Proxy) -> None:
    number = list(SHARES).index(case)
    for _ in range(3 * len(HOSTS)):
        (answer,) = converse(
            proxy.ports["main"], [build({"path": f"/c{number}/status/503"})], expected=1, linger=0.0
        ).answers
        assert answer.status == 503
    with urllib.request.urlopen(
        f"http://127.0.0.1:{proxy.ports['admin']}/stats?format=json&filter=^cluster.c{number}.outlier",
        timeout=10,
    ) as page:
        told = {
            each["name"].rpartition(".")[2]: each["value"]
            for each in json.load(page)["stats"]
            if "name" in each
        }
    assert told["ejections_active"] == SHARES[case][2]
    assert (told["ejections_overflow"] > 0) == (SHARES[case][0] > SHARES[case][2])
