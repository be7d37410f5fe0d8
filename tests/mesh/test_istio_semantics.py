"""Where Istio's own compiler was seen to decide otherwise: precedence, delegates, redirects, authorities, retries."""

from __future__ import annotations

from pathlib import Path

import pytest
from envoy.config.route.v3 import route_pb2

from istiod.resources.document import parse
from registry.model import Port
from tests.mesh.bookinfo import bookinfo
from tests.mesh.simulation import Mesh, expected_names
from tests.unit.istiod.test_compile_envoy import accepted
from wire.xds import ROUTE

NETWORKING = "apiVersion: networking.istio.io/v1\n"
PAGE = "productpage-v1"
URL = "http://reviews:9080/"
REVIEWS = "reviews.default.svc.cluster.local"
SUBSETS = (
    f"{NETWORKING}kind: DestinationRule\nmetadata: {{name: subsets}}\nspec: {{host: reviews, "
    "subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}"
)


def routes(name: str, spec: str, namespace: str = "default") -> str:
    return f"{NETWORKING}kind: VirtualService\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}"


def rule(name: str, spec: str) -> str:
    return f"{NETWORKING}kind: DestinationRule\nmetadata: {{name: {name}}}\nspec: {{{spec}}}"


def to(host: str, subset: str = "") -> str:
    return f"route: [{{destination: {{host: {host}{f', subset: {subset}' if subset else ''}}}}}]"


def mesh_with(*documents: str, **config: object) -> Mesh:
    mesh = bookinfo(**config)
    for text in documents:
        mesh.apply(text)
    return mesh


# Which document counts


def test_a_rule_that_selects_the_workload_replaces_the_others() -> None:
    mesh = mesh_with(
        rule(
            "all",
            "host: reviews, trafficPolicy: {tls: {mode: DISABLE}, connectionPool: {http: {http1MaxPendingRequests: 100}}}",
        ),
        rule(
            "mine",
            "host: reviews, workloadSelector: {matchLabels: {app: productpage}}, "
            "trafficPolicy: {connectionPool: {http: {http1MaxPendingRequests: 7}}}",
        ),
    )
    name = f"outbound|9080||{REVIEWS}"
    assert mesh.proxy(PAGE).table.clusters[name].default_thresholds.max_pending_requests == 7
    assert mesh.call(PAGE, URL).mtls
    assert mesh.proxy("ratings-v1").table.clusters[name].default_thresholds.max_pending_requests == 100
    assert not mesh.call("ratings-v1", URL).mtls


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_private_rules_come_before_exported_before_public_whatever_their_age(order: tuple[int, ...]) -> None:
    documents = (
        routes("public", f"hosts: [{REVIEWS}], http: [{{timeout: 1s, {to('reviews')}}}]"),
        routes(
            "shared",
            f"exportTo: [team-b, team-c], hosts: [{REVIEWS}], http: [{{timeout: 2s, {to(REVIEWS)}}}]",
        ),
        routes(
            "private",
            f"exportTo: ['.'], hosts: [{REVIEWS}], http: [{{timeout: 3s, {to(REVIEWS)}}}]",
            "team-b",
        ),
    )
    mesh = mesh_with(*(documents[position] for position in order))
    for namespace, timeout in (("default", 1.0), ("team-c", 2.0), ("team-b", 3.0)):
        mesh.add(f"caller-{namespace}", service=f"caller-{namespace}", namespace=namespace)
        assert mesh.call(f"caller-{namespace}", f"http://{REVIEWS}:9080/").outbound.timeout == timeout


# Delegates

LEAF = "hosts: [reviews], http: [{match: [{headers: {x: {prefix: a}}}], delegate: {name: leaf, namespace: team-b}}, DEFAULT]"
ROOT = routes("root", LEAF.replace("DEFAULT", "{" + to("reviews") + "}"))


