"""The metadata of a document: name, namespace, labels, annotations, and which version of it was read.

Rule: what an API server adds (`managedFields`, `uid`, …) is taken as kubectl takes it: accepted and not kept, so that
what `kubectl get -o yaml` printed can be applied.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from istiod.resources.kinds import nearest
from istiod.resources.problem import Problem, Severity

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
FIELDS = (
    "name",
    "namespace",
    "labels",
    "annotations",
    "resourceVersion",
    "uid",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "selfLink",
    "ownerReferences",
    "finalizers",
    "generateName",
    "clusterName",
    "initializers",
)
"""Kubernetes' ObjectMeta, the old fields too."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """What is kept of a document's metadata; `uid` and `version` say which stored resource it was read from."""

    name: str
    namespace: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    version: str
    uid: str


def read(value: object, where: str, default_namespace: str) -> tuple[Metadata | None, list[Problem]]:
    """The metadata, or None and why not."""
    if not isinstance(value, dict):
        return None, [Problem(Severity.ERROR, "metadata", "must be a mapping with a name", where)]
    name, namespace = value.get("name"), value.get("namespace")
    namespace = default_namespace if namespace is None else namespace
    labels, annotations = value.get("labels") or {}, value.get("annotations") or {}
    problems = [
        Problem(Severity.ERROR, path, message, where)
        for path, message in _problems(value, name, namespace, labels, annotations)
    ]
    if problems or not isinstance(name, str):
        return None, problems
    version, uid = value.get("resourceVersion"), value.get("uid")
    return (
        Metadata(
            name,
            namespace,
            labels,
            annotations,
            "" if version is None else str(version),
            "" if uid is None else str(uid),
        ),
        [],
    )


def _problems(
    value: Mapping[object, object], name: object, namespace: object, labels: object, annotations: object
) -> Iterator[tuple[str, str]]:
    for key in value:
        if key not in FIELDS:
            yield f"metadata.{key}", unknown_field(str(key), FIELDS)
    if not isinstance(name, str) or len(name) > 253 or not _NAME.fullmatch(name):
        yield "metadata.name", f"{name!r} must be lower case letters, digits, - and . (at most 253)"
    if not isinstance(namespace, str) or len(namespace) > 63 or not _NAMESPACE.fullmatch(namespace):
        yield "metadata.namespace", f"{namespace!r} must be lower case letters, digits and - (at most 63)"
    for part, entries in (("labels", labels), ("annotations", annotations)):
        if not isinstance(entries, dict) or not all(isinstance(entry, str) for entry in entries.values()):
            yield f"metadata.{part}", "must be a mapping of strings to strings (quote numbers and booleans)"


def unknown_field(key: str, known: tuple[str, ...] | list[str]) -> str:
    """The message for a field that does not exist, with the nearest one that does."""
    guess = nearest(key, known)
    return "unknown field" + (f"; did you mean {guess}?" if guess else "")
