"""AuthorizationPolicy against the RBAC filters that Istio itself makes of the same policies."""
# ruff: noqa: E501 - a resource is easier to read on one line

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2
from google.protobuf.json_format import MessageToDict

from istiod.compile.authorization import http_filters, policies_of, tcp_filters
from istiod.resources.document import parse
from istiod.resources.mesh_config import MeshConfig, mesh_config
from istiod.snapshot import build

CASES = Path(__file__).parents[4] / "shared" / "cases" / "authz"
SEGMENT = r"[a-zA-Z0-9-._~%!$&'()*+,;:@=]+"
# Istio's own tests made these with more than one trust domain.
MESHES = {
    "simple-policy-principal-with-wildcard": mesh_config(
        {"trustDomain": "td1", "trustDomainAliases": ["foobar"]}
    )
}


def compiled(name: str, policy: str, *, tcp: bool = False) -> list[Any]:
    parsed = parse(policy)
    mesh = MESHES.get(name, MeshConfig())
    snapshot = build((), (), [document.resource for document in parsed.documents], mesh)
    policies = policies_of(snapshot, "foo", {"app": "httpbin", "version": "v1"})
    return list(tcp_filters(policies, mesh) if tcp else http_filters(policies, mesh))


def verdict(tree: Any) -> Any:
    """What a rule tree decides, without the order of and/or, and with path templates as expressions."""
    if isinstance(tree, dict):
        if "uriTemplate" in tree:
            template = tree["uriTemplate"]["typedConfig"]["pathTemplate"]
            segments = {"*": SEGMENT, "**": f"({SEGMENT}(/{SEGMENT})*/?)?"}
            parts = [segments.get(part, part) for part in template[1:].split("/")]
            return {"urlPath": {"path": {"safeRegex": {"regex": "/" + "/".join(parts)}}}}
        return {key: verdict(value) for key, value in tree.items() if key != "shadowRulesStatPrefix"}
    if isinstance(tree, list):
        return sorted((verdict(item) for item in tree), key=repr)
    # Escapes that change nothing.
    return re.sub(r"\\([-/_])", r"\1", tree) if isinstance(tree, str) else tree


@pytest.mark.parametrize(
    "name", sorted(path.name.removesuffix("-in.yaml") for path in CASES.glob("*-in.yaml"))
)
def test_a_policy_becomes_the_filter_that_istio_makes_of_it(name: str) -> None:
    (made,) = compiled(name, (CASES / f"{name}-in.yaml").read_text())
    config = rbac_pb2.RBAC.FromString(made.typed_config.value)
    expected = yaml.safe_load((CASES / f"{name}-out.yaml").read_text())
    assert made.name == expected["name"]
    wanted = {key: value for key, value in expected["typedConfig"].items() if key != "@type"}
    assert verdict(MessageToDict(config)) == verdict(wanted)


def test_audit_comes_before_deny_and_deny_before_allow() -> None:
    head = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {namespace: foo, name: %s}\nspec: {action: %s, rules: [{}]}"
    text = "\n---\n".join(head % (action.lower(), action) for action in ("ALLOW", "DENY", "AUDIT"))
    configs = [rbac_pb2.RBAC.FromString(made.typed_config.value) for made in compiled("", text)]
    actions = [config.rules.Action.Name(config.rules.action) for config in configs]
    assert actions == ["LOG", "DENY", "ALLOW"]


def test_a_rule_that_needs_http_is_void_on_tcp_when_it_allows() -> None:
    text = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: foo, name: x}
spec:
  rules:
  - {to: [{operation: {methods: [GET]}}]}
  - {from: [{source: {namespaces: [foo]}}]}
"""
    (made,) = compiled("", text, tcp=True)
    assert made.name == "envoy.filters.network.rbac"
    assert b"rule[1]" in made.typed_config.value
    assert b"rule[0]" not in made.typed_config.value
