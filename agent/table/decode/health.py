"""Limits and passive health of clusters: circuit breakers and outlier detection."""

from __future__ import annotations

from agent.table.cluster import OutlierDetection, Thresholds
from agent.table.decode.matchers import percent
from agent.table.decode.message import Reader


def circuit_breakers(reader: Reader | None) -> tuple[Thresholds, Thresholds]:
    """CircuitBreakers: thresholds of the default and of the high priority."""
    default, high = Thresholds(), Thresholds()
    if reader is None:
        return default, high
    with reader as r:
        for item in r.children("thresholds"):
            with item as t:
                priority = t.choice("priority", {"DEFAULT": "default", "HIGH": "high"})
                found = _thresholds(t)
                if priority == "high":
                    high = found
                else:
                    default = found
        per_host = 0
        for item in r.children("per_host_thresholds"):
            with item as t:
                t.choice("priority", {"DEFAULT": "default"})
                per_host = t.integer("max_connections")
        if per_host:
            r.fail("per_host_thresholds", "unsupported field")
        return default, high


def _thresholds(t: Reader) -> Thresholds:
    t.without_effect(
        "track_remaining", "max_connection_pools"
    )  # statistics; pools are never made without bound here
    budget: float | None = None
    minimum = 3
    if (given := t.child("retry_budget")) is not None:
        with given as b:
            budget, minimum = percent(b.child("budget_percent"), 20.0), b.integer("min_retry_concurrency", 3)
    return Thresholds(
        max_connections=t.integer("max_connections", 1024),
        max_pending_requests=t.integer("max_pending_requests", 1024),
        max_requests=t.integer("max_requests", 1024),
        max_retries=t.integer("max_retries", 3),
        retry_budget_percent=budget,
        retry_budget_min=minimum,
    )


def outlier_detection(reader: Reader) -> OutlierDetection:
    """OutlierDetection."""
    with reader as r:
        # There are no active health checks; local failures count as consecutive ones only.
        r.without_effect("successful_active_health_check_uneject_host", "enforcing_local_origin_success_rate")
        r.only("enforcing_failure_percentage_local_origin", 0)
        r.only("always_eject_one_host", False)
        if r.seconds("max_ejection_time_jitter"):
            r.fail("max_ejection_time_jitter", "unsupported field")
        base = r.seconds("base_ejection_time", 30.0)
        longest = r.seconds("max_ejection_time", 300.0)
        return OutlierDetection(
            consecutive_5xx=r.integer("consecutive_5xx", 5),
            enforcing_consecutive_5xx=r.integer("enforcing_consecutive_5xx", 100),
            consecutive_gateway_failure=r.integer("consecutive_gateway_failure", 5),
            enforcing_consecutive_gateway_failure=r.integer("enforcing_consecutive_gateway_failure", 0),
            consecutive_local_origin_failure=r.integer("consecutive_local_origin_failure", 5),
            enforcing_consecutive_local_origin_failure=r.integer(
                "enforcing_consecutive_local_origin_failure", 100
            ),
            split_external_local_origin_errors=r.boolean("split_external_local_origin_errors"),
            interval=r.seconds("interval", 10.0),
            base_ejection_time=base,
            max_ejection_time=max(longest, base),
            max_ejection_percent=r.integer("max_ejection_percent", 10),
            enforcing_success_rate=r.integer("enforcing_success_rate", 100),
            success_rate_minimum_hosts=r.integer("success_rate_minimum_hosts", 5),
            success_rate_request_volume=r.integer("success_rate_request_volume", 100),
            success_rate_stdev_factor=r.integer("success_rate_stdev_factor", 1900),
            failure_percentage_threshold=r.integer("failure_percentage_threshold", 85),
            enforcing_failure_percentage=r.integer("enforcing_failure_percentage", 0),
            failure_percentage_minimum_hosts=r.integer("failure_percentage_minimum_hosts", 5),
            failure_percentage_request_volume=r.integer("failure_percentage_request_volume", 50),
        )
