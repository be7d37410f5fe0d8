"""Network filters of a chain: those in front, and the terminal one (connection manager or TCP proxy)."""

from __future__ import annotations

from typing import Any, TypeAlias

from agent.table.decode.access_logs import access_logs
from agent.table.decode.endpoints import MOST_WEIGHT
from agent.table.decode.http_filters import token_bucket
from agent.table.decode.http_manager import http_manager
from agent.table.decode.matchers import data, metadata
from agent.table.decode.message import Reader
from agent.table.decode.rbac import network_rbac
from agent.table.filter_config import ConnectionLimit, NetworkRateLimit, SetFilterState
from agent.table.listener import FilterConfig, FixedAnswer, HttpManager, TcpProxy, WeightedTcp

Terminal: TypeAlias = HttpManager | TcpProxy | FixedAnswer

DESTINATION = "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%"
_NETWORK = "envoy.extensions.filters.network."


def network_filters(reader: Reader, name: str) -> tuple[tuple[FilterConfig, ...], Terminal]:
    """The filters in front and the terminal filter, which must be last."""
    found: list[FilterConfig] = []
    terminal: Terminal | None = None
    for item in reader.children(name):
        with item as r:
            filter_name = r.text("name")
            typed: Any = r.typed("typed_config") or r.fail("typed_config", "required")
            if terminal is not None:
                r.fail("", "a terminal filter must be the last of its chain")
            if typed.type == f"{_NETWORK}http_connection_manager.v3.HttpConnectionManager":
                terminal = http_manager(typed)
            elif typed.type == f"{_NETWORK}tcp_proxy.v3.TcpProxy":
                terminal = tcp_proxy(typed)
            elif typed.type == f"{_NETWORK}direct_response.v3.Config":
                with typed as t:
                    response = t.child("response")
                    terminal = FixedAnswer(b"" if response is None else data(response))
            elif typed.type == f"{_NETWORK}echo.v3.Echo":
                with typed:
                    terminal = FixedAnswer(None)
            elif typed.type == f"{_NETWORK}local_ratelimit.v3.LocalRateLimit":
                if (limit := _rate_limit(typed)) is not None:
                    found.append(FilterConfig(filter_name, "network_rate_limit", limit))
            elif typed.type == f"{_NETWORK}rbac.v3.RBAC":
                found.append(FilterConfig(filter_name, "network_rbac", network_rbac(typed)))
            elif typed.type == f"{_NETWORK}set_filter_state.v3.Config":
                found.append(FilterConfig(filter_name, "set_filter_state", _filter_state(typed)))
            elif typed.type == f"{_NETWORK}connection_limit.v3.ConnectionLimit":
                found.append(FilterConfig(filter_name, "connection_limit", _connection_limit(typed)))
            else:
                typed.fail("", f"unsupported network filter {typed.type}")
    if terminal is None:
        reader.fail(name, "the last filter must be a connection manager or a TCP proxy")
    return tuple(found), terminal


def _filter_state(reader: Reader) -> SetFilterState:
    """Only the destination's address can be noted. No other filter changes it, so it is read-only whatever it says."""
    keys: set[str] = set()
    with reader as r:
        for item in r.children("on_new_connection"):
            with item as value:
                value.without_effect("read_only", "skip_if_empty")
                value.only("factory_key", "", "envoy.string")
                value.only("shared_with_upstream", 0)
                key = value.text("object_key")
                with value.must("format_string") as text:
                    kind = text.which("format")
                    given = (
                        data(text.must(kind)).decode() if kind == "text_format_source" else text.text(kind)
                    )
                    if given != DESTINATION:
                        text.fail(kind, f"only {DESTINATION} is supported")
                if not key:
                    value.fail("object_key", "required")
                keys.add(key)
    return SetFilterState(frozenset(keys))


def _rate_limit(reader: Reader) -> NetworkRateLimit | None:
    with reader as r:
        enabled = True
        if (switch := r.child("runtime_enabled")) is not None:
            with switch as s:
                s.without_effect("runtime_key")  # layers with keys nobody knows are refused
                enabled = s.boolean("default_value")
        limit = NetworkRateLimit(r.text("stat_prefix"), token_bucket(r.must("token_bucket")))
        return limit if enabled else None


def _connection_limit(reader: Reader) -> ConnectionLimit:
    with reader as r:
        if (enabled := r.child("runtime_enabled")) is not None:
            with enabled as e:
                e.without_effect("runtime_key")  # layers with keys nobody knows are refused
                if not e.boolean("default_value"):
                    return ConnectionLimit(r.text("stat_prefix"), 1 << 62)
        return ConnectionLimit(r.text("stat_prefix"), r.integer("max_connections"), r.seconds("delay"))


def tcp_proxy(reader: Reader) -> TcpProxy:
    """TcpProxy."""
    with reader as r:
        kind = r.which("cluster_specifier")
        match = metadata(r.child("metadata_match")).get("envoy.lb", {})
        clusters: list[WeightedTcp] = []
        if kind == "cluster":
            clusters.append(WeightedTcp(r.text(kind), 1, match))
        elif kind == "weighted_clusters":
            with r.must(kind) as weighted:
                for item in weighted.children("clusters"):
                    with item as c:
                        own = metadata(c.child("metadata_match")).get("envoy.lb", {})
                        clusters.append(WeightedTcp(c.text("name"), c.integer("weight"), {**match, **own}))
                total = sum(found.weight for found in clusters)
                if not 0 < total <= MOST_WEIGHT:
                    weighted.fail("clusters", f"the weights must add up to 1 to {MOST_WEIGHT}, not {total}")
        else:
            r.fail(kind, "unsupported field" if kind else "cluster or weighted_clusters is required")
        by_source = False
        for item in r.children("hash_policy"):
            with item as policy:
                if policy.which("policy_specifier") != "source_ip":
                    policy.fail("", "only source_ip is supported")
                with policy.must("source_ip"):
                    by_source = True
        r.only("flush_access_log_on_connected", False)
        if (options := r.child("access_log_options")) is not None:
            with options as o:
                o.only("flush_access_log_on_connected", False)
        r.choice("upstream_connect_mode", {"IMMEDIATE": ""})
        return TcpProxy(
            stat_prefix=r.text("stat_prefix"),
            clusters=tuple(clusters),
            idle_timeout=r.seconds("idle_timeout", 3600.0),
            max_downstream_connection_duration=r.seconds("max_downstream_connection_duration"),
            max_connect_attempts=r.integer("max_connect_attempts", 1),
            access_logs=access_logs(r, "access_log"),
            hash_source_ip=by_source,
        )
