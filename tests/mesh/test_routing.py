"""VirtualService, DestinationRule, ServiceEntry and Sidecar, field by field, as calls."""
# ruff: noqa: E501 - a resource is easier to read on one line

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from agent.table.route import Forward
from registry.model import Port
from tests.mesh.world import BOOKINFO, Workload, World

PAGE = "productpage-v1"
NET = "apiVersion: networking.istio.io/v1"


def virtual_service(http: str, host: str = "reviews", extra: str = "") -> str:
    return f"{NET}\nkind: VirtualService\nmetadata: {{name: {host.split('.', maxsplit=1)[0]}-route}}\nspec: {{hosts: [{host}], {extra} http: {http}}}"


def rule(spec: str, name: str = "reviews") -> str:
    return f"{NET}\nkind: DestinationRule\nmetadata: {{name: {name}}}\nspec: {spec}"


def entry(spec: str, name: str = "external") -> str:
    return f"{NET}\nkind: ServiceEntry\nmetadata: {{name: {name}}}\nspec: {spec}"


SUBSETS = rule(
    "{host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}"
)
TO_V2 = "route: [{destination: {host: reviews, subset: v2}}]"
TO_V1 = "{route: [{destination: {host: reviews, subset: v1}}]}"


@pytest.mark.parametrize(
    "name", ["reviews", "reviews.default", "reviews.default.svc", "reviews.default.svc.cluster.local"]
)
def test_a_service_is_reached_by_each_of_its_names_with_istios_defaults(name: str) -> None:
    call = World().http(PAGE, f"http://{name}:9080/reviews/1")
    assert (call.listener, call.cluster) == (
        "0.0.0.0_9080",
        "outbound|9080||reviews.default.svc.cluster.local",
    )
    assert call.workload.startswith("reviews-v")
    assert (call.tls, call.sni) == ("mtls", "outbound_.9080_._.reviews.default.svc.cluster.local")
    assert (call.timeout, call.tries) == (0.0, 3)
    assert (call.inbound_chain, call.inbound_cluster) == ("0.0.0.0_9080", "inbound|9080||")


def test_plain_http_leaves_as_tls_where_a_rule_says_so() -> None:
    google = Path(__file__).parents[3] / "shared/cases/istio-samples/egress-rule-google-apis.yaml"
    call = World(google.read_text()).http(PAGE, "http://www.googleapis.com/discovery/v1/apis")
    assert (call.cluster, call.tls, call.sni) == (
        "outbound|443||www.googleapis.com",
        "tls",
        "www.googleapis.com",
    )


def test_a_subset_that_no_rule_defines_is_no_place_to_go() -> None:
    call = World(virtual_service(f"[{TO_V1}]")).http(PAGE, "http://reviews:9080/")
    assert (call.status, call.details) == (503, "cluster_not_found")


