"""Who may speak to whom: PeerAuthentication on one side, automatic mTLS and DestinationRule TLS on the other."""

from __future__ import annotations

import pytest

from agent.worker.chain_match import inspected
from registry.model import Port
from tests.mesh.bookinfo import bookinfo
from tests.mesh.simulation import Mesh

DETAILS = "http://details:9080/"
SECURITY = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n"
FRIEND = "spiffe://cluster.local/ns/default/sa/friend"
MESH_ALPN = ("istio-http/1.1", "istio", "http/1.1")


def mode(value: str, namespace: str = "default", *, app: str = "", ports: str = "") -> str:
    """A PeerAuthentication for a namespace or one workload."""
    spec = f"mtls: {{mode: {value}}}"
    if app:
        spec += f", selector: {{matchLabels: {{app: {app}}}}}"
    if ports:
        spec += f", portLevelMtls: {{{ports}}}"
    return f"{SECURITY}metadata: {{name: p-{app or 'all'}, namespace: {namespace}}}\nspec: {{{spec}}}"


def rule(tls: str) -> str:
    """A DestinationRule for details with a TLS mode."""
    head = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: details}\n"
    return f"{head}spec: {{host: details, trafficPolicy: {{tls: {tls}}}}}"


def mesh_with(*documents: str) -> Mesh:
    """Bookinfo with these resources, applied in order."""
    mesh = bookinfo()
    for text in documents:
        mesh.apply(text)
    return mesh


WIDTHS = [
    ((), "PERMISSIVE"),
    ((mode("STRICT", "istio-system"),), "STRICT"),
    ((mode("STRICT"),), "STRICT"),
    ((mode("STRICT", "istio-system"), mode("DISABLE")), "DISABLE"),
    ((mode("STRICT", "istio-system"), mode("PERMISSIVE")), "PERMISSIVE"),
    ((mode("DISABLE"), mode("STRICT", app="details")), "STRICT"),
    ((mode("STRICT"), mode("UNSET", app="details")), "STRICT"),
    ((mode("STRICT"), mode("DISABLE", app="reviews")), "STRICT"),
    ((mode("STRICT"), mode("STRICT", app="details", ports="'9080': {mode: DISABLE}")), "DISABLE"),
    ((mode("STRICT"), mode("STRICT", app="details", ports="'9081': {mode: DISABLE}")), "STRICT"),
    ((mode("DISABLE"), mode("UNSET", app="details", ports="'9080': {mode: STRICT}")), "STRICT"),
    ((mode("STRICT", "elsewhere"),), "PERMISSIVE"),
]


@pytest.mark.parametrize(("documents", "expected"), WIDTHS, ids=[str(n) for n in range(len(WIDTHS))])
def test_the_narrowest_mode_decides_for_callers_inside_and_outside(
    documents: tuple[str, ...], expected: str
) -> None:
    mesh = mesh_with(*documents)
    inside = mesh.call("productpage-v1", DETAILS)
    assert inside.status == 200
    assert inside.mtls == (expected != "DISABLE"), "automatic mTLS follows the server's mode"
    plain = mesh.knock("http://10.0.0.2:9080/")
    assert plain.status == (0 if expected == "STRICT" else 200)
    certified = mesh.knock("http://10.0.0.2:9080/", identity=FRIEND, alpn=MESH_ALPN)
    assert (certified.status == 200 and certified.mtls) == (expected != "DISABLE")


def test_strict_closes_the_connection_before_a_byte_reaches_the_application() -> None:
    mesh = mesh_with(mode("STRICT"))
    decision = mesh.knock("http://10.0.0.2:9080/")
    assert (decision.status, decision.workload) == (0, "")
    assert mesh.workloads["details-v1"].received == []


@pytest.mark.parametrize("port", [9080, 7777])
def test_strict_covers_ports_that_nobody_declared(port: int) -> None:
    mesh = mesh_with(mode("STRICT"))
    assert mesh.knock(f"http://10.0.0.2:{port}/").status == 0
    assert mesh.knock(f"http://10.0.0.2:{port}/", identity=FRIEND, alpn=MESH_ALPN).status == 200


