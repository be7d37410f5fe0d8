"""Rate limit actions of routes and virtual hosts (envoy.config.route.v3.RateLimit), for local descriptors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.table.decode.matchers import header_matches, query_match
from agent.table.decode.message import Reader
from agent.table.filter_config import RateLimitActions


def rate_limits(reader: Reader, name: str) -> tuple[RateLimitActions, ...]:
    """A repeated RateLimit."""
    found: list[RateLimitActions] = []
    for item in reader.children(name):
        with item as r:
            r.only("apply_on_stream_done", False)
            r.without_effect("disable_key")  # a runtime key: layers with keys nobody knows are refused
            found.append(
                RateLimitActions(
                    tuple(_action(action) for action in r.children("actions")),
                    r.integer("stage"),
                )
            )
    return tuple(found)


def _action(reader: Reader) -> tuple[str, Mapping[str, Any]]:
    with reader as r:
        kind = r.which("action_specifier")
        if kind in {"source_cluster", "destination_cluster", "remote_address"}:
            with r.must(kind):
                return kind, {}
        if kind == "request_headers":
            with r.must(kind) as a:
                return kind, {
                    "name": a.text("header_name").lower().encode(),
                    "key": a.text("descriptor_key"),
                    "skip_if_absent": a.boolean("skip_if_absent"),
                }
        if kind == "generic_key":
            with r.must(kind) as a:
                return kind, {
                    "key": a.text("descriptor_key") or "generic_key",
                    "value": a.text("descriptor_value"),
                }
        if kind == "header_value_match":
            with r.must(kind) as a:
                return kind, {
                    "key": a.text("descriptor_key") or "header_match",
                    "value": a.text("descriptor_value"),
                    "expect": a.boolean("expect_match", True),
                    "headers": header_matches(a, "headers"),
                }
        if kind == "query_parameter_value_match":
            with r.must(kind) as a:
                return kind, {
                    "key": a.text("descriptor_key") or "query_match",
                    "value": a.text("descriptor_value"),
                    "expect": a.boolean("expect_match", True),
                    "query": tuple(query_match(item) for item in a.children("query_parameters")),
                }
        return r.fail(kind, "unsupported field" if kind else "an action is required")
