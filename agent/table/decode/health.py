"""Health of clusters: circuit breakers, outlier detection, active checks."""

from __future__ import annotations

from typing import Any

from agent.table.cluster import HealthCheck, OutlierDetection, Thresholds
from agent.table.decode.matchers import header_changes, int_range, percent, string_match
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
            enforcing_local_origin_success_rate=r.integer("enforcing_local_origin_success_rate", 100),
            enforcing_failure_percentage_local_origin=r.integer("enforcing_failure_percentage_local_origin"),
            max_ejection_time_jitter=r.seconds("max_ejection_time_jitter"),
            always_eject_one_host=r.boolean("always_eject_one_host"),
            uneject_by_health_check=r.boolean("successful_active_health_check_uneject_host", True),
        )


def health_checks(reader: Reader) -> tuple[HealthCheck, ...]:
    """health_checks of a cluster."""
    return tuple(_health_check(item) for item in reader.children("health_checks"))


def _health_check(reader: Reader) -> HealthCheck:
    with reader as r:
        # When checks run, not what they find: spread, pace after the first result, logging of results.
        r.without_effect(
            "initial_jitter", "interval_jitter", "interval_jitter_percent", "always_log_health_check_failures",
            "always_log_health_check_success", "reuse_connection",
        )  # fmt: skip
        values: dict[str, Any] = {}
        kind = r.which("health_checker")
        if kind == "http_health_check":
            values = _http(r.must(kind))
        elif kind == "tcp_health_check":
            values = _tcp(r.must(kind))
        elif kind == "grpc_health_check":
            r.fail(kind, "unsupported field")
        else:
            r.fail(kind, "unsupported field" if kind else "a kind of check is required")
        interval = r.seconds("interval")
        return HealthCheck(
            timeout=r.seconds("timeout"),
            interval=interval,
            unhealthy_threshold=r.integer("unhealthy_threshold"),
            healthy_threshold=r.integer("healthy_threshold"),
            no_traffic_interval=r.seconds("no_traffic_interval", 60.0),
            no_traffic_healthy_interval=r.seconds("no_traffic_healthy_interval"),
            unhealthy_interval=r.seconds("unhealthy_interval", interval),
            unhealthy_edge_interval=r.seconds("unhealthy_edge_interval"),
            healthy_edge_interval=r.seconds("healthy_edge_interval", interval),
            port=r.integer("alt_port"),
            **values,
        )


def _http(reader: Reader) -> dict[str, Any]:
    with reader as h:
        h.choice("codec_client_type", {"HTTP1": ""})
        for name in ("send", "receive"):
            if h.has(name):
                h.fail(name, "unsupported field")
        service = h.child("service_name_matcher")
        method = h.enum_name("method", h.take("method") or 1)
        return {
            "kind": "http",
            "path": h.text("path"),
            "host": h.text("host"),
            "method": method,
            "expected_statuses": tuple(int_range(item) for item in h.children("expected_statuses"))
            or ((200, 201),),
            "retriable_statuses": tuple(int_range(item) for item in h.children("retriable_statuses")),
            "request_headers": header_changes(h, "request"),
            "service_name": None if service is None else string_match(service),
        }


def _tcp(reader: Reader) -> dict[str, Any]:
    with reader as t:
        send = t.child("send")
        return {
            "kind": "tcp",
            "send": b"" if send is None else _payload(send),
            "receive": tuple(_payload(item) for item in t.children("receive")),
        }


def _payload(reader: Reader) -> bytes:
    with reader as p:
        if p.which("payload") == "binary":
            return bytes(p.take("binary") or b"")
        try:
            return bytes.fromhex(p.text("text"))
        except ValueError as error:
            p.fail("text", f"not hexadecimal: {error}")