@pytest.mark.parametrize(
    ("match", "call", "matches"),
    [
        ("{uri: {exact: /a}}", {"url": "/a?x=1"}, True),
        ("{uri: {exact: /a}}", {"url": "/A"}, False),
        ("{uri: {exact: /a}, ignoreUriCase: true}", {"url": "/A"}, True),
        ("{uri: {prefix: /api/}}", {"url": "/api/v1"}, True),
        ("{uri: {prefix: /api/}}", {"url": "/apis"}, False),
        ("{uri: {regex: '/v[0-9]+/.*'}}", {"url": "/v12/x"}, True),
        ("{uri: {regex: '/v[0-9]+'}}", {"url": "/v12/x"}, False),
        ("{method: {exact: POST}}", {"method": "POST"}, True),
        ("{method: {regex: 'GET|HEAD'}}", {"method": "HEAD"}, True),
        ("{method: {exact: POST}}", {}, False),
        ("{headers: {x-a: {exact: b}}}", {"headers": {"X-A": "b"}}, True),
        ("{headers: {x-a: {prefix: b}}}", {"headers": {"x-a": "bc"}}, True),
        ("{headers: {x-a: {}}}", {"headers": {"x-a": ""}}, True),
        ("{headers: {x-a: {}}}", {}, False),
        ("{headers: {x-a: {regex: '*'}}}", {"headers": {"x-a": "b"}}, True),
        ("{headers: {x-a: {regex: '*'}}}", {}, False),
        ("{withoutHeaders: {x-a: {regex: '*'}}}", {"headers": {"x-a": "b"}}, False),
        ("{withoutHeaders: {x-a: {regex: '*'}}}", {}, True),
        ("{queryParams: {v: {regex: '*'}}}", {"url": "/?v"}, True),
        ("{queryParams: {v: {regex: '*'}}}", {"url": "/?w"}, False),
        ("{headers: {':method': {exact: POST}}}", {"method": "POST"}, True),
        ("{headers: {':method': {exact: POST}}}", {}, False),
        ("{headers: {':authority': {prefix: reviews}}}", {}, True),
        ("{headers: {':authority': {prefix: other}}}", {}, False),
        ("{headers: {':path': {prefix: /a}}}", {"url": "/a?x=1"}, True),
        ("{headers: {':path': {prefix: /a}}}", {"url": "/b"}, False),
        ("{headers: {':scheme': {exact: http}}}", {}, True),
        (
            "{headers: {cookie: {regex: '^(.*?;)?(user=jason)(;.*)?$'}}}",
            {"headers": {"cookie": "a=b;user=jason"}},
            True,
        ),
        ("{withoutHeaders: {x-a: {exact: b}}}", {"headers": {"x-a": "c"}}, True),
        ("{withoutHeaders: {x-a: {exact: b}}}", {}, True),
        ("{withoutHeaders: {x-a: {exact: b}}}", {"headers": {"x-a": "b"}}, False),
        ("{withoutHeaders: {x-a: {}}}", {"headers": {"x-a": "b"}}, False),
        ("{queryParams: {v: {exact: '2'}}}", {"url": "/?v=2"}, True),
        ("{queryParams: {v: {regex: '[0-9]'}}}", {"url": "/?v=x"}, False),
        ("{queryParams: {v: {}}}", {"url": "/?v"}, True),
        ("{authority: {prefix: reviews}}", {}, True),
        ("{authority: {exact: other}}", {}, False),
        ("{port: 9080}", {}, True),
        ("{port: 9081}", {}, False),
        ("{sourceLabels: {app: productpage}}", {}, True),
        ("{sourceLabels: {app: ratings}}", {}, False),
        ("{sourceNamespace: default}", {}, True),
        ("{sourceNamespace: other}", {}, False),
        ("{gateways: [mesh]}", {}, True),
        ("{gateways: [edge]}", {}, False),
        ("{uri: {prefix: /}, headers: {x-a: {exact: b}}}", {}, False),
    ],
)
def test_a_match_decides(match: str, call: dict[str, object], matches: bool) -> None:
    world = World(SUBSETS, virtual_service(f"[{{match: [{match}], {TO_V2}}}, {TO_V1}]"))
    method, headers = str(call.get("method", "GET")), call.get("headers", {})
    assert isinstance(headers, dict)
    found = world.http(PAGE, f"http://reviews:9080{call.get('url', '/')}", method, headers)
    assert found.workload == ("reviews-v2" if matches else "reviews-v1")


def test_any_of_several_matches_is_enough() -> None:
    world = World(
        SUBSETS,
        virtual_service(f"[{{match: [{{uri: {{exact: /a}}}}, {{uri: {{exact: /b}}}}], {TO_V2}}}, {TO_V1}]"),
    )
    assert [world.http(PAGE, f"http://reviews:9080{path}").workload for path in ("/a", "/b", "/c")] == [
        "reviews-v2",
        "reviews-v2",
        "reviews-v1",
    ]


