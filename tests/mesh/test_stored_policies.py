"""Policies that an older version stored: an upgrade must not take the protection away."""

from __future__ import annotations

from typing import Any

import pytest

from registry.model import Resource, ResourceKey
from tests.mesh.simulation import Mesh

AUTHORIZATION, PEERS = "AuthorizationPolicy", "PeerAuthentication"


def policy(kind: str, spec: dict[str, Any], name: str = "old", namespace: str = "default") -> Resource:
    return Resource(kind, namespace, name, "security.istio.io/v1", spec)


@pytest.fixture
def mesh() -> Mesh:
    made = Mesh()
    made.add("web", service="web", labels={"app": "web"})
    made.add("api", service="api", labels={"app": "api"})
    made.add("far", service="far", labels={"app": "far"}, namespace="other")
    return made


def status(mesh: Mesh, host: str, path: str = "/") -> int:
    return mesh.call("web", f"http://{host}:9080{path}").status


def takes_plain_text(mesh: Mesh, name: str) -> bool:
    return mesh.knock(f"http://{mesh.workloads[name].address}:9080/").status == 200


API = {"selector": {"matchLabels": {"app": "api"}}}
UNKNOWN_FIELD: dict[str, Any] = {"rules": [{"form": []}]}


def test_a_policy_that_would_be_refused_today_is_still_enforced(mesh: Mesh) -> None:
    """A DENY by paths, with a source that has both accounts and namespaces, and another rule without values."""
    broken = {"from": [{"source": {"serviceAccounts": ["x"], "namespaces": ["y"]}}]}
    spec = {**API, "action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/admin"]}}]}, broken]}
    mesh.hold(policy(AUTHORIZATION, spec))
    assert (status(mesh, "api", "/admin"), status(mesh, "api")) == (403, 200)


def test_a_bound_that_a_stored_policy_exceeds_does_not_change_it(mesh: Mesh) -> None:
    accounts = [f"account-{number}" for number in range(20)]
    rule = {"from": [{"source": {"serviceAccounts": accounts}}], "to": [{"operation": {"paths": ["/"]}}]}
    mesh.hold(policy(AUTHORIZATION, {**API, "rules": [rule]}))
    assert (status(mesh, "api"), status(mesh, "far.other")) == (403, 200)
    mesh.workloads["web"].service_account = "account-19"
    mesh.changed()
    assert status(mesh, "api") == 200


@pytest.mark.parametrize(
    "rule",
    [
        {"from": [{"source": {"ipBlocks": ["10.0.0.300"]}}]},
        {"to": [{"operation": {"ports": ["http"]}}]},
        {"when": [{"key": "request.unheard", "values": ["x"]}]},
        {"when": [{"key": "source.namespace"}]},
    ],
)
def test_a_rule_that_cannot_be_compiled_errs_on_the_safe_side(mesh: Mesh, rule: dict[str, Any]) -> None:
    mesh.hold(policy(AUTHORIZATION, {**API, "rules": [rule]}))
    assert status(mesh, "api") == 403, "it allows nothing"
    mesh.hold(policy(AUTHORIZATION, {**API, "action": "DENY", "rules": [rule]}))
    assert status(mesh, "api") == 403, "it denies everything"
    assert status(mesh, "far.other") == 200
    assert not mesh.compiled("api").failures


@pytest.mark.parametrize("spec", [UNKNOWN_FIELD, {"action": "deny"}, {"rules": {"from": 1}}, {"rules": [7]}])
def test_a_policy_that_cannot_be_read_denies_what_it_selects(mesh: Mesh, spec: dict[str, Any]) -> None:
    mesh.add("db", service="db", labels={"app": "db"})
    mesh.hold(policy(AUTHORIZATION, {**API, **spec}), policy(AUTHORIZATION, {"rules": [{}]}, "all"))
    assert status(mesh, "api") == 403
    assert (status(mesh, "db"), status(mesh, "far.other")) == (200, 200)


@pytest.mark.parametrize("selector", [{}, {"selector": "api"}, {"selector": {"labels": {"app": "far"}}}])
def test_without_a_selector_that_can_be_read_the_namespace_is_closed(
    mesh: Mesh, selector: dict[str, Any]
) -> None:
    mesh.hold(policy(AUTHORIZATION, {**selector, **UNKNOWN_FIELD}))
    assert (status(mesh, "api"), status(mesh, "far.other")) == (403, 200)


def test_in_the_root_namespace_it_closes_the_mesh(mesh: Mesh) -> None:
    mesh.hold(policy(AUTHORIZATION, UNKNOWN_FIELD, namespace="istio-system"))
    assert (status(mesh, "api"), status(mesh, "far.other")) == (403, 403)


def test_a_policy_that_was_only_tried_out_is_not_enforced_when_it_cannot_be_read(mesh: Mesh) -> None:
    tried = policy(AUTHORIZATION, UNKNOWN_FIELD)
    mesh.hold(Resource(*tried.key, tried.api_version, tried.spec, annotations={"istio.io/dry-run": "true"}))
    assert status(mesh, "api") == 200


def test_a_mended_policy_opens_again(mesh: Mesh) -> None:
    mesh.hold(policy(AUTHORIZATION, UNKNOWN_FIELD))
    assert status(mesh, "api") == 403
    mesh.hold(policy(AUTHORIZATION, {"rules": [{}]}))
    assert status(mesh, "api") == 200


def test_peer_authentication_that_would_be_refused_today_is_still_strict(mesh: Mesh) -> None:
    mesh.hold(policy(PEERS, {"mtls": {"mode": "STRICT"}, "portLevelMtls": {"99999999": {"mode": "DISABLE"}}}))
    assert not takes_plain_text(mesh, "api")
    assert takes_plain_text(mesh, "far")


def test_peer_authentication_that_cannot_be_read_is_strict(mesh: Mesh) -> None:
    mesh.hold(policy(PEERS, {**API, "mtls": {"mode": "strict"}}))
    assert not takes_plain_text(mesh, "api")
    assert takes_plain_text(mesh, "web")
    assert status(mesh, "api") == 200, "callers with certificates are served"


@pytest.mark.parametrize("namespace", ["default", "istio-system"])
def test_peer_authentication_with_an_unknown_selector_comes_before_all_others_of_its_namespace(
    mesh: Mesh, namespace: str
) -> None:
    mesh.hold(
        policy(PEERS, {"mtls": {"mode": "PERMISSIVE"}}, "wide", namespace),
        policy(PEERS, {**API, "mtls": {"mode": "DISABLE"}}, "narrow", namespace),
        policy(PEERS, {"selector": 7, "mtls": {"mode": "STRICT"}}, "odd", namespace),
    )
    assert not takes_plain_text(mesh, "api")
    assert takes_plain_text(mesh, "far") is (namespace == "default")


def test_damaged_rows_of_policies_close_their_namespace(mesh: Mesh) -> None:
    mesh.damaged = (ResourceKey(AUTHORIZATION, "default", "lost"), ResourceKey(PEERS, "other", "lost"))
    mesh.changed()
    assert (status(mesh, "api"), status(mesh, "far.other")) == (403, 200)
    assert not takes_plain_text(mesh, "far")
    mesh.hold(policy(AUTHORIZATION, {"rules": [{}]}, "lost"))
    assert status(mesh, "api") == 200, "written anew"
