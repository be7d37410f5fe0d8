"""What the upstream decides: balancers, rotation, pools, breakers, outliers, retries. No sockets, time is a number."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from agent.http.headers import Headers
from agent.http.request import ConnectionInfo, RequestContext, ResponseHead
from agent.http.retry_plan import RetryPlan
from agent.table.cluster import Assignment, Cluster, Endpoint, Locality, OutlierDetection, Thresholds
from agent.table.listener import Address
from agent.telemetry.series import Recorder
from agent.upstream import reset, retry
from agent.upstream.balancer import make_picker
from agent.upstream.cluster import ClusterRuntime
from agent.upstream.host import Host
from agent.upstream.pool import Pool


def endpoint(number: int, **more: Any) -> Endpoint:
    return Endpoint(Address(f"10.0.0.{number}", 80), **more)


class Connections:
    """A worker that opens connections when it is told to, and may refuse."""

    def __init__(self) -> None:
        self.asked: list[Pool] = []

    def connect(self, pool: Pool) -> None:
        self.asked.append(pool)


class Connection:
    """As a worker's: it tells its pool when it closes."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.generation = pool.generation
        self.resting = self.closed = False

    def close_idle(self) -> None:
        self.closed = True
        self._pool.closed(self)  # type: ignore[arg-type]


class Waiting:
    def __init__(self, runtime: ClusterRuntime) -> None:
        self.priority_breaker = runtime.breakers[0]
        self.told: list[Any] = []

    def upstream_ready(self, connection: Any) -> None:
        self.told.append(connection)

    def upstream_overflowed(self) -> None:
        self.told.append(reset.OVERFLOW)

    def upstream_unavailable(self, reason: str, failure: str) -> None:
        self.told.append(reason)


def runtime(*endpoints: Endpoint, connections: Connections | None = None, **config: Any) -> ClusterRuntime:
    recorder = Recorder()
    cluster = Cluster("c", "static", Assignment("c", endpoints), **config)
    made = ClusterRuntime(
        cluster, (connections or Connections()).connect, recorder.cluster("c"), recorder.slots, 0
    )
    made.reconfigure(cluster, None)
    made.update_hosts(endpoints)
    return made


def spread(cluster: ClusterRuntime, count: int = 1000) -> Counter[str]:
    mix = 0x9E3779B97F4A7C15
    hosts = [cluster.pick(number * mix & 0xFFFFFFFFFFFFFFFF, None, {}) for number in range(1, count + 1)]
    return Counter(host.name if host is not None else "nobody" for host in hosts)


# Balancers


def test_round_robin_goes_round_and_weights_count() -> None:
    equal = spread(runtime(endpoint(1), endpoint(2), endpoint(3)), 300)
    assert set(equal.values()) == {100}
    weighted = spread(runtime(endpoint(1, weight=1), endpoint(2, weight=3)), 400)
    assert weighted == {"10.0.0.1:80": 100, "10.0.0.2:80": 300}


def test_a_heavy_host_does_not_get_its_turns_in_a_row() -> None:
    cluster = runtime(endpoint(1, weight=2), endpoint(2, weight=2), endpoint(3, weight=4))
    picks = [cluster.pick(0, None, {}) for _ in range(8)]
    names = [pick.name for pick in picks if pick is not None]
    assert "10.0.0.3:80,10.0.0.3:80,10.0.0.3:80" not in ",".join(names)


def test_least_request_prefers_the_idle_host() -> None:
    cluster = runtime(endpoint(1), endpoint(2), lb_policy="least_request")
    cluster.hosts[0].active = 5
    counts = spread(cluster)
    assert counts["10.0.0.2:80"] > 2 * counts["10.0.0.1:80"]


