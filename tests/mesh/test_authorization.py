"""AuthorizationPolicy as callers meet it, the tricks of FIELD-NOTES among them."""

from __future__ import annotations

import pytest

from registry.model import Port
from tests.mesh.bookinfo import bookinfo
from tests.mesh.simulation import Decision, Mesh

HEAD = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"
DETAILS = "http://details:9080"
DENIED = (403, b"RBAC: access denied")


def policy(spec: str, name: str = "p", namespace: str = "default", dry_run: bool = False) -> str:
    """A policy for details, unless the spec has a selector."""
    annotations = ", annotations: {istio.io/dry-run: 'true'}" if dry_run else ""
    selector = "" if "selector" in spec else "selector: {matchLabels: {app: details}}, "
    return (
        f"{HEAD}metadata: {{name: {name}, namespace: {namespace}{annotations}}}\nspec: {{{selector}{spec}}}"
    )


def mesh_with(*documents: str, **config: object) -> Mesh:
    """Bookinfo and a workload of another namespace, with these policies."""
    mesh = bookinfo(**config)
    mesh.add("stranger-v1", service="stranger", namespace="other")
    for text in documents:
        mesh.apply(text)
    return mesh


def enters(decision: Decision) -> bool:
    """Let in, or refused as a user sees a refusal; anything else is a broken test."""
    if decision.status == 200:
        return True
    assert (decision.status, decision.body) == DENIED, str(decision)
    return False


def test_only_the_named_principal_may_call() -> None:
    rule = "rules: [{from: [{source: {principals: ['cluster.local/ns/default/sa/bookinfo-productpage']}}]}]"
    mesh = mesh_with(policy(rule))
    assert enters(mesh.call("productpage-v1", DETAILS))
    refused = mesh.call("reviews-v1", DETAILS)
    assert (refused.status, refused.body) == DENIED
    assert refused.inbound.details == "rbac_access_denied_matched_policy[none]"
    assert enters(mesh.call("reviews-v1", "http://ratings:9080/")), "other services are open"


def test_a_plain_text_caller_has_no_principal() -> None:
    mesh = mesh_with(policy("rules: [{from: [{source: {principals: ['*']}}]}]"))
    assert enters(mesh.call("productpage-v1", DETAILS))
    assert not enters(mesh.knock("http://10.0.0.2:9080/"))


def test_an_empty_spec_denies_everything() -> None:
    mesh = mesh_with(f"{HEAD}metadata: {{name: allow-nothing}}\nspec: {{}}")
    for service in ("details", "ratings", "reviews"):
        assert not enters(mesh.call("productpage-v1", f"http://{service}:9080/"))


def test_namespaces_are_told_apart() -> None:
    mesh = mesh_with(policy("rules: [{from: [{source: {namespaces: [default]}}]}]"))
    assert enters(mesh.call("productpage-v1", DETAILS))
    assert not enters(mesh.call("stranger-v1", "http://details.default:9080/"))


def test_a_namespace_that_only_looks_alike_is_refused() -> None:
    mesh = mesh_with(policy("rules: [{from: [{source: {namespaces: [other]}}]}]"))
    assert enters(mesh.call("stranger-v1", "http://details.default:9080/"))
    mesh.add("twin-v1", service="twin", namespace="other2")
    assert not enters(mesh.call("twin-v1", "http://details.default:9080/"))


def test_deny_wins_over_allow() -> None:
    allow = policy("rules: [{}]", "allow")
    deny = policy("action: DENY, rules: [{from: [{source: {namespaces: [other]}}]}]", "deny")
    mesh = mesh_with(allow, deny)
    assert enters(mesh.call("productpage-v1", DETAILS))
    refused = mesh.call("stranger-v1", "http://details.default:9080/")
    assert refused.status == 403
    assert refused.inbound.details == "rbac_access_denied_matched_policy[ns[default]-policy[deny]-rule[0]]"


