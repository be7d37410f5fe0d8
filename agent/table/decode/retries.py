"""Retry policies (envoy.config.route.v3.RetryPolicy)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from agent.table.decode.matchers import header_matches, metadata
from agent.table.decode.message import Reader
from agent.table.route import RetryPolicy

RETRY_ON = frozenset(
    [
        "5xx",
        "gateway-error",
        "reset",
        "reset-before-request",
        "connect-failure",
        "envoy-ratelimited",
        "retriable-4xx",
        "refused-stream",
        "retriable-status-codes",
        "retriable-headers",
        "http3-post-connect-failure",
        "cancelled",
        "deadline-exceeded",
        "internal",
        "resource-exhausted",
        "unavailable",
    ]
)

_RETRY = "envoy.extensions.retry."


def retry_policy(reader: Reader | None) -> RetryPolicy | None:
    """RetryPolicy; retry_on names that Envoy does not know are passed over, as Envoy does."""
    if reader is None:
        return None
    with reader as r:
        names = {name.strip() for name in r.text("retry_on").split(",")}
        base, maximum = 0.025, None
        if (back_off := r.child("retry_back_off")) is not None:
            with back_off as b:
                base, maximum = b.seconds("base_interval", 0.025), b.optional_seconds("max_interval")
                if maximum is not None and maximum < base:
                    b.fail("max_interval", "must not be shorter than base_interval")
                base = max(base, 0.001)
        return RetryPolicy(
            on=frozenset(names & RETRY_ON),
            attempts=r.integer("num_retries", 1),
            per_try_timeout=r.seconds("per_try_timeout"),
            per_try_idle_timeout=r.seconds("per_try_idle_timeout"),
            statuses=frozenset(r.take("retriable_status_codes") or ()),
            retriable_headers=header_matches(r, "retriable_headers"),
            retriable_request_headers=header_matches(r, "retriable_request_headers"),
            base_interval=base,
            max_interval=math.ceil(base * 10 * 1e9) / 1e9 if maximum is None else maximum,
            host_selection_attempts=max(1, r.integer("host_selection_retry_max_attempts", 1)),
            previous_priorities=_priorities(r),
            **_predicates(r),
            **_rate_limited(r),
        )


def _predicates(r: Reader) -> dict[str, Any]:
    found: dict[str, Any] = {}
    omitted: list[Mapping[str, Any]] = []
    for item in r.children("retry_host_predicate"):
        with item as predicate:
            predicate.without_effect("name")  # the type decides
            typed: Any = predicate.typed("typed_config") or predicate.fail("typed_config", "required")
            with typed as t:
                kind = t.type.removeprefix(f"{_RETRY}host.").partition(".")[0]
                if kind == "previous_hosts":
                    found["previous_hosts"] = True
                elif kind == "omit_canary_hosts":
                    found["omit_canaries"] = True
                elif kind == "omit_host_metadata":
                    omitted.append(metadata(t.child("metadata_match")).get("envoy.lb", {}))
                else:
                    t.fail("", f"unsupported type {t.type}")
    found["omit_metadata"] = tuple(omitted)
    return found


def _priorities(r: Reader) -> int:
    chosen = r.child("retry_priority")
    if chosen is None:
        return 0
    with chosen as c:
        c.without_effect("name")  # the type decides
        typed: Any = c.typed("typed_config") or c.fail("typed_config", "required")
        with typed as t:
            if not t.type.startswith(f"{_RETRY}priority.previous_priorities."):
                t.fail("", f"unsupported type {t.type}")
            return int(t.integer("update_frequency"))


def _rate_limited(r: Reader) -> dict[str, Any]:
    limited = r.child("rate_limited_retry_back_off")
    if limited is None:
        return {}
    headers: list[tuple[bytes, bool]] = []
    with limited as back_off:
        for item in back_off.children("reset_headers"):
            with item as h:
                form = h.choice("format", {"SECONDS": "", "UNIX_TIMESTAMP": "time"})
                headers.append((h.text("name").lower().encode(), bool(form)))
        return {"reset_headers": tuple(headers), "max_reset": back_off.seconds("max_interval", 300.0)}