def leaf(match: str, export_to: str = "['*']") -> str:
    details = "details.default.svc.cluster.local"
    return routes("leaf", f"exportTo: {export_to}, http: [{{match: [{match}], {to(details)}}}]", "team-b")


@pytest.mark.parametrize(
    ("match", "value", "service"),
    [
        ("{headers: {x: {exact: abc}}}", "abc", "details"),
        ("{headers: {x: {exact: abc}}}", "abd", "reviews"),
        ("{headers: {x: {prefix: ab}}}", "abd", "details"),
        ("{headers: {x: {prefix: b}}}", "b", "reviews"),
        ("{headers: {y: {exact: '1'}}}", "abc", "reviews"),
    ],
)
def test_a_delegate_narrows_the_matches_of_its_root(match: str, value: str, service: str) -> None:
    decision = mesh_with(ROOT, leaf(match)).call(PAGE, URL, headers={"x": value})
    assert decision.workload.startswith(service)


@pytest.mark.parametrize(
    ("export_to", "service"), [("['.']", "reviews"), ("[default]", "details"), ("['*']", "details")]
)
def test_a_delegate_serves_those_that_it_is_exported_to(export_to: str, service: str) -> None:
    mesh = mesh_with(ROOT, leaf("{headers: {x: {exact: abc}}}", export_to))
    assert mesh.call(PAGE, URL, headers={"x": "abc"}).workload.startswith(service)


def test_a_delegate_for_some_callers_is_made_for_each_of_them() -> None:
    mesh = mesh_with(ROOT, leaf("{sourceLabels: {app: productpage}}"))
    for _ in range(2):  # both orders of compilation, with one cache
        assert mesh.call("ratings-v1", URL, headers={"x": "abc"}).workload.startswith("reviews")
        assert mesh.call(PAGE, URL, headers={"x": "abc"}).workload == "details-v1"
        mesh.changed()


def test_a_delegate_of_a_delegate_yields_nothing_and_harms_nothing(tmp_path: Path) -> None:
    mesh = mesh_with(ROOT)
    mesh.apply(routes("other", f"http: [{{{to('details')}}}]"))
    # Refused by apply today, but an older version may have stored it.
    mesh.store(
        parse(routes("leaf", "http: [{delegate: {name: other, namespace: default}}]", "team-b")).documents
    )
    assert mesh.call(PAGE, URL, headers={"x": "abc"}).workload.startswith("reviews")
    accepted(mesh.compiled(PAGE), tmp_path)


def test_a_sidecar_imports_what_a_delegate_sends_calls_to() -> None:
    mesh = mesh_with(
        ROOT,
        leaf("{headers: {x: {exact: abc}}}"),
        f"{NETWORKING}kind: Sidecar\nmetadata: {{name: s}}\nspec: {{egress: [{{hosts: ['./{REVIEWS}']}}]}}",
    )
    assert mesh.call(PAGE, URL, headers={"x": "abc"}).workload == "details-v1"


# Redirects


@pytest.mark.parametrize(
    ("redirect", "url", "location"),
    [
        (
            "authority: new.example.com, derivePort: FROM_REQUEST_PORT",
            "http://details:9080/",
            "http://new.example.com:9080/",
        ),
        ("authority: h, derivePort: FROM_REQUEST_PORT", "http://web/", "http://h/"),
        ("authority: h, scheme: https, derivePort: FROM_REQUEST_PORT", "http://web/", "https://h:80/"),
        ("authority: h, derivePort: FROM_PROTOCOL_DEFAULT", "http://details:9080/", "http://h/"),
        (
            "authority: h, scheme: https, derivePort: FROM_PROTOCOL_DEFAULT",
            "http://details:9080/",
            "https://h/",
        ),
        ("authority: h, scheme: https, port: 443", "http://details:9080/", "https://h/"),
        ("authority: h, port: 80", "http://details:9080/", "http://h/"),
        ("authority: h, port: 8080", "http://details:9080/", "http://h:8080/"),
    ],
)
def test_a_redirect_names_the_port_that_it_means(redirect: str, url: str, location: str) -> None:
    mesh = bookinfo()
    mesh.add("web-1", service="web", port=Port("http", 80))
    mesh.apply(routes("r", f"hosts: [details, web], http: [{{redirect: {{{redirect}}}}}]"))
    assert mesh.call(PAGE, url).headers["location"] == location


