"""Two workers keep the limits of one: what is admitted through real Envoy `--concurrency 2` and through ours `--workers 2`."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.differential.bootstrap import template
from tests.differential.proxies import Proxy
from tests.differential.workers import CLIENTS, Host

KINDS = ("envoy", "ours")
_TYPE = "type.googleapis.com/envoy.extensions."


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
    at.counted(f"listener.127.0.0.1_{at.port}.downstream_cx_active", 6)
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


@both
def test_every_worker_follows_a_rotation_of_the_access_log(kind: str, host: Make) -> None:
    at = host(kind, {"virtual_hosts": _DIRECT})
    log = at.proxy.access
    rotated = log.with_suffix(".1")

    def lines(file: Path) -> int:
        return file.read_text().count("\n") if file.exists() else 0

    assert _asked(at, "x-nothing: 1") == CLIENTS
    every_worker_has_some(kind, at)
    at.until("a line for each", lambda: lines(log) == CLIENTS)
    log.rename(rotated)
    at.page("reopen_logs", "POST")
    for client in at.clients:
        client.send()
    at.until("a line for each in the new file", lambda: lines(log) == CLIENTS)
    assert lines(rotated) == CLIENTS


def test_when_a_worker_is_killed_others_listen_before_its_siblings_leave(host: Make) -> None:
    at = host("ours", {"virtual_hosts": _FORWARD})
    assert sum(at.call() for _ in range(CLIENTS)) == CLIENTS
    every_worker_has_some("ours", at)
    victim, sibling = at.workers()
    kept = at.connections_of(sibling)
    os.kill(victim, signal.SIGKILL)
    at.until(
        "the victim's clients have heard", lambda: sum(not client.ended for client in at.clients) == kept
    )
    new: set[int] = set()

    def taken_over() -> bool:
        assert at.call(), "somebody listens at every moment, and serves"
        new.update(pid for pid in at.workers() if pid not in (victim, sibling) and at.connections_of(pid))
        return len(new) == 2

    at.until("two new workers serve", taken_over)
    for sock in at.asked[:]:
        at.answer(sock)
    at.until(
        "nobody else has lost a request",
        lambda: at.statuses() == {0: CLIENTS - kept, 200: len(at.clients) - CLIENTS + kept},
    )
    assert at.proxy.running
    assert "worker 0 ended with status -9; as many new ones take over" in at.proxy.log.read_text()
    at.until("the sibling has left, and nothing of it stays", lambda: set(at.workers()) == new)
    assert at.page("ready").startswith("LIVE")


def test_a_proxy_whose_workers_keep_ending_ends_for_its_supervisor_to_see(host: Make) -> None:
    at = host("ours", {"virtual_hosts": _DIRECT})
    killed: set[int] = set()

    def ended() -> bool:
        with suppress(OSError, IndexError):
            if at.page("ready").startswith("LIVE"):
                victim = next(pid for pid in at.workers() if pid not in killed)
                killed.add(victim)
                os.kill(victim, signal.SIGKILL)
        return not at.proxy.running

    at.until("the proxy has ended", ended)
    assert at.proxy.wait_for_end() == 1
    assert at.proxy.log.read_text().count("as many new ones take over") >= 5


def test_a_bootstrap_that_cannot_be_served_is_refused_once(tmp_path: Path) -> None:
    text, names = template({"virtual_hosts": _DIRECT})
    elsewhere = text.replace("127.0.0.1", "192.0.2.1", 2)
    proxy = Proxy("ours", elsewhere, names, dict.fromkeys(("a", "b", "dead"), "1"), tmp_path, 2)
    assert proxy.wait_for_end() == 1
    assert proxy.log.read_text().count("cannot listen on 192.0.2.1") == 1
