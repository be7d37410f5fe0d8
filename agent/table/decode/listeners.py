"""Listeners and filter chains (envoy.config.listener.v3)."""

from __future__ import annotations

from typing import Any

from agent.table.decode.access_logs import access_logs
from agent.table.decode.matchers import ip_only, metadata, networks
from agent.table.decode.message import Reader
from agent.table.decode.network_filters import network_filters
from agent.table.decode.tls import downstream_tls
from agent.table.filter_config import SetFilterState
from agent.table.listener import Address, ChainMatch, Direction, FilterChain, Listener

_DIRECTIONS = {"UNSPECIFIED": "unspecified", "INBOUND": "inbound", "OUTBOUND": "outbound"}
_SOURCES = {"ANY": "any", "SAME_IP_OR_LOOPBACK": "same_ip_or_loopback", "EXTERNAL": "external"}
_FILTERS = "envoy.extensions.filters.listener."


MOST_BACKLOG = 0x7FFFFFFF
"""What listen(2) takes; the kernel lowers it to net.core.somaxconn."""


def listener(reader: Reader) -> Listener:
    """Listener."""
    with reader as r:
        r.choice("drain_type", {"DEFAULT": "", "MODIFY_ONLY": ""})  # all listeners drain alike here
        # How the kernel spreads connections, not what happens to them: every worker has its own socket.
        r.without_effect("enable_reuse_port", "reuse_port", "connection_balance_config")
        r.without_effect(
            "max_connections_to_accept_per_socket_event"
        )  # the reactor's turns are bounded in their own way
        r.only("enable_mptcp", False)
        r.without_effect("ignore_global_conn_limit", "bypass_overload_manager")  # there are no such limits
        r.only("freebind", False)
        inspectors = _listener_filters(r)
        deprecated = r.child("deprecated_v1")
        bind = r.boolean("bind_to_port", True)
        if deprecated is not None:
            with deprecated as d:
                bind = bind and d.boolean("bind_to_port", True)
        address = r.child("address")
        if address is None:
            r.fail("address", "required")
        chains = tuple(filter_chain(item) for item in r.children("filter_chains"))
        default = r.child("default_filter_chain")
        found = Listener(
            name=r.text("name"),
            address=ip_only(address),
            additional_addresses=_more_addresses(r),
            bind=bind,
            use_original_dst=r.boolean("use_original_dst"),
            inspection_timeout=r.seconds("listener_filters_timeout", 15.0),
            continue_on_inspection_timeout=r.boolean("continue_on_listener_filters_timeout"),
            direction=Direction(r.choice("traffic_direction", _DIRECTIONS)),
            chains=chains,
            default_chain=None if default is None else filter_chain(default),
            access_logs=access_logs(r, "access_log"),
            backlog=min(r.integer("tcp_backlog_size", 4096), MOST_BACKLOG),
            buffer_limit=r.integer("per_connection_buffer_limit_bytes", 1 << 20),
            transparent=r.boolean("transparent"),
            stat_prefix=r.text("stat_prefix"),
            metadata=metadata(r.child("metadata")),
            **inspectors,
        )
        if not chains and found.default_chain is None:
            r.fail("filter_chains", "no filter chains specified")
        _check_matches(r, found)
        return found


def _more_addresses(r: Reader) -> tuple[Address, ...]:
    found: list[Address] = []
    for item in r.children("additional_addresses"):
        with item as more:
            found.append(ip_only(more.must("address")))
    return tuple(found)


def _check_matches(reader: Reader, listener: Listener) -> None:
    seen: dict[ChainMatch, int] = {}
    for position, chain in enumerate(listener.chains):
        if chain.match in seen:
            reader.fail(
                f"filter_chains[{position}].filter_chain_match",
                f"multiple filter chains with the same matching rules: see filter_chains[{seen[chain.match]}]",
            )
        seen[chain.match] = position


def _listener_filters(r: Reader) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in r.children("listener_filters"):
        with item as listener_filter:
            listener_filter.without_effect("name")  # the type decides
            typed: Any = listener_filter.typed("typed_config")
            if typed is None:
                listener_filter.fail("typed_config", "required")
            disabled_on = listener_filter.child("filter_disabled")
            if typed.type == f"{_FILTERS}original_dst.v3.OriginalDst":
                with typed:
                    found["original_dst"] = True
            elif typed.type == f"{_FILTERS}tls_inspector.v3.TlsInspector":
                with typed as t:
                    t.only("enable_ja3_fingerprinting", False)
                    t.only("enable_ja4_fingerprinting", False)
                    t.without_effect("initial_read_buffer_size")  # how Envoy reads
                    t.only("max_client_hello_size", 16384)
                    t.only("close_connection_on_client_hello_parsing_errors", False)
                found["tls_inspector"] = True
            elif typed.type == f"{_FILTERS}proxy_protocol.v3.ProxyProtocol":
                with typed as t:
                    optional = t.boolean("allow_requests_without_proxy_protocol")
                found["proxy_protocol"] = "optional" if optional else "required"
            elif typed.type == f"{_FILTERS}http_inspector.v3.HttpInspector":
                with typed:
                    found["http_inspector"] = True
            else:
                typed.fail("", f"unsupported listener filter {typed.type}")
            if disabled_on is not None:
                kind = typed.type.rpartition(".")[2]
                found.setdefault("inspector_exceptions", []).append((kind, _ports(disabled_on)))
    exceptions = found.get("inspector_exceptions")
    if exceptions:
        found["inspector_exceptions"] = tuple(exceptions)
    return found


def _ports(reader: Reader) -> tuple[tuple[int, int], ...]:
    """ListenerFilterChainMatchPredicate over destination ports: [start, end) ranges where the filter is off."""
    with reader as r:
        kind = r.which("rule")
        if kind == "destination_port_range":
            with r.must(kind) as ports:
                return ((ports.integer("start"), ports.integer("end")),)
        if kind == "or_match":
            with r.must(kind) as group:
                return tuple(ports for item in group.children("rules") for ports in _ports(item))
        return r.fail(kind, "unsupported field")


def filter_chain(reader: Reader) -> FilterChain:
    """FilterChain."""
    with reader as r:
        r.only("use_proxy_proto", False)
        match = r.child("filter_chain_match")
        filters, terminal = network_filters(r, "filters")
        return FilterChain(
            name=r.text("name"),
            match=ChainMatch() if match is None else _chain_match(match),
            terminal=terminal,
            network_filters=filters,
            filter_state=frozenset(
                key for one in filters if isinstance(one.value, SetFilterState) for key in one.value.keys
            ),
            tls=downstream_tls(r.child("transport_socket")),
            handshake_timeout=r.seconds("transport_socket_connect_timeout", 15.0),
            metadata=metadata(r.child("metadata")),
        )


def _chain_match(reader: Reader) -> ChainMatch:
    with reader as r:
        for name in r.texts("server_names"):
            if "*" in name and not name.startswith("*.") and name != "*":
                r.fail("server_names", f"partial wildcards are not supported: {name}")
        return ChainMatch(
            destination_port=r.optional_integer("destination_port"),
            prefix_ranges=networks(r, "prefix_ranges"),
            direct_source_ranges=networks(r, "direct_source_prefix_ranges"),
            source_type=r.choice("source_type", _SOURCES),
            source_ranges=networks(r, "source_prefix_ranges"),
            source_ports=tuple(r.take("source_ports") or ()),
            server_names=tuple(name.lower() for name in r.texts("server_names")),
            transport_protocol=r.text("transport_protocol"),
            application_protocols=r.texts("application_protocols"),
        )