# The authority among the headers


@pytest.mark.parametrize("name", ["Host", "host", "':authority'"])
@pytest.mark.parametrize("verb", ["set", "add"])
def test_a_host_header_is_a_rewrite_of_the_authority(name: str, verb: str, tmp_path: Path) -> None:
    headers = f"headers: {{request: {{{verb}: {{{name}: internal.example.com, x: y}}}}, response: {{{verb}: {{a: b}}}}}}"
    mesh = mesh_with(routes("h", f"hosts: [details], http: [{{{headers}, {to('details')}}}]"))
    decision = mesh.call(PAGE, "http://details:9080/")
    assert decision.received is not None
    assert (decision.received.authority, decision.got("x")) == (b"internal.example.com", "y")
    accepted(mesh.compiled(PAGE), tmp_path)


def test_a_host_header_of_one_destination_rewrites_only_there() -> None:
    spec = "{destination: {host: details}, headers: {request: {set: {Host: internal.example.com}}}}"
    mesh = mesh_with(routes("h", f"hosts: [details], http: [{{route: [{spec}]}}]"))
    decision = mesh.call(PAGE, "http://details:9080/")
    assert decision.received is not None
    assert decision.received.authority == b"internal.example.com"


# Retries, time-outs, trust domains

HASHED = "host: details, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}"


def retrying(ignore: str) -> str:
    retries = f"retries: {{attempts: 3, retryIgnorePreviousHosts: {ignore}}}"
    return routes("v", f"hosts: [details], http: [{{{retries}, {to('details')}}}]")


@pytest.mark.parametrize(
    ("documents", "avoids"),
    [
        ((), True),
        ((rule("r", HASHED),), False),
        ((rule("r", HASHED), routes("v", f"hosts: [details], http: [{{{to('details')}}}]")), False),
        ((rule("r", HASHED), retrying("true")), True),
        ((retrying("false"),), False),
    ],
)
def test_a_retry_stays_where_a_hash_sent_the_request(documents: tuple[str, ...], avoids: bool) -> None:
    mesh = mesh_with(*documents)
    mesh.add("details-v2", service="details", address="10.0.0.77")
    for name in ("details-v1", "details-v2"):
        mesh.workloads[name].down = True
    tried = mesh.call(PAGE, "http://details:9080/", headers={"x-user": "jason"}).outbound.endpoints_tried
    assert (len(set(tried)) > 1) == avoids


def test_grpc_names_its_own_time_out_up_to_that_of_the_rule() -> None:
    mesh = mesh_with(routes("v", f"hosts: [details], http: [{{timeout: 3s, {to('details')}}}]"))
    table = mesh.compiled(PAGE).message(ROUTE, "9080", route_pb2.RouteConfiguration)
    assert isinstance(table, route_pb2.RouteConfiguration)
    limits = {
        host.name.partition(".")[0]: host.routes[0].route.max_grpc_timeout.seconds
        for host in table.virtual_hosts
        if host.routes[0].route.HasField("max_grpc_timeout")
    }
    assert (limits["details"], limits["ratings"]) == (3, 0)


def test_servers_of_an_alias_of_the_trust_domain_are_accepted() -> None:
    mesh = mesh_with(trustDomainAliases=["old.example"])
    names = expected_names(mesh.call(PAGE, "http://details:9080/").outbound.upstream_tls)
    assert set(names) == {
        f"spiffe://{domain}/ns/default/sa/bookinfo-details" for domain in ("cluster.local", "old.example")
    }
