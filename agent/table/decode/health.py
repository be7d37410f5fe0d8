"""Limits and health of clusters: circuit breakers, outlier detection, active checks."""

from __future__ import annotations

from typing import Any

from agent.table.cluster import HealthCheck, OutlierDetection, Thresholds
from agent.table.decode.matchers import header_options, int_range, modifiable, percent
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
        if r.integer("enforcing_local_origin_success_rate", 100) and r.boolean(
            "split_external_local_origin_errors"
        ):
            # Without the split Envoy does not use it either.
            r.fail(
                "enforcing_local_origin_success_rate",
                "only 0 is supported with split_external_local_origin_errors",
            )
        r.only("enforcing_failure_percentage_local_origin", 0)
        r.only("always_eject_one_host", False)
        if r.seconds("max_ejection_time_jitter"):
            r.fail("max_ejection_time_jitter", "unsupported field")
        base = r.seconds("base_ejection_time", 30.0)
        longest = r.seconds("max_ejection_time", 300.0)
        return OutlierDetection(
            unejected_by_checks=r.boolean("successful_active_health_check_uneject_host", True),
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


def health_check(reader: Reader) -> HealthCheck:
    """HealthCheck."""
    with reader as r:
        kind = r.which("health_checker")
        if kind == "http_health_check":
            values = _http_check(r.must(kind))
        elif kind == "tcp_health_check":
            values = _tcp_check(r.must(kind))
        else:
            r.fail(kind, "unsupported field")
        r.without_effect(
            "always_log_health_check_failures", "always_log_health_check_success"
        )  # there is no event log
        return HealthCheck(
            timeout=r.seconds("timeout"),
            interval=r.seconds("interval"),
            unhealthy_threshold=r.integer("unhealthy_threshold"),
            healthy_threshold=r.integer("healthy_threshold"),
            initial_jitter=r.seconds("initial_jitter"),
            interval_jitter=r.seconds("interval_jitter"),
            interval_jitter_percent=r.integer("interval_jitter_percent"),
            no_traffic_interval=r.seconds("no_traffic_interval", 60.0),
            no_traffic_healthy_interval=r.seconds("no_traffic_healthy_interval"),
            unhealthy_interval=r.seconds("unhealthy_interval"),
            unhealthy_edge_interval=r.seconds("unhealthy_edge_interval"),
            healthy_edge_interval=r.seconds("healthy_edge_interval"),
            reuse=r.boolean("reuse_connection", True),
            **values,
        )


def _http_check(reader: Reader) -> dict[str, Any]:
    with reader as r:
        r.choice("codec_client_type", {"HTTP1": ""})
        method = r.enum_name("method", r.take("method") or 0)
        if method in {"CONNECT"}:
            r.fail("method", "not a method for health checks")
        headers: list[tuple[bytes, bytes]] = []
        for option in header_options(r, "request_headers_to_add"):
            if "%" in option.value:
                r.fail("request_headers_to_add", "only constant values are supported")
            headers.append((option.name, option.value.encode()))
        removed = r.texts("request_headers_to_remove")
        for name in removed:
            if not modifiable(name):
                r.fail("request_headers_to_remove", ":-prefixed or host headers may not be removed")
        return {
            "kind": "http",
            "host": r.text("host"),
            "path": r.text("path").encode(),
            "method": (method if method != "METHOD_UNSPECIFIED" else "GET").encode(),
            "headers": tuple(headers),
            "removed": frozenset(name.lower().encode() for name in removed),
            "expected": tuple(int_range(item) for item in r.children("expected_statuses")) or ((200, 201),),
            "retriable": tuple(int_range(item) for item in r.children("retriable_statuses")),
        }


def _tcp_check(reader: Reader) -> dict[str, Any]:
    with reader as r:
        send = r.child("send")
        return {
            "kind": "tcp",
            "send": b"" if send is None else _payload(send),
            "receive": tuple(_payload(item) for item in r.children("receive")),
        }


def _payload(reader: Reader) -> bytes:
    with reader as r:
        if r.which("payload") == "text":
            try:
                return bytes.fromhex(r.text("text"))
            except ValueError:
                r.fail("text", "must be hexadecimal")
        return bytes(r.take("binary") or b"")