def test_without_a_rule_that_matches_there_is_no_route() -> None:
    world = World(SUBSETS, virtual_service(f"[{{match: [{{uri: {{exact: /a}}}}], {TO_V2}}}]"))
    assert world.http(PAGE, "http://reviews:9080/b").status == 404


def test_prefix_and_authority_are_rewritten() -> None:
    http = f"[{{match: [{{uri: {{prefix: /old}}}}], rewrite: {{uri: /new, authority: reviews.internal}}, {TO_V2}}}]"
    call = World(SUBSETS, virtual_service(http)).http(PAGE, "http://reviews:9080/old/x?y=1")
    assert (call.path, call.authority) == ("/new/x?y=1", "reviews.internal")


def test_a_path_is_rewritten_by_pattern() -> None:
    rewrite = r"uriRegexRewrite: {match: '^/service/([^/]+)(/.*)$', rewrite: '\2/instance/\1'}"
    http = "[{rewrite: {" + rewrite + "}, " + TO_V2 + "}]"
    call = World(SUBSETS, virtual_service(http)).http(PAGE, "http://reviews:9080/service/foo/v1/api")
    assert call.path == "/v1/api/instance/foo"


def test_a_redirect_is_answered_by_the_callers_proxy() -> None:
    http = "[{redirect: {uri: /v1, authority: new.example.com, redirectCode: 302}}]"
    call = World(virtual_service(http)).http(PAGE, "http://reviews:9080/old")
    assert (call.status, call.headers["location"]) == (302, "http://new.example.com/v1")


def test_a_direct_response_is_answered_by_the_callers_proxy() -> None:
    call = World(virtual_service("[{directResponse: {status: 418, body: {string: teapot}}}]")).http(
        PAGE, "http://reviews:9080/"
    )
    assert call.status == 418


def test_headers_are_changed_for_the_route_and_for_the_destination() -> None:
    http = """[{headers: {request: {set: {x-route: r}, add: {x-more: m}, remove: [x-secret]}},
      route: [{destination: {host: reviews, subset: v1}, headers: {request: {set: {x-dest: d}}}}]}]"""
    call = World(SUBSETS, virtual_service(http)).http(
        PAGE, "http://reviews:9080/", headers={"x-secret": "s", "x-route": "q"}
    )
    assert call.workload == "reviews-v1"
    wanted = {"x-route": "r", "x-more": "m", "x-dest": "d"}
    assert {name: call.headers.get(name) for name in wanted} == wanted
    assert "x-secret" not in call.headers


@pytest.mark.parametrize(
    ("fields", "timeout", "tries"),
    [
        ("timeout: 2s, retries: {attempts: 2},", 2.0, 3),
        ("timeout: 500ms,", 0.5, 3),
        ("retries: {attempts: 0},", 0.0, 1),
        ("retries: {attempts: 5, perTryTimeout: 250ms, retryOn: '5xx,429'},", 0.0, 6),
    ],
)
def test_timeouts_and_retries(fields: str, timeout: float, tries: int) -> None:
    call = World(SUBSETS, virtual_service(f"[{{{fields} {TO_V2}}}]")).http(PAGE, "http://reviews:9080/")
    assert (call.workload, call.timeout, call.tries) == ("reviews-v2", timeout, tries)


def test_retry_conditions_are_istios() -> None:
    plan = World().http(PAGE, "http://reviews:9080/").plan
    assert plan is not None and plan.retry is not None
    assert plan.retry.on == {
        "connect-failure",
        "refused-stream",
        "unavailable",
        "cancelled",
        "retriable-status-codes",
    }
    assert plan.retry.statuses == {503}
    assert plan.retry.previous_hosts
    chosen = World(SUBSETS, virtual_service(f"[{{retries: {{attempts: 5, retryOn: '5xx,429'}}, {TO_V2}}}]"))
    plan = chosen.http(PAGE, "http://reviews:9080/").plan
    assert plan is not None and plan.retry is not None
    assert (plan.retry.on, plan.retry.statuses) == ({"5xx", "retriable-status-codes"}, {429})


