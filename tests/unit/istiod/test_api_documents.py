"""Requests with documents: one resource once, problems by place and field, manifests that can be applied."""

from __future__ import annotations

from typing import Any

import pytest

from istiod.admin_context import AdminContext, ContextError
from istiod.api.body import member
from istiod.api.documents import findings, manifest, parse_sources, same
from istiod.api.errors import ApiError
from registry.model import Resource

RULE = """
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: {name: reviews, labels: {team: a}}
spec: {host: reviews}
"""


def test_a_resource_may_be_named_once_in_all_sources() -> None:
    parsed = parse_sources([("a.yaml", RULE), ("b.yaml", RULE)], "default")
    assert len(parsed.documents) == 1
    assert not parsed.errors(), "validate accepts alternatives that lie side by side"
    (problem,) = findings(parsed.blocking())
    assert problem.where == "b.yaml:2: DestinationRule default/reviews"
    assert "first at a.yaml:2" in problem.reason


def test_a_manifest_says_what_was_applied() -> None:
    (document,) = parse_sources([("a.yaml", RULE)], "prod").documents
    shown = manifest(document.resource)
    assert shown == {
        "apiVersion": "networking.istio.io/v1beta1",
        "kind": "DestinationRule",
        "metadata": {"name": "reviews", "namespace": "prod", "labels": {"team": "a"}},
        "spec": {"host": "reviews"},
    }
    stored = Resource(
        **{**_parts(document.resource), "version": "7", "generation": 2, "created": 1_795_000_000.0}
    )
    metadata = manifest(stored)["metadata"]
    assert metadata["resourceVersion"] == "7"
    assert metadata["creationTimestamp"] == "2026-11-18T11:06:40+00:00"
    assert same(stored, document.resource)
    assert not same(stored, Resource(**{**_parts(document.resource), "labels": {}}))


def _parts(resource: Resource) -> dict[str, Any]:
    return {name: getattr(resource, name) for name in resource.__dataclass_fields__}


@pytest.mark.parametrize(
    ("body", "path", "kind"),
    [
        ({}, "timeoutSeconds", float),
        ({"a": True}, "a", int),
        ({"a": "1"}, "a", int),
        ({"a": 1}, "x[0].a", str),
    ],
)
def test_a_wrong_field_is_refused_by_its_path(body: dict[str, Any], path: str, kind: type) -> None:
    with pytest.raises(ApiError) as refusal:
        member(body, path, kind)
    assert refusal.value.status == 400
    assert refusal.value.details[0].field == path


def test_a_whole_number_is_a_number_too() -> None:
    assert member({"a": 3}, "a", float) == 3.0


def test_a_context_survives_its_file() -> None:
    context = AdminContext("https://127.0.0.1:8443", "CA\n", "CERT\n", "KEY\n")
    assert AdminContext.from_yaml(context.to_yaml(), "x") == context


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "not YAML"),
        ("kind: Other", "not a hostmesh admin context"),
        ("kind: AdminContext\napiVersion: hostmesh/v9", "apiVersion"),
        ("kind: AdminContext\napiVersion: hostmesh/v1\naddress: https://x", "certificateAuthority"),
    ],
)
def test_a_damaged_context_says_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(ContextError, match=said):
        AdminContext.from_yaml(text, "context.yaml")
