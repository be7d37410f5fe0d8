"""What istiod asks before it stores: would an agent take these resources? Each is judged for itself."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage

from agent.exchange.trial import Trial, decode
from agent.table.build import CLUSTER, LISTENER, ROUTE, unread
from agent.table.decode.types import message_class

for _kind in (
    "access_loggers.file.v3.FileAccessLog",
    "filters.http.router.v3.Router",
    "filters.network.http_connection_manager.v3.HttpConnectionManager",
    "transport_sockets.tls.v3.UpstreamTlsContext",
):
    message_class(f"envoy.extensions.{_kind}")  # so that json_format finds it
_TYPES = "type.googleapis.com/envoy.extensions.filters"


def packed(message: Any, tree: dict[str, Any]) -> bytes:
    holder = AnyMessage()
    holder.Pack(json_format.ParseDict(tree, message))
    return holder.SerializeToString(deterministic=True)


def route(name: str, **action: Any) -> bytes:
    routes = [{"match": {"prefix": "/"}, "route": {"cluster": "a"}, **action}]
    tree = {"name": name, "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}]}
    return packed(route_pb2.RouteConfiguration(), tree)


def listener(name: str, routes: str, port: int = 80, **manager: Any) -> bytes:
    hcm = {
        "@type": f"{_TYPES}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "x",
        "rds": {"route_config_name": routes, "config_source": {"ads": {}}},
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{_TYPES}.http.router.v3.Router"}}],
        **manager,
    }
    tree = {
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": hcm}]}],
    }
    return packed(listener_pb2.Listener(), tree)


def log(text: str) -> dict[str, Any]:
    kind = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
    form = {"text_format_source": {"inline_string": text}}
    return {"access_log": [{"name": "f", "typed_config": {"@type": kind, "path": "/x", "log_format": form}}]}


def changed_header(value: str) -> dict[str, Any]:
    return {"request_headers_to_add": [{"header": {"key": "x", "value": value}}]}


def test_what_is_right_is_taken_and_what_is_not_is_named_with_path_and_reason() -> None:
    cluster = packed(cluster_pb2.Cluster(), {"name": "a", "type": "EDS", "eds_cluster_config": {}})
    given = {
        CLUSTER: {"a": cluster},
        ROUTE: {"good": route("good"), "bad": route("bad", **changed_header("%NO_SUCH%"))},
        LISTENER: {"l": listener("l", "good"), "bad": listener("bad", "bad", 81, **log("%NO_SUCH%"))},
    }
    taken, refused = decode(given)
    assert taken == {
        CLUSTER: {"a": cluster},
        ROUTE: {"good": given[ROUTE]["good"]},
        LISTENER: {"l": given[LISTENER]["l"]},
    }
    assert [(one.type_url, one.name, one.path) for one in refused] == [
        (LISTENER, "bad", "Listener[bad].filter_chains[0].access_log[0]"),
        (ROUTE, "bad", "RouteConfiguration[bad].virtual_hosts[0].routes[0]"),
    ]
    assert all("NO_SUCH" in one.reason for one in refused)


def test_files_are_the_hosts_and_are_not_opened() -> None:
    source = {"filename": "/no/such/file"}
    tls = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {"tls_certificates": [{"certificate_chain": source, "private_key": source}]},
    }
    socket = {"name": "tls", "transport_socket": {"name": "tls", "typed_config": tls}}
    cluster = packed(cluster_pb2.Cluster(), {**socket, "type": "EDS", "eds_cluster_config": {}})
    body = route("r")
    direct = packed(
        route_pb2.RouteConfiguration(),
        {"name": "d", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": source}}
        ]}]},
    )  # fmt: skip
    taken, refused = decode({CLUSTER: {"tls": cluster}, ROUTE: {"r": body, "d": direct}})
    assert refused == ()
    assert set(taken[ROUTE]) == {"r", "d"}


@pytest.mark.parametrize("body", [b"", b"\xff", b"\x0a\x01x"])
def test_broken_bytes_cost_only_their_own_resource(body: bytes) -> None:
    taken, refused = decode({ROUTE: {"broken": body, "good": route("good")}})
    assert set(taken[ROUTE]) == {"good"}
    assert [one.name for one in refused] == ["broken"]


def test_a_listener_on_the_address_of_another_is_refused_and_the_one_that_serves_stays() -> None:
    trial = Trial(unread)
    assert trial.build({LISTENER: {"b": listener("b", "r")}}).refused == ()
    built = trial.build({LISTENER: {"a": listener("a", "r"), "b": listener("b", "r")}})
    assert [str(one) for one in built.refused] == [
        "Listener[a].address: 127.0.0.1:80 is the address of listener b"
    ]
    assert set(built.table.listeners) == set(built.bodies[LISTENER]) == {"b"}