def test_a_share_of_requests_is_aborted() -> None:
    http = f"[{{fault: {{abort: {{httpStatus: 400, percentage: {{value: 0.1}}}}}}, {TO_V2}}}]"
    world = World(SUBSETS, virtual_service(http))
    statuses = Counter(
        world.http(PAGE, "http://reviews:9080/", random=n).status for n in range(0, 1_000_000, 997)
    )
    assert 0 < statuses[400] < 6


def test_cors_is_answered_for_the_origin_that_may() -> None:
    http = f"[{{corsPolicy: {{allowOrigins: [{{exact: 'https://a.example'}}], allowMethods: [GET], maxAge: 1m}}, {TO_V2}}}]"
    world = World(SUBSETS, virtual_service(http))
    asked = {"origin": "https://a.example", "access-control-request-method": "GET"}
    call = world.http(PAGE, "http://reviews:9080/", "OPTIONS", asked)
    assert (call.status, call.headers["access-control-allow-origin"]) == (200, "https://a.example")
    assert call.headers["access-control-max-age"] == "60"


def test_a_delegate_takes_the_root_rules_place_within_its_match() -> None:
    root = virtual_service(f"[{{match: [{{uri: {{prefix: /team}}}}], delegate: {{name: team}}}}, {TO_V1}]")
    leaf = f"{NET}\nkind: VirtualService\nmetadata: {{name: team}}\nspec: {{http: [{{match: [{{uri: {{prefix: /team/x}}}}], timeout: 3s, {TO_V2}}}]}}"
    world = World(SUBSETS, root, leaf)
    call = world.http(PAGE, "http://reviews:9080/team/x/1")
    assert (call.workload, call.timeout) == ("reviews-v2", 3.0)
    assert world.http(PAGE, "http://reviews:9080/team/y").workload == "reviews-v1"


def test_the_oldest_exact_host_wins_over_a_wildcard() -> None:
    wide = virtual_service("[{directResponse: {status: 418}}]", "'*.default.svc.cluster.local'")
    world = World(
        SUBSETS,
        wide.replace("'*-route", "wide").replace("name: '*", "name: wide"),
        virtual_service(f"[{TO_V1}]"),
    )
    assert world.http(PAGE, "http://reviews:9080/").workload == "reviews-v1"
    assert world.http(PAGE, "http://details:9080/").status == 418


def test_a_name_that_only_a_virtual_service_knows_is_routed_on_port_80() -> None:
    outside = entry(
        "{hosts: [backend.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 192.0.2.9, ports: {http: 8081}}]}"
    )
    alias = virtual_service("[{route: [{destination: {host: backend.example}}]}]", "alias.example")
    call = World(outside, alias).http(PAGE, "http://alias.example/")
    assert (call.cluster, call.endpoint, call.tls) == (
        "outbound|80||backend.example",
        "192.0.2.9:8081",
        "plain",
    )


def test_opaque_tcp_goes_to_its_own_address_with_mutual_tls() -> None:
    call = World().tcp("ratings-v1", "mysqldb", 3306)
    assert (call.listener, call.cluster) == (
        "240.240.0.5_3306",
        "outbound|3306||mysqldb.default.svc.cluster.local",
    )
    assert (call.workload, call.tls, call.inbound_cluster) == ("mysqldb-v1", "mtls", "inbound|3306||")


def test_opaque_tcp_is_split_by_weight() -> None:
    subsets = rule(
        "{host: mysqldb, subsets: [{name: a, labels: {version: v1}}, {name: b, labels: {version: v9}}]}",
        "mysql",
    )
    split = f"{NET}\nkind: VirtualService\nmetadata: {{name: mysql}}\nspec: {{hosts: [mysqldb], tcp: [{{match: [{{port: 3306}}], route: [{{destination: {{host: mysqldb, subset: a}}, weight: 75}}, {{destination: {{host: mysqldb, subset: b}}, weight: 25}}]}}]}}"
    world = World(subsets, split)
    shares = Counter(
        world.tcp("ratings-v1", "mysqldb", 3306, random=n).cluster.split("|")[2] for n in range(100)
    )
    assert shares == {"a": 75, "b": 25}