@pytest.mark.parametrize("policy", ["ring_hash", "maglev"])
def test_a_key_keeps_its_host_when_another_host_leaves(policy: str) -> None:
    config: dict[str, Any] = {"lb_policy": policy, "lb_config": {"table_size": 1021}}
    endpoints = [endpoint(number) for number in range(1, 6)]
    before, after = runtime(*endpoints, **config), runtime(*endpoints[:-1], **config)
    keys = [number * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF for number in range(1, 500)]
    moved = 0
    for key in keys:
        first, second = before.pick(1, key, {}), after.pick(2, key, {})
        assert first is not None
        assert second is not None
        moved += first.name != second.name and first.name != "10.0.0.5:80"
    assert moved < len(keys) * 0.1


def test_random_reaches_every_host() -> None:
    assert len(spread(runtime(endpoint(1), endpoint(2), endpoint(3), lb_policy="random"))) == 3


# Rotation


def test_unhealthy_hosts_are_left_out_until_the_cluster_panics() -> None:
    mostly = runtime(endpoint(1), endpoint(2), endpoint(3, healthy=False))
    assert set(spread(mostly)) == {"10.0.0.1:80", "10.0.0.2:80"}
    panicking = runtime(endpoint(1), endpoint(2, healthy=False), endpoint(3, healthy=False))
    assert len(spread(panicking)) == 3
    resigned = runtime(endpoint(1, healthy=False), panic_threshold=0.0)
    assert set(spread(resigned)) == {"nobody"}


def test_the_next_priority_takes_what_the_first_cannot() -> None:
    first = [endpoint(1), endpoint(2, healthy=False)]
    cluster = runtime(*first, endpoint(3, priority=1))
    counts = spread(cluster)
    assert 600 < counts["10.0.0.1:80"] < 800  # 50 % healthy x 1.4
    assert counts["10.0.0.3:80"] == 1000 - counts["10.0.0.1:80"]


def test_localities_share_by_weight() -> None:
    east, west = Locality("east"), Locality("west")
    cluster = runtime(
        endpoint(1, locality=east, locality_weight=3),
        endpoint(2, locality=west, locality_weight=1),
        lb_config={"locality_weighted": True},
    )
    assert 700 < spread(cluster)["10.0.0.1:80"] < 800


def test_endpoints_that_stay_keep_their_host() -> None:
    cluster = runtime(endpoint(1), endpoint(2))
    kept = cluster.hosts[0]
    kept.active = 3
    assert cluster.update_hosts([endpoint(1, weight=7), endpoint(9)])
    assert cluster.hosts[0] is kept
    assert kept.weight == 7
    assert not cluster.update_hosts([endpoint(1, weight=7), endpoint(9)])


# Pools


def test_requests_wait_in_order_and_idle_connections_are_used_last_in_first_out() -> None:
    connections = Connections()
    cluster = runtime(endpoint(1), connections=connections)
    pool = cluster.hosts[0].pool
    first, second = Waiting(cluster), Waiting(cluster)
    assert pool.request(first) is True
    assert pool.request(second) is True
    assert len(connections.asked) == 2
    one, two = Connection(pool), Connection(pool)
    pool.connected(one)
    pool.connected(two)
    assert (first.told, second.told) == ([one], [two])
    pool.release(one)
    pool.release(two)
    assert pool.request(Waiting(cluster)) is two


def test_a_failed_connection_fails_all_who_wait() -> None:
    cluster = runtime(endpoint(1))
    pool = cluster.hosts[0].pool
    waiting = [Waiting(cluster), Waiting(cluster)]
    for one in waiting:
        pool.request(one)
    pool.failed(reset.CONNECT_FAILURE, "refused")
    assert [one.told for one in waiting] == [[reset.CONNECT_FAILURE]] * 2
    assert cluster.breakers[0].pending == 0
    assert cluster.breakers[0].connections == 1  # the second is still on its way


def test_the_breaker_bounds_who_may_wait_and_what_may_be_opened() -> None:
    connections = Connections()
    limits = Thresholds(max_connections=1, max_pending_requests=2)
    cluster = runtime(endpoint(1), connections=connections, default_thresholds=limits)
    pool = cluster.hosts[0].pool
    waiting = [Waiting(cluster) for _ in range(3)]
    assert [pool.request(one) for one in waiting] == [True, True, False]
    assert len(connections.asked) == 1
    pool.withdraw(waiting[0])
    assert cluster.breakers[0].pending == 1


