"""Which stored version a document may replace."""

from __future__ import annotations

import pytest

from istiod.api.documents import manifest, parse_sources
from istiod.api.versions import replaceable, uid_of
from istiod.resources.document import Document, parse
from registry.model import ABSENT, Resource

STORED = Resource(
    "DestinationRule",
    "prod",
    "reviews",
    "networking.istio.io/v1",
    {"host": "reviews"},
    version="7",
    created=1_795_000_000.0,
)


def document(metadata: str) -> Document[object]:
    (found,) = parse(
        f"apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: reviews, namespace: prod{metadata}}}\n"
        "spec: {host: reviews, subsets: null}"
    ).documents
    return found


@pytest.mark.parametrize(
    ("metadata", "stored", "expected"),
    [
        ("", STORED, None),
        (", resourceVersion: '91823411'", None, ABSENT),
        (", resourceVersion: '91823411', uid: 0bf1d8a2-1111-2222-3333-444455556666", STORED, None),
        (f", resourceVersion: '7', uid: {uid_of(STORED)}", STORED, "7"),
        (f", resourceVersion: '6', uid: {uid_of(STORED)}", STORED, "6"),
        (", resourceVersion: '6'", STORED, "6"),
    ],
)
def test_only_a_version_that_was_read_here_binds(
    metadata: str, stored: Resource | None, expected: str | None
) -> None:
    assert replaceable(document(metadata), stored, unchanged=False) == expected


def test_a_document_that_changes_nothing_is_never_in_conflict() -> None:
    assert replaceable(document(", resourceVersion: '91823411'"), STORED, unchanged=True) is None


def test_a_resource_made_anew_has_another_uid() -> None:
    parts = {name: getattr(STORED, name) for name in STORED.__dataclass_fields__}
    assert uid_of(STORED) == uid_of(Resource(**parts | {"version": "9", "generation": 3}))
    assert uid_of(STORED) != uid_of(Resource(**parts | {"created": 1_795_000_001.0}))
    assert manifest(STORED)["metadata"]["uid"] == uid_of(STORED)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("\n---\n", "holds no resource of the mesh"),
        ("# nothing\n", "holds no resource of the mesh"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: x}", "holds no resource of the mesh"),
        ("apiVersion: v1\nkind: List\nitems: []", "holds no resource of the mesh"),
    ],
)
def test_a_text_without_resources_is_an_error(text: str, reason: str) -> None:
    (problem,) = parse_sources([("a.yaml", text)], "default").errors()
    assert str(problem) == f"a.yaml: {reason}"