def test_tls_of_the_application_is_routed_by_its_server_name() -> None:
    hosts = entry(
        "{hosts: [one.example, two.example], ports: [{number: 443, name: tls, protocol: TLS}], resolution: DNS}"
    )
    moved = f"{NET}\nkind: VirtualService\nmetadata: {{name: sni}}\nspec: {{hosts: ['*.example'], tls: [{{match: [{{port: 443, sniHosts: [moved.example]}}], route: [{{destination: {{host: two.example}}}}]}}]}}"
    world = World(hosts, moved)
    assert world.tcp(PAGE, "one.example", 443, sni="moved.example").cluster == "outbound|443||two.example"
    assert world.tcp(PAGE, "one.example", 443, sni="one.example").cluster == "outbound|443||one.example"


def test_an_unnamed_port_is_sniffed() -> None:
    world = World()
    http = world.http(PAGE, "http://web:8080/")
    assert (http.listener, http.cluster, http.tries) == (
        "240.240.0.6_8080",
        "outbound|8080||web.default.svc.cluster.local",
        3,
    )
    assert (http.tls, http.inbound_chain, http.plan is not None) == ("mtls", "0.0.0.0_8080", True)
    raw = world.tcp(PAGE, "web", 8080)
    assert (raw.cluster, raw.tls) == ("outbound-tcp|8080||web.default.svc.cluster.local", "mtls")
    assert raw.workload == http.workload == "web-v1"
    only_get = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: get}