def test_who_waited_is_refused_when_others_have_used_up_the_requests() -> None:
    cluster = runtime(endpoint(1), default_thresholds=Thresholds(max_requests=1))
    pool, breaker = cluster.hosts[0].pool, cluster.breakers[0]
    waiting, connection = [Waiting(cluster), Waiting(cluster)], Connection(pool)
    assert [pool.request(one) for one in waiting] == [True, True]
    breaker.add_requests(1)
    pool.connected(connection)
    assert [one.told for one in waiting] == [[reset.OVERFLOW]] * 2
    assert pool.idle == [connection] and breaker.pending == 0


def test_connections_of_a_host_that_left_are_closed_when_they_are_free() -> None:
    cluster = runtime(endpoint(1), endpoint(2))
    pool = cluster.hosts[0].pool
    busy, idle = Connection(pool), Connection(pool)
    for connection in (busy, idle):
        pool.request(Waiting(cluster))
        pool.connected(connection)
    pool.release(idle)
    cluster.update_hosts([endpoint(2)])
    assert idle.closed
    pool.release(busy)
    assert busy.closed
    assert (pool.total, pool.connecting, cluster.breakers[0].connections) == (0, 0, 0)


class Secured:
    """TLS of an endpoint: what counts is which context new connections get."""

    def __init__(self) -> None:
        self.context = object()


@pytest.mark.parametrize("change", ["settings", "secrets", "plaintext"])
def test_connections_made_with_other_tls_are_retired(change: str) -> None:
    """They end with the request on them and take no other, also where somebody waits."""
    connections, tls = Connections(), Secured()
    cluster = runtime(endpoint(1), connections=connections)
    cluster.reconfigure(cluster.config, lambda _: tls)
    pool = cluster.hosts[0].pool
    busy, idle, coming, resting = (Connection(pool) for _ in range(4))
    for connection in (busy, idle, resting):
        pool.request(Waiting(cluster))
        pool.connected(connection)
    waiting = Waiting(cluster)
    pool.request(waiting)
    pool.idle.append(idle)
    pool.rest(resting)
    connections.asked.clear()
    if change == "secrets":
        tls.context = object()
    other = {"settings": Secured(), "secrets": tls, "plaintext": None}[change]
    cluster.reconfigure(cluster.config, lambda _: other)
    assert (busy.closed, idle.closed) == (False, True)
    for connection in (busy, resting):
        pool.release(connection)
        assert connection.closed
    pool.connected(coming)
    assert coming.closed and not waiting.told
    assert connections.asked == [pool]
    new = Connection(pool)
    pool.connected(new)
    assert waiting.told == [new]
    pool.release(new)
    assert pool.idle == [new]
    assert (pool.total, pool.resting, cluster.breakers[0].connections) == (1, 0, 1)


def test_nothing_is_retired_where_tls_stays_as_it_was() -> None:
    tls = Secured()
    cluster = runtime(endpoint(1))
    cluster.reconfigure(cluster.config, lambda _: tls)
    pool = cluster.hosts[0].pool
    connection = Connection(pool)
    pool.request(Waiting(cluster))
    pool.connected(connection)
    cluster.reconfigure(cluster.config, lambda _: tls)
    pool.release(connection)
    assert pool.idle == [connection]


def test_who_waits_for_a_connection_that_rests_needs_no_new_one_unless_it_ends() -> None:
    connections = Connections()
    cluster = runtime(endpoint(1), connections=connections)
    pool = cluster.hosts[0].pool
    connection, waiting = Connection(pool), Waiting(cluster)
    pool.request(Waiting(cluster))
    pool.connected(connection)
    pool.rest(connection)
    connections.asked.clear()
    assert pool.request(waiting) is True
    assert not connections.asked and not waiting.told
    pool.closed(connection)
    assert connections.asked == [pool]
    assert (pool.total, pool.resting) == (1, 0)