def test_a_dry_run_lets_in_and_notes_its_verdict() -> None:
    decision = mesh_with(policy("action: DENY, rules: [{}]", dry_run=True)).call("productpage-v1", DETAILS)
    assert enters(decision)
    assert decision.inbound.metadata is not None
    noted = decision.inbound.metadata["envoy.filters.http.rbac"]
    assert noted["istio_dry_run_deny_shadow_engine_result"] == "denied"


@pytest.mark.parametrize(
    ("method", "allowed"), [("GET", True), ("HEAD", True), ("POST", False), ("DELETE", False)]
)
def test_methods(method: str, allowed: bool) -> None:
    mesh = mesh_with(policy("rules: [{to: [{operation: {methods: [GET, HEAD]}}]}]"))
    assert enters(mesh.call("productpage-v1", DETAILS, method=method)) == allowed


TRICKS = [
    "/admin", "/admin/", "/admin/users", "/admin?x=1", "/admin#", "/x/../admin", "/./admin", "/a/b/../../admin",
    "/%61dmin", "/%2e/admin", "/x/%2e%2e/admin", "/x/%2E%2E/admin", "/x/.%2e/admin", "/x\\..\\admin",
    "/admin/%2e%2e/admin", "/public/../admin",
]  # fmt: skip
ONLY_MERGED = ["//admin", "/x/..//admin", "///admin//"]
ONLY_DECODED = ["/x%2F..%2Fadmin", "/%2fadmin", "/x%5c..%5cadmin", "/admin%2Fusers"]
DENY_ADMIN = "action: DENY, rules: [{to: [{operation: {paths: ['/admin', '/admin/*']}}]}]"


@pytest.mark.parametrize("path", TRICKS)
def test_no_spelling_of_the_path_gets_past_a_deny_rule(path: str) -> None:
    mesh = mesh_with(policy(DENY_ADMIN))
    decision = mesh.knock("http://10.0.0.2:9080/", raw_path=path)
    assert decision.status in (400, 403), decision
    assert mesh.workloads["details-v1"].received == []


@pytest.mark.parametrize("path", ONLY_MERGED)
def test_merging_slashes_closes_the_way_around_that_base_leaves(path: str) -> None:
    # Istio's default (BASE) does not merge slashes: its documentation asks for MERGE_SLASHES where it matters.
    plain = mesh_with(policy(DENY_ADMIN)).knock("http://10.0.0.2:9080/", raw_path=path)
    assert plain.status == 200
    merged = mesh_with(policy(DENY_ADMIN), pathNormalization={"normalization": "MERGE_SLASHES"})
    assert merged.knock("http://10.0.0.2:9080/", raw_path=path).status == 403


@pytest.mark.parametrize("path", ONLY_DECODED)
def test_decoding_slashes_closes_the_rest(path: str) -> None:
    mesh = mesh_with(policy(DENY_ADMIN), pathNormalization={"normalization": "DECODE_AND_MERGE_SLASHES"})
    decision = mesh.knock("http://10.0.0.2:9080/", raw_path=path)
    assert decision.status == 403, decision


@pytest.mark.parametrize("path", TRICKS[1:])
def test_what_is_allowed_is_also_what_the_application_gets(path: str) -> None:
    # Judged and forwarded path are the same, so an ALLOW rule cannot be talked around either.
    mesh = mesh_with(policy("rules: [{to: [{operation: {paths: ['/public/*']}}]}]"))
    decision = mesh.knock("http://10.0.0.2:9080/", raw_path=path)
    if decision.received is not None:
        assert decision.received.path.startswith(b"/public/")
        assert b".." not in decision.received.path


DENY_HOST = "action: DENY, rules: [{to: [{operation: {hosts: [secret.example]}}]}]"


@pytest.mark.parametrize("host", ["secret.example", "SECRET.example", "Secret.Example"])
def test_the_case_of_a_host_does_not_matter(host: str) -> None:
    assert not enters(mesh_with(policy(DENY_HOST)).knock("http://10.0.0.2:9080/", host=host))