@pytest.mark.parametrize(
    "identity",
    [
        "spiffe://elsewhere.example/ns/default/sa/friend",
        "spiffe://cluster.local.evil.example/ns/default/sa/friend",
        "https://cluster.local/ns/default/sa/friend",
        "spiffe://cluster.localx/ns/default/sa/friend",
    ],
)
def test_a_certificate_of_another_trust_domain_is_refused(identity: str) -> None:
    mesh = mesh_with(mode("STRICT"))
    assert mesh.knock("http://10.0.0.2:9080/", identity=identity, alpn=MESH_ALPN).status == 0


def test_tls_without_a_certificate_is_refused_under_strict() -> None:
    assert mesh_with(mode("STRICT")).knock("http://10.0.0.2:9080/", tls=True, alpn=MESH_ALPN).status == 0


def test_an_alias_of_the_trust_domain_is_let_in() -> None:
    mesh = bookinfo(trustDomainAliases=["old.example"])
    mesh.apply(mode("STRICT"))
    old = "spiffe://old.example/ns/default/sa/friend"
    assert mesh.knock("http://10.0.0.2:9080/", identity=old, alpn=MESH_ALPN).status == 200


# The client's side


def test_a_workload_without_a_proxy_is_called_in_plain_text() -> None:
    mesh = bookinfo()
    mesh.workloads["details-v1"].mtls = False
    mesh.changed()
    decision = mesh.call("productpage-v1", DETAILS)
    assert (decision.workload, decision.mtls) == ("details-v1", False)
    assert decision.outbound.upstream_tls is None


def test_workloads_with_and_without_a_proxy_serve_side_by_side() -> None:
    mesh = bookinfo()
    mesh.workloads["reviews-v3"].mtls = False
    mesh.changed()
    seen = {}
    for number in range(40):
        decision = mesh.call(
            "productpage-v1", "http://reviews:9080/", random=number * 0x9E3779B97F4A7C15 % 2**64
        )
        seen[decision.workload] = decision.outbound.upstream_tls is not None
    assert seen == {"reviews-v1": True, "reviews-v2": True, "reviews-v3": False}


def test_the_client_demands_the_servers_own_identity() -> None:
    mesh = bookinfo()
    mesh.compiled("productpage-v1")
    proxy = mesh.proxy("productpage-v1")
    mesh.proxy("details-v1").identity = "spiffe://cluster.local/ns/default/sa/thief"
    decision = mesh.call("productpage-v1", DETAILS)
    assert proxy is mesh.proxy("productpage-v1")
    assert decision.status == 503
    assert decision.refused == "the client refuses the server's certificate"


def test_disable_in_a_rule_meets_strict_and_fails() -> None:
    # The classic mistake that Istio's documentation warns of: 503 after a DestinationRule.
    mesh = mesh_with(mode("STRICT"), rule("{mode: DISABLE}"))
    decision = mesh.call("productpage-v1", DETAILS)
    assert (decision.status, decision.mtls) == (503, False)
    assert "UF" in decision.outbound.flags


def test_disable_in_a_rule_is_plain_text_where_it_may() -> None:
    decision = mesh_with(rule("{mode: DISABLE}")).call("productpage-v1", DETAILS)
    assert (decision.status, decision.mtls) == (200, False)


def test_istio_mutual_in_a_rule_meets_disable_and_fails() -> None:
    mesh = mesh_with(mode("DISABLE"), rule("{mode: ISTIO_MUTUAL}"))
    assert mesh.call("productpage-v1", DETAILS).status == 503


def test_without_automatic_mtls_only_a_rule_encrypts() -> None:
    mesh = bookinfo(enableAutoMtls=False)
    assert not mesh.call("productpage-v1", DETAILS).mtls
    mesh.apply(rule("{mode: ISTIO_MUTUAL}"))
    assert mesh.call("productpage-v1", DETAILS).mtls