spec: {selector: {matchLabels: {app: web}}, rules: [{to: [{operation: {methods: [GET]}}]}]}
"""
    world.apply(only_get)
    assert world.http(PAGE, "http://web:8080/").status is None
    assert world.http(PAGE, "http://web:8080/", "POST").status == 403
    assert world.tcp(PAGE, "web", 8080).closed == "web-v1: refused by policy"


def test_a_wildcard_entry_passes_to_the_address_the_caller_chose() -> None:
    wide = entry(
        "{hosts: ['*.bar.example'], ports: [{number: 80, name: http, protocol: HTTP}], resolution: NONE}"
    )
    call = World(wide).http(PAGE, "http://x.bar.example/")
    assert (call.cluster, call.endpoint) == ("outbound|80||*.bar.example", "203.0.113.80:80")


def test_an_address_block_is_a_service_of_its_own() -> None:
    block = entry(
        "{hosts: [wiki.example], addresses: [91.198.174.192/27], ports: [{number: 443, name: tcp, protocol: TCP}], resolution: NONE}"
    )
    world = World(block)
    assert world.tcp(PAGE, "91.198.174.200", 443).cluster == "outbound|443||wiki.example"
    assert world.tcp(PAGE, "91.198.175.200", 443).cluster == "PassthroughCluster"


def test_the_unknown_passes_through_or_is_blocked() -> None:
    free = World()
    assert free.http(PAGE, "http://unknown.example:9080/").cluster == "PassthroughCluster"
    assert free.tcp(PAGE, "203.0.113.5", 4444).cluster == "PassthroughCluster"
    assert free.tcp(PAGE, "203.0.113.5", 9080, sni="unknown.example").cluster == "PassthroughCluster"
    closed = World(mesh={"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}})
    assert closed.http(PAGE, "http://unknown.example:9080/").status == 502
    assert closed.tcp(PAGE, "203.0.113.5", 4444).cluster == "BlackHoleCluster"
    assert closed.http(PAGE, "http://reviews:9080/").workload.startswith("reviews")


def test_a_sidecar_narrows_what_a_workload_sees() -> None:
    sidecar = f"{NET}\nkind: Sidecar\nmetadata: {{name: default}}\nspec: {{workloadSelector: {{labels: {{app: productpage}}}}, outboundTrafficPolicy: {{mode: REGISTRY_ONLY}}, egress: [{{hosts: ['./details.default.svc.cluster.local']}}]}}"
    world = World(sidecar)
    assert world.http(PAGE, "http://details:9080/").workload == "details-v1"
    assert world.resolve(PAGE, "reviews") == "203.0.113.80"
    assert world.http(PAGE, "http://reviews:9080/").status == 502
    assert world.http("ratings-v1", "http://reviews:9080/").workload.startswith("reviews")
    assert not any("reviews" in name for name in world.table(PAGE).clusters)


def test_a_sidecars_ingress_says_where_the_application_listens() -> None:
    sidecar = f"{NET}\nkind: Sidecar\nmetadata: {{name: details}}\nspec: {{workloadSelector: {{labels: {{app: details}}}}, ingress: [{{port: {{number: 9080, protocol: HTTP, name: http}}, defaultEndpoint: '127.0.0.1:9080'}}]}}"
    world = World(sidecar)
    assert world.http(PAGE, "http://details:9080/").inbound_cluster == "inbound|9080||"
    cluster = world.table("details-v1").clusters["inbound|9080||"]
    assert cluster.assignment is not None
    assert [(one.address.host, one.address.port) for one in cluster.assignment.endpoints] == [
        ("127.0.0.1", 9080)
    ]
    assert world.table("ratings-v1").clusters["inbound|9080||"].discovery == "original_dst"


def test_names_of_another_namespace_need_their_namespace() -> None:
    workloads = (*BOOKINFO, Workload("reviews", "v9", "10.1.0.1", namespace="prod"))
    world = World(workloads=workloads)
    assert world.http(PAGE, "http://reviews.prod:9080/").workload == "reviews-v9"
    assert world.http(PAGE, "http://reviews:9080/").workload != "reviews-v9"
    far = World(workloads=(BOOKINFO[0], Workload("only", "v1", "10.1.0.1", namespace="prod")))
    assert far.http(PAGE, "http://only:9080/").cluster == "PassthroughCluster"
    assert far.http(PAGE, "http://only.prod:9080/").workload == "only-v1"


def test_unhealthy_instances_and_those_without_proxy_are_told_apart() -> None:
    workloads = (
        BOOKINFO[0],
        Workload("old", "v1", "10.2.0.1", mtls=False),
        Workload("sick", "v1", "10.2.0.2", healthy=False),
        Workload("moved", "v1", "10.2.0.3", (Port("http", 80, "", 8080),)),
    )
    world = World(workloads=workloads)
    assert world.http(PAGE, "http://old:9080/").tls == "plain"
    assert world.http(PAGE, "http://sick:9080/").details == "no_healthy_upstream"
    moved = world.http(PAGE, "http://moved/")
    assert (moved.endpoint, moved.inbound_chain) == ("10.2.0.3:8080", "0.0.0.0_8080")
    assert moved.inbound_cluster == "inbound|8080||"


@pytest.mark.parametrize(
    ("policy", "attribute", "value"),
    [
        ("{loadBalancer: {simple: ROUND_ROBIN}}", "lb_policy", "round_robin"),
        ("{loadBalancer: {simple: RANDOM}}", "lb_policy", "random"),
        ("{loadBalancer: {consistentHash: {httpHeaderName: x-user}}}", "lb_policy", "ring_hash"),
        ("{loadBalancer: {consistentHash: {useSourceIp: true, maglev: {}}}}", "lb_policy", "maglev"),
        ("{connectionPool: {tcp: {connectTimeout: 3s}}}", "connect_timeout", 3.0),
        ("{connectionPool: {http: {maxRequestsPerConnection: 7}}}", "max_requests_per_connection", 7),
        ("{connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}", "protocol", "http2"),
    ],
)
def test_a_traffic_policy_shapes_the_cluster(policy: str, attribute: str, value: object) -> None:
    world = World(rule(f"{{host: reviews, trafficPolicy: {policy}}}"))
    cluster = world.table(PAGE).clusters["outbound|9080||reviews.default.svc.cluster.local"]
    assert getattr(cluster, attribute) == value


def test_limits_and_outlier_detection() -> None:
    policy = """{host: reviews, trafficPolicy: {connectionPool: {tcp: {maxConnections: 9},
      http: {http1MaxPendingRequests: 4, http2MaxRequests: 33, maxRetries: 2}},
      outlierDetection: {consecutive5xxErrors: 7, interval: 5s, baseEjectionTime: 3m, maxEjectionPercent: 100}}}"""
    cluster = World(rule(policy)).table(PAGE).clusters["outbound|9080||reviews.default.svc.cluster.local"]
    limits = cluster.default_thresholds
    assert (limits.max_connections, limits.max_pending_requests, limits.max_requests, limits.max_retries) == (
        9,
        4,
        33,
        2,
    )
    outlier = cluster.outlier
    assert outlier is not None
    assert (outlier.consecutive_5xx, outlier.interval, outlier.base_ejection_time) == (7, 5.0, 180.0)
    assert (outlier.max_ejection_percent, outlier.enforcing_success_rate, cluster.panic_threshold) == (
        100,
        0,
        0.0,
    )


def test_narrower_policies_replace_wider_ones() -> None:
    policy = """{host: reviews, trafficPolicy: {loadBalancer: {simple: RANDOM}, tls: {mode: DISABLE},
        portLevelSettings: [{port: {number: 9081}, loadBalancer: {simple: ROUND_ROBIN}}]},
      subsets: [{name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}]}"""
    clusters = World(rule(policy)).table(PAGE).clusters
    whole = clusters["outbound|9080||reviews.default.svc.cluster.local"]
    subset = clusters["outbound|9080|v1|reviews.default.svc.cluster.local"]
    assert (whole.lb_policy, subset.lb_policy) == ("random", "round_robin")
    assert (whole.transport_matches, subset.transport_matches, subset.tls) == ((), (), None)


@pytest.mark.parametrize(
    ("copies", "wanted"),
    [
        ("mirror: {host: ratings}", [("ratings", 1.0)]),
        ("mirror: {host: ratings}, mirrorPercentage: {value: 12.5}", [("ratings", 0.125)]),
        ("mirror: {host: ratings}, mirrorPercent: 40", [("ratings", 0.4)]),
        ("mirror: {host: ratings}, mirrorPercentage: {value: 0}", []),
        (
            "mirrors: [{destination: {host: ratings}}, {destination: {host: details}, percentage: {value: 0.01}}]",
            [("ratings", 1.0), ("details", 0.0001)],
        ),
    ],
)
def test_requests_are_copied_to_mirrors(copies: str, wanted: list[tuple[str, float]]) -> None:
    world = World(virtual_service(f"[{{route: [{{destination: {{host: reviews}}}}], {copies}}}]"))
    (host,) = [
        one
        for one in world.table(PAGE).routes["9080"].virtual_hosts
        if one.name.startswith("reviews.default")
    ]
    action = host.routes[0].action
    assert isinstance(action, Forward)
    found = [(one.cluster, one.fraction.numerator / one.fraction.denominator) for one in action.mirrors]
    assert found == [(f"outbound|9080||{name}.default.svc.cluster.local", share) for name, share in wanted]


def test_a_mirror_is_imported_with_the_route_that_names_it() -> None:
    limited = f"{NET}\nkind: Sidecar\nmetadata: {{name: x}}\nspec: {{egress: [{{hosts: [./reviews.default.svc.cluster.local]}}]}}"
    routes = virtual_service("[{route: [{destination: {host: reviews}}], mirror: {host: ratings}}]")
    assert "outbound|9080||ratings.default.svc.cluster.local" in World(limited, routes).table(PAGE).clusters
