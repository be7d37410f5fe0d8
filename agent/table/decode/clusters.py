"""Clusters (envoy.config.cluster.v3)."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

from agent.table.cluster import Assignment, Cluster, Subsets, SubsetSelector, TransportMatch
from agent.table.decode.endpoints import assignment
from agent.table.decode.health import circuit_breakers, health_check, outlier_detection
from agent.table.decode.matchers import metadata, percent, socket_address
from agent.table.decode.message import Reader
from agent.table.decode.protocols import http2_options, upstream_http1_options
from agent.table.decode.tls import config_source, upstream_tls

_DISCOVERY = {
    "STATIC": "static",
    "STRICT_DNS": "strict_dns",
    "LOGICAL_DNS": "logical_dns",
    "EDS": "eds",
    "ORIGINAL_DST": "original_dst",
}
_POLICIES = {
    "ROUND_ROBIN": "round_robin",
    "LEAST_REQUEST": "least_request",
    "RANDOM": "random",
    "RING_HASH": "ring_hash",
    "MAGLEV": "maglev",
    "CLUSTER_PROVIDED": "cluster_provided",
    "LOAD_BALANCING_POLICY_CONFIG": "round_robin",
}
_FAMILIES = {
    "AUTO": "auto",
    "V4_ONLY": "v4_only",
    "V6_ONLY": "v6_only",
    "V4_PREFERRED": "v4_preferred",
    "ALL": "all",
}
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def cluster(reader: Reader) -> Cluster:
    """Cluster."""
    with reader as r:
        if r.which("cluster_discovery_type") == "cluster_type":
            r.fail("cluster_type", "unsupported field")
        discovery = r.choice("type", _DISCOVERY)
        endpoints = _endpoints(r, discovery)
        eds_name = _eds_name(r, discovery)
        breakers = circuit_breakers(r.child("circuit_breakers"))
        outlier = r.child("outlier_detection")
        r.without_effect("track_cluster_stats", "track_timeout_budgets")  # statistics that are not kept here
        # Hosts of ORIGINAL_DST go with their last connection, not some time after it.
        r.without_effect("cleanup_interval")
        values: dict[str, Any] = {}
        # Hosts that have gone are gone, as Envoy has it with this; without it they stay there while their checks pass.
        r.without_effect("ignore_health_on_host_removal")
        r.only("close_connections_on_host_health_failure", False)
        values.update(_balancing(r, discovery))
        values.update(_subsets(r))
        values.update(_protocol(r))
        values.update(_connections(r))
        values.update(_dns(r))
        values.update(_original_dst(r, discovery))
        return Cluster(
            name=r.text("name"),
            discovery=discovery,
            assignment=endpoints,
            eds_name=eds_name,
            alt_stat_name=r.text("alt_stat_name"),
            connect_timeout=r.seconds("connect_timeout", 5.0),
            default_thresholds=breakers[0],
            high_thresholds=breakers[1],
            health_checks=tuple(health_check(item) for item in r.children("health_checks")),
            outlier=None if outlier is None else outlier_detection(outlier),
            tls=upstream_tls(r.child("transport_socket")),
            transport_matches=tuple(
                _transport_match(item) for item in r.children("transport_socket_matches")
            ),
            buffer_limit=r.integer("per_connection_buffer_limit_bytes", 1 << 20),
            metadata=metadata(r.child("metadata")),
            **values,
        )


def _endpoints(r: Reader, discovery: str) -> Assignment | None:
    load = r.child("load_assignment")
    if discovery in {"eds", "original_dst"}:
        if load is not None:
            r.fail("load_assignment", f"not allowed for a cluster of type {discovery.upper()}")
        return None
    if load is None:
        return Assignment(r.text("name"))
    found = assignment(load, names_allowed=discovery != "static")
    if discovery == "logical_dns" and len(found.endpoints) != 1:
        r.fail("load_assignment", "a LOGICAL_DNS cluster must have a single endpoint")
    return found


def _eds_name(r: Reader, discovery: str) -> str:
    eds = r.child("eds_cluster_config")
    if eds is None:
        if discovery == "eds":
            r.fail("eds_cluster_config", "required for a cluster of type EDS")
        return ""
    if discovery != "eds":
        r.fail("eds_cluster_config", "only for a cluster of type EDS")
    with eds as e:
        if (source := e.child("eds_config")) is not None:
            config_source(source)
        return e.text("service_name") or r.text("name")


def _balancing(r: Reader, discovery: str) -> dict[str, Any]:
    values: dict[str, Any] = {"lb_policy": r.choice("lb_policy", _POLICIES)}
    lb_config = _common_balancing(r, values)
    if (least := r.child("least_request_lb_config")) is not None:
        with least as config:
            values["least_request_choices"] = _choices(config)
            _no_bias(config)
    if (robin := r.child("round_robin_lb_config")) is not None:
        with robin:
            pass
    if (ring := r.child("ring_hash_lb_config")) is not None:
        with ring as config:
            config.choice("hash_function", {"XX_HASH": ""})
            lb_config.update(_ring_sizes(config))
    if (maglev := r.child("maglev_lb_config")) is not None:
        with maglev as config:
            lb_config["table_size"] = _table_size(config)
    if (policy := r.child("load_balancing_policy")) is not None:
        values.update(_typed_policy(policy, lb_config))
    values["lb_config"] = lb_config
    if discovery == "original_dst" and values["lb_policy"] not in {"cluster_provided", "round_robin"}:
        r.fail("lb_policy", "an ORIGINAL_DST cluster provides its own")
    if discovery != "original_dst" and values["lb_policy"] == "cluster_provided":
        r.fail("lb_policy", "CLUSTER_PROVIDED is for ORIGINAL_DST clusters")
    return values


def _no_bias(config: Reader) -> None:
    if (bias := config.child("active_request_bias")) is not None:
        with bias as b:
            b.without_effect("runtime_key")  # layers with keys nobody knows are refused
            b.only("default_value", 1.0)


MOST_POINTS = 1 << 18
"""As agent/upstream/balancer/consistent: what a worker can compute anew at every change of endpoints."""
MOST_CHOICES = 100


def _ring_sizes(config: Reader) -> dict[str, int]:
    least, most = config.integer("minimum_ring_size", 1024), config.integer("maximum_ring_size", 8 << 20)
    if least > most:
        config.fail("minimum_ring_size", f"{least} is more than maximum_ring_size, {most}")
    if least > MOST_POINTS:
        config.fail("minimum_ring_size", f"at most {MOST_POINTS} points are supported")
    return {"minimum_ring_size": least, "maximum_ring_size": most}


def _table_size(config: Reader) -> int:
    """MaglevLbConfig.table_size: its rounds come past every slot only where it is prime."""
    size = config.integer("table_size", 65537)
    if size > MOST_POINTS:
        config.fail("table_size", f"at most {MOST_POINTS} slots are supported")
    if size < 2 or any(size % divisor == 0 for divisor in range(2, isqrt(size) + 1)):
        config.fail("table_size", f"must be a prime number, is {size}")
    return size


def _choices(config: Reader) -> int:
    """LeastRequestLbConfig.choice_count, drawn anew for each request."""
    count = config.integer("choice_count", 2)
    if count > MOST_CHOICES:
        config.fail("choice_count", f"at most {MOST_CHOICES} are supported")
    return max(2, count)


def _common_balancing(r: Reader, values: dict[str, Any]) -> dict[str, Any]:
    """Sets the panic threshold; returns what the balancers read."""
    common = r.child("common_lb_config")
    if common is None:
        return {}
    lb_config: dict[str, Any] = {}
    with common as c:
        # Updates are applied at once, in one swap; zone awareness needs a local cluster, which there is none of.
        c.without_effect("update_merge_window", "zone_aware_lb_config")
        values["panic_threshold"] = percent(c.child("healthy_panic_threshold"), 50.0)
        if (weighted := c.child("locality_weighted_lb_config")) is not None:
            with weighted:
                lb_config["locality_weighted"] = True
        c.only("ignore_new_hosts_until_first_hc", False)
        c.only("close_connections_on_host_set_change", False)
        if (hashing := c.child("consistent_hashing_lb_config")) is not None:
            with hashing as h:
                if h.boolean("use_hostname_for_hashing"):
                    lb_config["by_name"] = True
                h.only("hash_balance_factor", 0)
        return lb_config


_LB = "envoy.extensions.load_balancing_policies."


def _typed_policy(reader: Reader, lb_config: dict[str, Any]) -> dict[str, Any]:
    """LoadBalancingPolicy: the first policy of the list that is known."""
    with reader as r:
        first: dict[str, Any] | None = None
        for item in r.children("policies"):
            with item as policy, policy.must("typed_extension_config") as extension:
                extension.without_effect("name")  # the type decides
                typed: Any = extension.typed("typed_config") or extension.fail("typed_config", "required")
                found: dict[str, Any] = {}
                values = _policy(typed, found)
                if first is None:
                    first = values
                    lb_config.update(found)
        return first if first is not None else r.fail("policies", "at least one is required")


def _policy(typed: Reader, lb_config: dict[str, Any]) -> dict[str, Any]:
    kind = typed.type.removeprefix(_LB).partition(".")[0]
    names = {"round_robin", "least_request", "random", "ring_hash", "maglev", "cluster_provided"}
    if not typed.type.startswith(_LB) or kind not in names:
        typed.fail("", f"unsupported type {typed.type}")
    with typed as t:
        values: dict[str, Any] = {"lb_policy": kind}
        if (
            kind in {"round_robin", "least_request", "random"}
            and (locality := t.child("locality_lb_config")) is not None
        ):
            with locality as config:
                config.without_effect("zone_aware_lb_config")  # see common_lb_config
                if (weighted := config.child("locality_weighted_lb_config")) is not None:
                    with weighted:
                        lb_config["locality_weighted"] = True
        if kind == "least_request":
            values["least_request_choices"] = _choices(t)
            t.choice("selection_method", {"N_CHOICES": ""})
            t.only("enable_full_scan", False)
            _no_bias(t)
        if kind in {"ring_hash", "maglev"}:
            _typed_hashing(t, lb_config)
        if kind == "ring_hash":
            t.choice("hash_function", {"DEFAULT_HASH": "", "XX_HASH": ""})
            lb_config.update(_ring_sizes(t))
        if kind == "maglev":
            lb_config["table_size"] = _table_size(t)
        return values


def _typed_hashing(t: Reader, lb_config: dict[str, Any]) -> None:
    if t.type.endswith(".RingHash") and t.boolean("use_hostname_for_hashing"):
        lb_config["by_name"] = True
    if (hashing := t.child("consistent_hashing_lb_config")) is not None:
        with hashing as h:
            h.only("hash_balance_factor", 0)
            if h.boolean("use_hostname_for_hashing"):
                lb_config["by_name"] = True
    if (weighted := t.child("locality_weighted_lb_config")) is not None:
        with weighted:
            lb_config["locality_weighted"] = True


_FALLBACKS = {"NO_FALLBACK": "none", "ANY_ENDPOINT": "any", "DEFAULT_SUBSET": "default"}


def _subsets(r: Reader) -> dict[str, Any]:
    config = r.child("lb_subset_config")
    if config is None:
        return {}
    with config as c:
        found = Subsets(
            selectors=tuple(_selector(item) for item in c.children("subset_selectors")),
            fallback=c.choice("fallback_policy", _FALLBACKS),
            default=c.tree("default_subset"),
            list_as_any=c.boolean("list_as_any"),
            panic_any=c.boolean("panic_mode_any"),
        )
    return {"subsets": found if found.selectors else None}


def _selector(reader: Reader) -> SubsetSelector:
    with reader as r:
        fallback = r.choice("fallback_policy", {"NOT_DEFINED": "", **_FALLBACKS, "KEYS_SUBSET": "keys"})
        keys, fallback_keys = tuple(sorted(r.texts("keys"))), tuple(sorted(r.texts("fallback_keys_subset")))
        if fallback == "keys" and not (fallback_keys and set(fallback_keys) < set(keys)):
            r.fail("fallback_keys_subset", "must be a proper subset of the keys")
        return SubsetSelector(keys, fallback, fallback_keys)


def _protocol(r: Reader) -> dict[str, Any]:
    values: dict[str, Any] = {}
    r.choice("protocol_selection", {"USE_CONFIGURED_PROTOCOL": ""})
    values.update(_common_protocol(r.child("common_http_protocol_options")))
    values.update(upstream_http1_options(r.child("http_protocol_options")))
    if r.has("max_requests_per_connection"):
        values["max_requests_per_connection"] = r.integer("max_requests_per_connection")
    if (options := r.child("http2_protocol_options")) is not None:
        values["http2"] = http2_options(options)
        values["protocol"] = "http2"
    values.update(_upstream(r.child("upstream_http_protocol_options")))
    for name, item in r.entries("typed_extension_protocol_options"):
        typed = item.unpacked()
        if typed.type != _HTTP_OPTIONS:
            typed.fail("", f"unsupported type {typed.type} ({name})")
        values.update(_http_options(typed))
    return values


def _common_protocol(common: Reader | None) -> dict[str, Any]:
    if common is None:
        return {}
    with common as c:
        c.without_effect("headers_with_underscores_action")  # for requests from downstream
        values: dict[str, Any] = {
            "idle_timeout": c.seconds("idle_timeout", 3600.0),
            "max_connection_duration": c.seconds("max_connection_duration"),
            "max_headers_count": c.integer("max_headers_count", 100),
            "max_response_headers_kb": c.integer("max_response_headers_kb", 80),
            "max_stream_duration": c.seconds("max_stream_duration"),
        }
        if c.has("max_requests_per_connection"):
            values["max_requests_per_connection"] = c.integer("max_requests_per_connection")
        return values


def _upstream(options: Reader | None) -> dict[str, Any]:
    """UpstreamHttpProtocolOptions: server names by request."""
    if options is None:
        return {}
    with options as o:
        o.only("override_auto_sni_header", "", ":authority", "host")
        sni, judged = o.boolean("auto_sni"), o.boolean("auto_san_validation")
        if judged and not sni:
            o.fail("auto_san_validation", "is supported together with auto_sni only")
        return {"auto_sni": sni, "auto_san_validation": judged}


def _http_options(typed: Reader) -> dict[str, Any]:
    with typed as t:
        values = _common_protocol(t.child("common_http_protocol_options"))
        values.update(_upstream(t.child("upstream_http_protocol_options")))
        kind = t.which("upstream_protocol_options")
        if kind == "explicit_http_config":
            with t.must(kind) as explicit:
                version = explicit.which("protocol_config")
                if version == "http_protocol_options":
                    values.update(upstream_http1_options(explicit.must(version)))
                    values["protocol"] = "http1"
                elif version == "http2_protocol_options":
                    values["http2"] = http2_options(explicit.must(version))
                    values["protocol"] = "http2"
                else:
                    explicit.fail(version, "unsupported field" if version else "a protocol is required")
        elif kind == "use_downstream_protocol_config":
            with t.must(kind) as downstream:
                values.update(upstream_http1_options(downstream.child("http_protocol_options")))
                if (options := downstream.child("http2_protocol_options")) is not None:
                    values["http2"] = http2_options(options)
                values["protocol"] = "downstream"
        else:
            t.fail(kind, "unsupported field" if kind else "a protocol is required")
        return values


_KEEPALIVE = {"keepalive_probes": 127, "keepalive_time": 32767, "keepalive_interval": 32767}
"""What the kernel takes (tcp(7)): beyond these every connection of the cluster would fail."""


def _within(reader: Reader, name: str, most: int) -> int:
    value = reader.integer(name)
    if value > most:
        reader.fail(name, f"at most {most} is supported, is {value}")
    return value


def _connections(r: Reader) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if (bind := r.child("upstream_bind_config")) is not None:
        with bind as b:
            source = b.child("source_address")
            values["bind_source"] = "" if source is None else socket_address(source).host
            for extra in b.children("extra_source_addresses"):
                with extra as e, e.must("address") as address:
                    host = socket_address(address).host
                    if ":" not in host or values.get("bind_source_v6"):
                        e.fail("address", "only one extra source address, of IPv6, is supported")
                    values["bind_source_v6"] = host
            b.only("freebind", False)
    if (options := r.child("upstream_connection_options")) is not None:
        with options as o:
            o.only("set_local_interface_name_on_upstream_connections", False)
            if (keepalive := o.child("tcp_keepalive")) is not None:
                with keepalive as k:
                    values["tcp_keepalive"] = tuple(
                        _within(k, name, most) for name, most in _KEEPALIVE.items()
                    )
    r.only("connection_pool_per_downstream_connection", False)
    return values


def _dns(r: Reader) -> dict[str, Any]:
    failure: tuple[float, float] | None = None
    if (rate := r.child("dns_failure_refresh_rate")) is not None:
        with rate as f:
            base = f.seconds("base_interval")
            failure = base, f.seconds("max_interval", 10 * base)
            if failure[1] < base:
                f.fail("max_interval", "must not be shorter than base_interval")
    return {
        "dns_failure_refresh": failure,
        "dns_jitter": r.seconds("dns_jitter"),
        "dns_respect_ttl": r.boolean("respect_dns_ttl"),
        "dns_tcp": r.boolean("use_tcp_for_dns_lookups"),
        "wait_for_warm": r.boolean("wait_for_warm_on_init", True),
        "dns_refresh": r.seconds("dns_refresh_rate", 5.0),
        "dns_family": r.choice("dns_lookup_family", _FAMILIES),
    }


def _original_dst(r: Reader, discovery: str) -> dict[str, Any]:
    config = r.child("original_dst_lb_config")
    if config is None:
        return {}
    if discovery != "original_dst":
        r.fail("original_dst_lb_config", "only for ORIGINAL_DST clusters")
    with config as c:
        c.only("http_header_name", "", "x-envoy-original-dst-host")
        return {
            "use_http_header": c.boolean("use_http_header"),
            "upstream_port": c.integer("upstream_port_override"),
        }


def _transport_match(reader: Reader) -> TransportMatch:
    with reader as r:
        match: Mapping[str, Any] = r.tree("match")
        return TransportMatch(r.text("name"), match, upstream_tls(r.child("transport_socket")))