def test_a_subjects_name_in_a_rule_replaces_the_services_identities() -> None:
    name = "spiffe://cluster.local/ns/other/sa/special"
    mesh = mesh_with(rule(f"{{mode: ISTIO_MUTUAL, subjectAltNames: ['{name}']}}"))
    assert mesh.call("productpage-v1", DETAILS).status == 503


def test_tls_settings_of_a_subset_and_a_port_replace_the_services() -> None:
    mesh = bookinfo()
    mesh.apply("""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  trafficPolicy:
    tls: {mode: DISABLE}
    portLevelSettings: [{port: {number: 9080}, tls: {mode: ISTIO_MUTUAL}}]
  subsets:
  - {name: v1, labels: {version: v1}, trafficPolicy: {tls: {mode: DISABLE}}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - {match: [{uri: {prefix: /v1}}], route: [{destination: {host: reviews, subset: v1}}]}
  - {match: [{uri: {prefix: /v2}}], route: [{destination: {host: reviews, subset: v2}}]}
  - route: [{destination: {host: reviews}}]
""")
    assert mesh.call("productpage-v1", "http://reviews:9080/").mtls
    assert mesh.call("productpage-v1", "http://reviews:9080/v2").mtls
    assert not mesh.call("productpage-v1", "http://reviews:9080/v1").mtls


# Opaque ports


def database(*documents: str) -> Mesh:
    """Bookinfo with a database on 3306 and a port whose protocol nobody named."""
    mesh = bookinfo()
    mesh.add("mysql-1", service="mysqldb", port=Port("mysql", 3306))
    mesh.add("web-1", service="web", port=Port("web", 8080))
    for text in documents:
        mesh.apply(text)
    return mesh


def test_a_database_is_called_by_its_address_with_mutual_tls() -> None:
    decision = database(mode("STRICT")).call("ratings-v1", "tcp://mysqldb:3306")
    assert (decision.workload, decision.mtls) == ("mysql-1", True)
    assert decision.outbound.cluster == "outbound|3306||mysqldb.default.svc.cluster.local"
    assert decision.outbound.listener.startswith("240.240.0.")


@pytest.mark.parametrize(("value", "enters"), [("STRICT", False), ("PERMISSIVE", True), ("DISABLE", True)])
def test_a_database_takes_plain_bytes_as_its_mode_says(value: str, enters: bool) -> None:
    decision = database(mode(value)).knock("tcp://10.0.0.7:3306")
    assert (decision.workload == "mysql-1") == enters


@pytest.mark.parametrize("value", ["STRICT", "PERMISSIVE", "DISABLE"])
@pytest.mark.parametrize("scheme", ["http", "tcp"])
def test_a_port_without_a_name_is_sniffed_on_both_sides(value: str, scheme: str) -> None:
    decision = database(mode(value)).call("ratings-v1", f"{scheme}://web:8080")
    assert (decision.workload, decision.mtls) == ("web-1", value != "DISABLE")
    assert bool(decision.outbound.route) == (scheme == "http")


def test_the_applications_own_tls_passes_through_the_meshs() -> None:
    mesh = bookinfo()
    mesh.add("shop-1", service="shop", port=Port("https", 443))
    decision = mesh.call("productpage-v1", "https://shop")
    assert (decision.workload, decision.mtls) == ("shop-1", True)


def test_where_the_server_speaks_first_nobody_waits_for_the_client() -> None:
    # Without mutual TLS there is nothing to look at: a waiting inspector would hang every MySQL client.
    mesh = database(mode("DISABLE"))
    listener = mesh.proxy("mysql-1").table.listeners["virtualInbound"]
    assert inspected(listener, 3306) == (False, False)
    assert inspected(listener, 3307) == (True, True)
    outbound = mesh.proxy("ratings-v1")
    assert inspected(outbound.listener(("240.240.0.5", 3306)), 3306) == (False, False)