# Outliers


def test_a_host_is_ejected_after_consecutive_failures_and_comes_back() -> None:
    config = OutlierDetection(consecutive_5xx=3, base_ejection_time=30.0, max_ejection_percent=50)
    cluster = runtime(endpoint(1), endpoint(2), outlier=config)
    detector, host = cluster.detector, cluster.hosts[0]
    assert detector is not None
    assert [detector.response(host, 500, 0.0, 0, 2) for _ in range(2)] == [False, False]
    assert not detector.response(host, 200, 0.0, 0, 2)
    assert [detector.response(host, 500, 0.0, 0, 2) for _ in range(3)] == [False, False, True]
    cluster.rebuild()
    assert set(spread(cluster)) == {"10.0.0.2:80"}
    assert not detector.sweep(cluster.hosts, 10.0, 0)
    assert detector.sweep(cluster.hosts, 30.0, 0)
    cluster.rebuild()
    assert len(spread(cluster)) == 2


def test_no_more_hosts_are_ejected_than_allowed() -> None:
    config = OutlierDetection(consecutive_5xx=1, max_ejection_percent=50)
    cluster = runtime(endpoint(1), endpoint(2), endpoint(3), outlier=config)
    detector = cluster.detector
    assert detector is not None
    assert [detector.response(host, 503, 0.0, 0, 3) for host in cluster.hosts] == [True, False, False]


def test_the_only_host_of_a_cluster_stays_with_the_default_share() -> None:
    cluster = runtime(endpoint(1), outlier=OutlierDetection(consecutive_5xx=1))
    detector = cluster.detector
    assert detector is not None
    assert not detector.response(cluster.hosts[0], 503, 0.0, 0, 1)


def test_outliers_are_swept_at_intervals_that_the_detector_keeps_itself() -> None:
    cluster = runtime(endpoint(1), outlier=OutlierDetection(interval=10.0))
    detector = cluster.detector
    assert detector is not None
    assert [detector.due(now) for now in (100.0, 105.0, 110.0, 115.0)] == [True, False, True, False]


def test_enforcement_is_a_matter_of_chance() -> None:
    config = OutlierDetection(consecutive_5xx=1, enforcing_consecutive_5xx=50, max_ejection_percent=100)
    cluster = runtime(endpoint(1), outlier=config)
    detector = cluster.detector
    assert detector is not None
    assert not detector.response(cluster.hosts[0], 500, 0.0, 50, 1)
    assert detector.response(cluster.hosts[0], 500, 0.0, 49, 1)


# Retries


def context(*headers: tuple[bytes, bytes]) -> RequestContext:
    connection = ConnectionInfo(1, ("127.0.0.1", 1), ("127.0.0.1", 2))
    return RequestContext(b"GET", b"/", b"a", Headers(headers), connection)


def plan(*on: str, **more: Any) -> RetryPlan:
    return RetryPlan(frozenset(on), more.pop("attempts", 1), **more)


@pytest.mark.parametrize(
    ("on", "status", "retried"),
    [
        ("5xx", 503, True),
        ("5xx", 404, False),
        ("gateway-error", 502, True),
        ("gateway-error", 500, False),
        ("retriable-4xx", 409, True),
        ("retriable-4xx", 404, False),
        ("retriable-status-codes", 418, True),
        ("reset", 503, False),
    ],
)
def test_statuses_are_retried_as_the_policy_says(on: str, status: int, retried: bool) -> None:
    state = retry.begin(plan(on, statuses=frozenset((418,))), context())
    assert state is not None
    assert state.of_response(ResponseHead(status, Headers())) is retried


