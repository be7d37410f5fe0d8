"""Texts to resources and resources to manifests, for the admin API and for `meshctl validate` offline.

Job: parse several sources as one request (a resource may be named once in all of them), and the JSON form of
a stored resource.
Rule: no I/O, so that meshctl judges a file exactly as istiod will.
Not for: reading one text (`istiod.resources.parse`) or storing (`istiod.api.resources`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from istiod.api.versions import uid_of
from istiod.resources.document import Document, Parsed, parse
from istiod.resources.problem import Problem, Severity
from registry.model import Resource, ResourceKey


def parse_sources(sources: Iterable[tuple[str, str]], namespace: str) -> Parsed:
    """Parse (name, text) pairs as one; documents without a namespace get `namespace`."""
    documents: list[Document[Any]] = []
    problems: list[Problem] = []
    first: dict[ResourceKey, str] = {}
    for name, text in sources:
        parsed = parse(text, name, namespace)
        problems += parsed.problems
        if not parsed.documents and not parsed.errors():
            reason = "is empty" if not text.strip() else "holds no resource of the mesh"
            problems.append(Problem(Severity.ERROR, "", reason, name))
        for document in parsed.documents:
            key = document.resource.key
            if key in first:
                message = f"is there twice, first at {first[key]}"
                problems.append(
                    Problem(Severity.REFUSAL, "metadata.name", message, document.where, document.subject)
                )
                continue
            first[key] = document.where
            documents.append(document)
    return Parsed(tuple(documents), tuple(problems))


@dataclass(frozen=True)
class Finding:
    """What is wrong with a request: `where` names file, line and resource; `field` is a dotted path."""

    where: str
    field: str
    reason: str


def findings(problems: Sequence[Problem]) -> tuple[Finding, ...]:
    """The parser's problems in the API's shape."""
    return tuple(
        Finding(": ".join(filter(None, (problem.where, problem.subject))), problem.path, problem.message)
        for problem in problems
    )


def manifest(resource: Resource) -> dict[str, Any]:
    """A stored resource as the document a person would apply, with what the store knows in its metadata."""
    metadata: dict[str, Any] = {"name": resource.name, "namespace": resource.namespace}
    if resource.labels:
        metadata["labels"] = dict(resource.labels)
    if resource.annotations:
        metadata["annotations"] = dict(resource.annotations)
    if resource.version:
        metadata["resourceVersion"] = resource.version
        metadata["uid"] = uid_of(resource)
        metadata["generation"] = resource.generation
        metadata["creationTimestamp"] = iso(resource.created)
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": metadata,
        "spec": _plain(resource.spec),
    }


def same(stored: Resource, wanted: Resource) -> bool:
    """Whether applying `wanted` would change nothing."""
    return (
        stored.api_version == wanted.api_version
        and _plain(stored.spec) == _plain(wanted.spec)
        and dict(stored.labels) == dict(wanted.labels)
        and dict(stored.annotations) == dict(wanted.annotations)
    )


def iso(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
