"""PeerAuthentication and AuthorizationPolicy: who gets in."""
# ruff: noqa: E501 - a resource is easier to read on one line

from __future__ import annotations

import pytest

from tests.mesh.world import World

PAGE = "productpage-v1"
SEC = "apiVersion: security.istio.io/v1"
ISTIO_HTTP = ("istio-http/1.1", "istio", "http/1.1")
REVIEWS_SA = "spiffe://cluster.local/ns/default/sa/bookinfo-productpage"


def authentication(spec: str, name: str = "default", namespace: str = "default") -> str:
    return (
        f"{SEC}\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}"
    )


def policy(spec: str, name: str = "p", namespace: str = "default", annotations: str = "{}") -> str:
    head = f"{SEC}\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}, annotations: {annotations}}}"
    return f"{head}\nspec: {spec}"


STRICT, DISABLE = authentication("{mtls: {mode: STRICT}}"), authentication("{mtls: {mode: DISABLE}}")


def test_both_plain_and_mutual_tls_enter_by_default() -> None:
    world = World()
    assert world.stranger("reviews-v1").inbound_cluster == "inbound|9080||"
    assert (
        world.stranger("reviews-v1", tls=ISTIO_HTTP, identity=REVIEWS_SA).inbound_cluster == "inbound|9080||"
    )
    assert world.http(PAGE, "http://reviews:9080/").tls == "mtls"


def test_under_strict_plain_text_is_refused_on_every_port() -> None:
    world = World(STRICT)
    for port in (9080, 12345):
        assert world.stranger("reviews-v1", port).closed == "reviews-v1: no filter chain"
    assert world.stranger("reviews-v1", tls=ISTIO_HTTP).closed == "reviews-v1: client certificate required"
    assert world.http(PAGE, "http://reviews:9080/").inbound_cluster == "inbound|9080||"
    assert world.tcp("ratings-v1", "mysqldb", 3306).inbound_cluster == "inbound|3306||"


def test_disable_takes_plain_text_only_and_callers_know() -> None:
    world = World(DISABLE)
    call = world.http(PAGE, "http://reviews:9080/")
    assert (call.tls, call.inbound_cluster) == ("plain", "inbound|9080||")
    assert world.tcp("ratings-v1", "mysqldb", 3306).inbound_cluster == "inbound|3306||"
    assert world.tcp(PAGE, "web", 8080).inbound_cluster == "inbound|8080||"


def test_narrower_modes_win() -> None:
    world = World(
        authentication("{mtls: {mode: STRICT}}", namespace="istio-system"),
        authentication("{mtls: {mode: PERMISSIVE}}"),
        authentication("{selector: {matchLabels: {app: ratings}}, mtls: {mode: STRICT}}", "ratings"),
        authentication(
            "{selector: {matchLabels: {app: details}}, mtls: {mode: UNSET}, portLevelMtls: {'9080': {mode: STRICT}}}",
            "details",
        ),
    )
    assert world.stranger("reviews-v1").closed == ""
    assert world.stranger("ratings-v1").closed == "ratings-v1: no filter chain"
    assert world.stranger("details-v1").closed == "details-v1: no filter chain"
    assert world.stranger("details-v1", 9999).closed == ""


def test_a_mesh_wide_mode_holds_where_nothing_else_does() -> None:
    world = World(authentication("{mtls: {mode: STRICT}}", namespace="istio-system"))
    assert world.stranger("reviews-v1").closed == "reviews-v1: no filter chain"


def test_tls_of_the_application_passes_a_permissive_opaque_port() -> None:
    world = World()
    call = world.stranger("mysqldb-v1", 3306, tls=("mysql",))
    assert (call.closed, call.inbound_cluster) == ("", "inbound|3306||")


def test_the_proxys_own_ports_cannot_be_called() -> None:
    world = World()
    assert world.stranger("reviews-v1", 15006).inbound_cluster == "BlackHoleCluster"
    assert world.tcp(PAGE, "10.0.0.1", 15001).cluster == "BlackHoleCluster"


ALLOW_PAGE = policy(
    "{selector: {matchLabels: {app: reviews}}, rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/bookinfo-productpage]}}], to: [{operation: {methods: [GET]}}]}]}"
)


def test_only_the_allowed_identity_and_method_enter() -> None:
    world = World(ALLOW_PAGE)
    assert world.http(PAGE, "http://reviews:9080/").status is None
    refused = world.http(PAGE, "http://reviews:9080/", "POST")
    assert (refused.status, refused.details) == (403, "rbac_access_denied_matched_policy[none]")
    assert world.http("ratings-v1", "http://reviews:9080/").status == 403
    assert world.stranger("reviews-v1").status == 403
    assert world.http("ratings-v1", "http://details:9080/").status is None