@pytest.mark.parametrize("host", ["secret.example:9080", "SECRET.EXAMPLE:9080"])
def test_a_port_in_the_host_needs_its_own_value_as_in_istio(host: str) -> None:
    # https://istio.io/latest/docs/ops/best-practices/security/#customize-your-system-on-host-matching
    both = DENY_HOST.replace("[secret.example]", "[secret.example, 'secret.example:*']")
    assert not enters(mesh_with(policy(both)).knock("http://10.0.0.2:9080/", host=host))


@pytest.mark.parametrize(
    ("condition", "headers", "allowed"),
    [
        ("{key: 'request.headers[x-role]', values: [admin]}", {"x-role": "admin"}, True),
        ("{key: 'request.headers[x-role]', values: [admin]}", {"x-role": "Admin"}, False),
        ("{key: 'request.headers[x-role]', values: [admin]}", {}, False),
        ("{key: 'request.headers[x-role]', notValues: [guest]}", {}, True),
        ("{key: 'request.headers[x-role]', notValues: [guest]}", {"x-role": "guest"}, False),
        ("{key: source.ip, values: ['192.0.2.0/24']}", {}, True),
        ("{key: source.ip, values: ['198.51.100.0/24']}", {}, False),
        ("{key: source.ip, values: ['198.51.100.0/24']}", {"x-forwarded-for": "198.51.100.7"}, False),
        ("{key: remote.ip, values: ['198.51.100.0/24']}", {"x-forwarded-for": "198.51.100.7"}, True),
        ("{key: destination.port, values: ['9080']}", {}, True),
        ("{key: destination.port, values: ['80']}", {}, False),
        ("{key: destination.ip, values: ['10.0.0.0/24']}", {}, True),
    ],
)
def test_conditions(condition: str, headers: dict[str, str], allowed: bool) -> None:
    mesh = mesh_with(policy(f"rules: [{{when: [{condition}]}}]"))
    assert enters(mesh.knock("http://10.0.0.2:9080/", headers=headers)) == allowed


def test_a_header_named_hop_by_hop_does_not_reach_the_policy() -> None:
    # `Connection: x-role` takes the field away: then the request must count as one without it.
    mesh = mesh_with(
        policy("action: DENY, rules: [{when: [{key: 'request.headers[x-role]', notValues: [admin]}]}]")
    )
    headers = {"connection": "x-role", "x-role": "admin"}
    assert not enters(mesh.knock("http://10.0.0.2:9080/", headers=headers))


@pytest.mark.parametrize(
    ("rule", "port", "allowed"),
    [
        ("rules: [{from: [{source: {principals: ['*/sa/bookinfo-ratings']}}]}]", 3306, True),
        ("rules: [{from: [{source: {principals: ['*/sa/bookinfo-details']}}]}]", 3306, False),
        ("rules: [{to: [{operation: {ports: ['3306']}}]}]", 3306, True),
        ("rules: [{to: [{operation: {methods: [GET]}}]}]", 3306, False),
        ("action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ['3306']}}]}]", 3306, False),
        ("action: DENY, rules: [{to: [{operation: {ports: ['3307']}}]}]", 3306, True),
    ],
)
def test_opaque_connections_are_judged_on_the_safe_side(rule: str, port: int, allowed: bool) -> None:
    mesh = bookinfo()
    mesh.add("mysql-1", service="mysqldb", port=Port("mysql", port), labels={"app": "details"})
    mesh.apply(policy(rule))
    decision = mesh.call("ratings-v1", f"tcp://mysqldb:{port}")
    assert (decision.workload == "mysql-1") == allowed


def test_a_policy_of_the_root_namespace_holds_everywhere() -> None:
    spec = "selector: {}, action: DENY, rules: [{to: [{operation: {paths: [/metrics]}}]}]"
    mesh = mesh_with(policy(spec, namespace="istio-system"))
    for service in ("details", "ratings"):
        assert not enters(mesh.call("productpage-v1", f"http://{service}:9080/metrics"))
        assert enters(mesh.call("productpage-v1", f"http://{service}:9080/"))
