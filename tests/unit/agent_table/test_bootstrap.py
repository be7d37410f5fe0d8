"""A bootstrap becomes a table; what cannot be used is refused with the exact path, never ignored."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.filters.step import NO_STEPS
from agent.routing.compile import compile_routes
from agent.table.bootstrap import Bootstrap, load
from agent.table.errors import ConfigError
from agent.table.listener import HttpManager, TcpProxy

_TYPE = "type.googleapis.com/envoy."
_HCM = "static_resources.listeners[0].filter_chains[0].filters[0].typed_config"
_ROUTE = f"{_HCM}.route_config.virtual_hosts[0].routes[0]"
_ORIGINAL_SRC = f"{_TYPE}extensions.filters.listener.original_src.v3.OriginalSrc"
_CLUSTER = "static_resources.clusters[0]"

PLAIN: dict[str, Any] = yaml.safe_load("""
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 15000}}}
node: {id: node-1, cluster: c, locality: {region: eu, zone: eu-1}}
static_resources:
  listeners:
  - name: web
    address: {socket_address: {address: 127.0.0.1, port_value: 8080}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
          route_config:
            name: local
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {prefix: /}
                route: {cluster: backend}
          http_filters:
          - name: fault
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault}
          - name: router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: backend
    type: STATIC
    load_assignment:
      cluster_name: backend
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 9000}}}
""")


def changed(path: str, value: Any) -> str:
    """The plain bootstrap with one place set (`a.b[0].c`); a value of None takes it away."""
    tree = copy.deepcopy(PLAIN)
    node: Any = tree
    steps: list[str | int] = []
    for part in path.split("."):
        name, *positions = part.replace("]", "").split("[")
        steps += [name, *map(int, positions)]
    for step in steps[:-1]:
        node = node.setdefault(step, {}) if isinstance(step, str) else node[step]
    if value is None:
        del node[steps[-1]]
    else:
        node[steps[-1]] = value
    return yaml.safe_dump(tree)


def manager(bootstrap: Bootstrap) -> HttpManager:
    """The one connection manager."""
    terminal = bootstrap.table.listeners["web"].chains[0].terminal
    assert isinstance(terminal, HttpManager)
    return terminal


def test_a_plain_bootstrap_is_read_with_envoys_defaults() -> None:
    bootstrap = load(yaml.safe_dump(PLAIN))
    assert bootstrap.admin is not None and bootstrap.admin.port == 15000
    assert (bootstrap.node.id, bootstrap.node.cluster, bootstrap.node.region) == ("node-1", "c", "eu")
    http = manager(bootstrap)
    assert (http.stream_idle_timeout, http.idle_timeout, http.max_headers_count) == (300.0, 3600.0, 100)
    assert [(f.name, f.kind) for f in http.filters] == [("fault", "fault")]
    cluster = bootstrap.table.clusters["backend"]
    assert (cluster.connect_timeout, cluster.lb_policy, cluster.default_thresholds.max_retries) == (
        5.0,
        "round_robin",
        3,
    )
    assert cluster.assignment is not None and cluster.assignment.endpoints[0].address.port == 9000


def test_json_and_camel_case_names_are_read_too() -> None:
    text = '{"staticResources": {"clusters": [{"name": "c", "type": "STATIC", "connectTimeout": "0.25s"}]}}'
    assert load(text).table.clusters["c"].connect_timeout == 0.25


@pytest.mark.parametrize(
    ("path", "value", "where", "reason"),
    [
        # Unknown names.
        ("static_resources.listeners[0].nam", "x", "static_resources.listeners[0].nam", "did you mean name"),
        (f"{_HCM}.stat_prefx", "x", f"{_HCM}.stat_prefx", "did you mean stat_prefix"),
        (f"{_ROUTE}.route.clusterr", "x", f"{_ROUTE}.route.clusterr", "unknown field"),
        # Wrong shapes and values.
        ("static_resources.listeners[0].name", 5, "static_resources.listeners[0].name", "a string is expected"),
        ("static_resources.clusters", {}, "static_resources.clusters", "a list is expected"),
        (f"{_CLUSTER}.type", "NOWHERE", f"{_CLUSTER}.type", "Invalid enum value"),
        (f"{_CLUSTER}.connect_timeout", "5", f"{_CLUSTER}.connect_timeout", "must end with"),
        (f"{_CLUSTER}.connect_timeout", "0s", f"{_CLUSTER}.connect_timeout", "greater than 0s"),
        (f"{_CLUSTER}.name", "", f"{_CLUSTER}.name", "empty"),
        (f"{_HCM}.stat_prefix", "", f"{_HCM}.stat_prefix", "empty"),
        (f"{_ROUTE}.match", {"safe_regex": {"regex": "("}}, f"{_ROUTE}.match.safe_regex.regex", "RE2"),
        (f"{_ROUTE}.match", {}, f"{_ROUTE}.match", "is required"),
        # Known, but not supported.
        ("dynamic_resources", {"ads_config": {"api_type": "GRPC"}}, "dynamic_resources", "unsupported"),
        ("stats_sinks", [{"name": "s"}], "stats_sinks", "unsupported"),
        (f"{_HCM}.codec_type", "HTTP3", f"{_HCM}.codec_type", "unsupported value HTTP3"),
        (f"{_HCM}.codec_type", "HTTP2", f"{_HCM}.codec_type", "unsupported value HTTP2"),
        (f"{_HCM}.route_config.vhds", {"config_source": {"ads": {}}}, f"{_HCM}.route_config.vhds", "unsupported"),
        (f"{_ROUTE}.route.hedge_policy", {}, f"{_ROUTE}.route.hedge_policy", "unsupported"),
        (
            f"{_HCM}.http_filters[0].typed_config",
            {"@type": _TYPE + "extensions.filters.http.lua.v3.Lua"},
            f"{_HCM}.http_filters[0].typed_config",
            "unsupported filter",
        ),
        (
            f"{_HCM}.http_filters[0].typed_config",
            {
                "@type": _TYPE + "extensions.filters.http.fault.v3.HTTPFault",
                "response_rate_limit": {"fixed_limit": {"limit_kbps": 1}},
            },
            f"{_HCM}.http_filters[0].typed_config.response_rate_limit",
            "unsupported",
        ),
        (
            f"{_HCM}.http_filters[0].typed_config",
            {
                "@type": _TYPE + "extensions.filters.http.rbac.v3.RBAC",
                "rules": {
                    "policies": {
                        "p": {"permissions": [{"any": True}], "principals": [{"any": True}], "condition": {}}
                    }
                },
            },
            f'{_HCM}.http_filters[0].typed_config.rules.policies["p"].condition',
            "unsupported",
        ),
        (f"{_CLUSTER}.lrs_server", {"self": {}}, f"{_CLUSTER}.lrs_server", "unsupported"),
        (f"{_CLUSTER}.lb_policy", "CLUSTER_PROVIDED", f"{_CLUSTER}.lb_policy", "ORIGINAL_DST"),
        (
            "static_resources.listeners[0].listener_filters",
            [{"name": "p", "typed_config": {"@type": _ORIGINAL_SRC}}],
            "static_resources.listeners[0].listener_filters[0].typed_config",
            "unsupported listener filter",
        ),
        # What does not fit together.
        (f"{_ROUTE}.route.cluster", "nowhere", f"{_ROUTE}.route.cluster", "unknown cluster 'nowhere'"),
        (f"{_HCM}.route_config.virtual_hosts[0].domains", ["a", "A"], "virtual_hosts[0].domains[1]", "duplicate"),
        (f"{_HCM}.http_filters", [], f"{_HCM}.http_filters", "router"),
        ("layered_runtime", {"layers": [{"name": "s", "static_layer": {"a.key": 1}}]}, "layered_runtime", "a.key"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_its_path(path: str, value: Any, where: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(changed(path, value))
    assert where in caught.value.path
    assert reason in caught.value.reason


def test_a_field_with_its_default_value_passes() -> None:
    load(changed(f"{_HCM}.http_protocol_options", {"override_stream_error_on_invalid_http_message": False}))
    load(changed(f"{_ROUTE}.route.internal_redirect_action", "PASS_THROUGH_INTERNAL_REDIRECT"))


def test_an_opaque_chain_is_read() -> None:
    tcp = {
        "@type": _TYPE + "extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "tcp",
        "weighted_clusters": {"clusters": [{"name": "backend", "weight": 3}, {"name": "other", "weight": 1}]},
        "idle_timeout": "0s",
    }
    limit = {
        "@type": _TYPE + "extensions.filters.network.connection_limit.v3.ConnectionLimit",
        "stat_prefix": "x",
        "max_connections": 2,
        "delay": "0.5s",
    }
    filters = [{"name": "limit", "typed_config": limit}, {"name": "tcp", "typed_config": tcp}]
    chain = (
        load(changed("static_resources.listeners[0].filter_chains[0].filters", filters))
        .table.listeners["web"]
        .chains[0]
    )
    assert isinstance(chain.terminal, TcpProxy)
    assert [(c.cluster, c.weight) for c in chain.terminal.clusters] == [("backend", 3), ("other", 1)]
    assert chain.terminal.idle_timeout == 0.0
    assert [f.kind for f in chain.network_filters] == ["connection_limit"]


def test_tls_contexts_name_their_secrets_and_never_show_keys() -> None:
    tls = {
        "name": "tls",
        "typed_config": {
            "@type": _TYPE + "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": True,
            "common_tls_context": {
                "alpn_protocols": ["http/1.1"],
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"},
                "tls_certificates": [
                    {
                        "certificate_chain": {"filename": "chain.pem"},
                        "private_key": {"inline_string": "very-secret"},
                    }
                ],
                "validation_context": {
                    "trusted_ca": {"filename": "ca.pem"},
                    "match_typed_subject_alt_names": [
                        {"san_type": "URI", "matcher": {"exact": "spiffe://cluster.local/ns/a/sa/b"}}
                    ],
                },
            },
        },
    }
    bootstrap = load(changed("static_resources.listeners[0].filter_chains[0].transport_socket", tls))
    settings = bootstrap.table.listeners["web"].chains[0].tls
    assert settings is not None and settings.require_client_certificate
    assert (settings.min_version, settings.max_version, settings.alpn) == (
        "TLSv1.3",
        "TLSv1.3",
        ("http/1.1",),
    )
    assert settings.validation is not None and settings.validation.sans[0].kind == "uri"
    assert "very-secret" not in repr(bootstrap)


def test_a_direct_response_from_a_file_is_read_when_the_table_is_built(tmp_path: Path) -> None:
    (tmp_path / "page").write_text("hello")
    direct = {"status": 200, "body": {"filename": str(tmp_path / "page")}}
    text = changed(f"{_ROUTE}", {"match": {"prefix": "/"}, "direct_response": direct})
    http = manager(load(text))
    assert not isinstance(http.route, str)
    action = http.route.virtual_hosts[0].routes[0].action
    assert getattr(action, "body", b"") == b"hello"
    direct["body"] = {"filename": str(tmp_path / "missing")}
    with pytest.raises(ConfigError, match="cannot be read"):
        load(changed(f"{_ROUTE}", {"match": {"prefix": "/"}, "direct_response": direct}))


def test_a_static_runtime_layer_sets_shares_and_unknown_keys_are_refused() -> None:
    tree = yaml.safe_load(
        changed(
            f"{_ROUTE}.match.runtime_fraction", {"runtime_key": "split", "default_value": {"numerator": 1}}
        )
    )
    tree["layered_runtime"] = {"layers": [{"name": "s", "static_layer": {"split": 25}}]}
    http = manager(load(yaml.safe_dump(tree)))
    assert not isinstance(http.route, str)
    fraction = http.route.virtual_hosts[0].routes[0].match.fraction
    assert fraction is not None and (fraction.numerator, fraction.denominator) == (25, 100)


@pytest.mark.parametrize("value", ["%NOPE%", "50%", "%REQ(x%"])
def test_an_operator_that_nobody_knows_is_refused_with_its_route(value: str) -> None:
    option = {"header": {"key": "x", "value": value}}
    http = manager(load(changed(f"{_ROUTE}.request_headers_to_add", [option])))
    assert not isinstance(http.route, str)
    with pytest.raises(ConfigError) as caught:
        compile_routes(http.route, lambda scope: NO_STEPS)
    assert caught.value.path == "route_config[local].virtual_hosts[0].routes[0]"


def test_a_replacement_without_its_group_and_a_negative_time_are_refused() -> None:
    rewrite = {"pattern": {"regex": "a"}, "substitution": "\\3"}
    with pytest.raises(ConfigError, match="group 3"):
        load(changed(f"{_ROUTE}.route.regex_rewrite", rewrite))
    with pytest.raises(ConfigError, match="must not be negative"):
        load(changed(f"{_ROUTE}.route.timeout", "-1s"))


def test_plain_yaml_keys_are_text_and_fractions_too() -> None:
    """As in Envoy's own reading: `on`, `n` and `1` are names, and 1.5 inside a Struct is the text that was written."""
    text = yaml.safe_dump(PLAIN).replace("node-1", "node-1\n  metadata: {on: y, n: 2, 1: 1.5, y: [0.5, 3]}")
    assert load(text).node.metadata == {"on": True, "n": 2, "1": "1.5", "y": ["0.5", 3]}


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("{seconds: 30}", 30.0),
        ("{seconds: 3, nanos: 500000000}", 3.5),
        ("{nanos: 250000000}", 0.25),
        ("30s", 30.0),
    ],
)
def test_a_duration_may_be_written_as_its_parts(written: str, seconds: float) -> None:
    config = copy.deepcopy(PLAIN)
    config["static_resources"]["clusters"][0]["connect_timeout"] = yaml.safe_load(written)
    assert load(yaml.safe_dump(config)).table.clusters["backend"].connect_timeout == seconds


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("{secs: 30}", ".secs"),
        ("{seconds: x}", ".seconds"),
        ("{seconds: true}", ".seconds"),
        ("{seconds: 1.5}", ".seconds"),
        ("{seconds: 1, nanos: 1000000000}", ".nanos"),
        ("{seconds: 1, nanos: -1}", ".nanos"),
    ],
)
def test_the_parts_of_a_duration_are_refused_by_name(written: str, path: str) -> None:
    config = copy.deepcopy(PLAIN)
    config["static_resources"]["clusters"][0]["connect_timeout"] = yaml.safe_load(written)
    with pytest.raises(ConfigError) as refusal:
        load(yaml.safe_dump(config))
    assert refusal.value.path == f"{_CLUSTER}.connect_timeout{path}"