@pytest.mark.parametrize(
    ("on", "reason", "started", "retried"),
    [
        ("connect-failure", reset.CONNECT_FAILURE, False, True),
        ("connect-failure", reset.TERMINATION, True, False),
        ("reset", reset.TERMINATION, True, True),
        ("reset-before-request", reset.CONNECT_TIMEOUT, False, True),
        ("reset-before-request", reset.TERMINATION, True, False),
        ("5xx", reset.PROTOCOL, True, True),
        ("5xx", reset.OVERFLOW, False, False),
    ],
)
def test_resets_are_retried_as_the_policy_says(on: str, reason: str, started: bool, retried: bool) -> None:
    state = retry.begin(plan(on), context())
    assert state is not None
    assert state.of_reset(reason, started) is retried


def test_a_client_may_ask_for_retries_by_headers() -> None:
    asked = context(
        (b"x-envoy-retry-on", b"retriable-status-codes, nonsense"),
        (b"x-envoy-max-retries", b"4"),
        (b"x-envoy-retriable-status-codes", b"418,x"),
    )
    state = retry.begin(None, asked)
    assert state is not None
    assert (state.left, state.on) == (4, {"retriable-status-codes"})
    assert state.of_response(ResponseHead(418, Headers()))
    retry.forget_headers(asked.headers)
    assert not asked.headers
    assert retry.begin(None, context()) is None


def test_backoff_stays_under_its_bounds() -> None:
    state = retry.begin(plan("5xx", base_interval=0.1, max_interval=0.3), context())
    assert state is not None
    longest = []
    for attempt in range(4):
        state.attempts = attempt
        longest.append(max(state.delay(number * 0x9E3779B97F4A7C15) for number in range(200)))
    assert all(delay <= bound for delay, bound in zip(longest, [0.1, 0.2, 0.3, 0.3], strict=True))
    assert longest[0] > 0.05


def test_pickers_are_made_for_every_policy() -> None:
    hosts = [Host(endpoint(1)), Host(endpoint(2))]
    for policy in ("round_robin", "least_request", "random", "ring_hash", "maglev"):
        cluster = Cluster("c", "static", lb_policy=policy, lb_config={"table_size": 101})
        assert make_picker(cluster, hosts, 0).pick(7, None) in hosts


# Server names by request


def connected(pool: Pool, cluster: ClusterRuntime) -> Connection:
    """A connection that a request of the pool has waited for, and given back."""
    waiting = Waiting(cluster)
    assert pool.request(waiting) is True  # type: ignore[arg-type]
    connection = Connection(pool)
    pool.connected(connection)  # type: ignore[arg-type]
    pool.release(connection)  # type: ignore[arg-type]
    return connection


def test_connections_of_one_server_name_serve_no_other() -> None:
    connections = Connections()
    cluster = runtime(endpoint(1), connections=connections)
    pool = cluster.hosts[0].pool
    kept = connected(pool.by_name("a"), cluster)
    assert pool.by_name("a").request(Waiting(cluster)) is kept  # type: ignore[arg-type]
    assert pool.by_name("b").request(Waiting(cluster)) is True  # type: ignore[arg-type]
    assert [one.server_name for one in connections.asked] == ["a", "b"]
    assert pool.connections() == 2


def test_server_names_that_requests_choose_stay_bounded_and_leave_nothing() -> None:
    cluster = runtime(endpoint(1))
    pool = cluster.hosts[0].pool
    made = [connected(pool.by_name(f"host-{number}"), cluster) for number in range(200)]
    assert [one.closed for one in made] == [True] * 136 + [False] * 64
    assert pool.connections() == 64
    cluster.update_hosts(())
    assert all(one.closed for one in made)
    assert pool.connections() == 0


def test_a_change_of_tls_retires_the_connections_of_every_server_name() -> None:
    cluster = runtime(endpoint(1))
    pool = cluster.hosts[0].pool
    named = pool.by_name("a")
    idle = connected(named, cluster)
    pool.retire()
    assert idle.closed
    assert not named.keeps(idle)  # type: ignore[arg-type]