def test_deny_comes_before_allow() -> None:
    deny = policy(
        "{action: DENY, selector: {matchLabels: {app: reviews}}, rules: [{to: [{operation: {paths: ['/admin*']}}]}]}",
        "deny",
    )
    world = World(ALLOW_PAGE, deny)
    assert world.http(PAGE, "http://reviews:9080/x").status is None
    refused = world.http(PAGE, "http://reviews:9080/admin/1")
    assert refused.details == "rbac_access_denied_matched_policy[ns[default]-policy[deny]-rule[0]]"


def test_an_empty_allow_policy_lets_nobody_in() -> None:
    world = World(policy("{}"))
    assert world.http(PAGE, "http://reviews:9080/").status == 403
    assert world.tcp("ratings-v1", "mysqldb", 3306).closed == "mysqldb-v1: refused by policy"


def test_a_rule_without_conditions_lets_everybody_in() -> None:
    assert World(policy("{rules: [{}]}")).stranger("reviews-v1").status is None


@pytest.mark.parametrize(
    ("rules", "enters"),
    [
        ("[{from: [{source: {namespaces: [default]}}]}]", True),
        ("[{from: [{source: {namespaces: [other]}}]}]", False),
        ("[{from: [{source: {notNamespaces: [other]}}]}]", True),
        ("[{from: [{source: {serviceAccounts: [bookinfo-productpage]}}]}]", True),
        ("[{from: [{source: {serviceAccounts: [prod/bookinfo-productpage]}}]}]", False),
        ("[{from: [{source: {principals: ['*']}}]}]", True),
        ("[{from: [{source: {principals: ['*/sa/bookinfo-productpage']}}]}]", True),
        ("[{from: [{source: {trustDomains: [cluster.local]}}]}]", True),
        ("[{from: [{source: {ipBlocks: [10.0.0.0/24]}}]}]", True),
        ("[{from: [{source: {notIpBlocks: [10.0.0.0/24]}}]}]", False),
        ("[{to: [{operation: {hosts: ['REVIEWS:9080']}}]}]", True),
        ("[{to: [{operation: {ports: ['9080']}}]}]", True),
        ("[{to: [{operation: {notPorts: ['9080']}}]}]", False),
        ("[{to: [{operation: {paths: ['/a/{*}/c']}}]}]", True),
        ("[{to: [{operation: {paths: ['/a/{*}']}}]}]", False),
        ("[{to: [{operation: {paths: ['/a/{**}']}}]}]", True),
        ("[{to: [{operation: {paths: ['*/c']}}]}]", True),
        ("[{when: [{key: 'request.headers[x-role]', values: [admin]}]}]", True),
        ("[{when: [{key: 'request.headers[x-role]', notValues: [admin]}]}]", False),
        ("[{when: [{key: destination.port, values: ['9080']}]}]", True),
        ("[{when: [{key: source.namespace, values: [def*]}]}]", True),
        ("[{when: [{key: request.auth.principal, values: ['*']}]}]", False),
        ("[{from: [{source: {namespaces: [other]}}]}, {from: [{source: {namespaces: [default]}}]}]", True),
        ("[{from: [{source: {namespaces: [default]}}], to: [{operation: {methods: [PUT]}}]}]", False),
    ],
)
def test_a_rule_decides(rules: str, enters: bool) -> None:
    world = World(policy(f"{{rules: {rules}}}"))
    call = world.http(PAGE, "http://reviews:9080/a/b/c?x=1", headers={"x-role": "admin"})
    assert (call.status is None) == enters


def test_on_opaque_ports_http_conditions_err_on_the_safe_side() -> None:
    allow = policy("{rules: [{to: [{operation: {methods: [GET]}}]}]}")
    assert World(allow).tcp("ratings-v1", "mysqldb", 3306).closed == "mysqldb-v1: refused by policy"
    deny = policy("{action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ['3306']}}]}]}")
    assert World(deny).tcp("ratings-v1", "mysqldb", 3306).closed == "mysqldb-v1: refused by policy"
    plain = policy("{rules: [{from: [{source: {namespaces: [default]}}]}]}")
    assert World(plain).tcp("ratings-v1", "mysqldb", 3306).closed == ""


def test_policies_of_the_root_namespace_hold_everywhere() -> None:
    world = World(
        policy(
            "{action: DENY, rules: [{from: [{source: {namespaces: [default]}}]}]}", namespace="istio-system"
        )
    )
    assert world.http(PAGE, "http://reviews:9080/").status == 403


def test_a_dry_run_refuses_nobody() -> None:
    dry = policy("{action: DENY, rules: [{}]}", annotations="{istio.io/dry-run: 'true'}")
    assert World(dry).http(PAGE, "http://reviews:9080/").status is None


def test_old_and_new_trust_domains_mean_the_same() -> None:
    allow = policy(
        "{rules: [{from: [{source: {principals: [old.example/ns/default/sa/bookinfo-productpage]}}]}]}"
    )
    assert World(allow).http(PAGE, "http://reviews:9080/").status == 403
    migrated = World(allow, mesh={"trustDomainAliases": ["old.example"]})
    assert migrated.http(PAGE, "http://reviews:9080/").status is None
