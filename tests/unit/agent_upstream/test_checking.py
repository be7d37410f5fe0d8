"""Active health checks: the first result counts at once, then the thresholds decide."""

from __future__ import annotations

from agent.table.cluster import HealthCheck
from agent.upstream.checking import CheckState

CONFIG = HealthCheck(
    "http", 1.0, 5.0, unhealthy_threshold=2, healthy_threshold=3, unhealthy_interval=2.0, unhealthy_edge_interval=0.5
)  # fmt: skip


def test_the_first_success_makes_a_host_healthy() -> None:
    state = CheckState(CONFIG)
    assert not state.healthy
    assert state.succeeded() and state.healthy


def test_after_a_first_failure_it_takes_the_threshold_to_be_healthy() -> None:
    state = CheckState(CONFIG)
    assert not state.failed()
    assert [state.succeeded() for _ in range(3)] == [False, False, True]


def test_a_network_failure_counts_and_an_answer_decides_at_once() -> None:
    state = CheckState(CONFIG)
    state.succeeded()
    assert not state.failed() and state.healthy
    assert state.failed() and not state.healthy
    for _ in range(3):
        state.succeeded()
    assert state.failed(at_once=True)


def test_intervals_follow_health_edges_and_traffic() -> None:
    state = CheckState(CONFIG)
    assert state.pause(traffic=False, changed=False, random=0) == 60.0
    state.succeeded()
    assert state.pause(traffic=True, changed=True, random=0) == 5.0
    state.failed(at_once=True)
    assert state.pause(traffic=True, changed=True, random=0) == 0.5
    assert state.pause(traffic=True, changed=False, random=0) == 2.0
