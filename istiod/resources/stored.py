"""Stored resources as typed ones: what can be read is used as it stands, policies that cannot be read fail closed.

Rule: rules and bounds are for those who apply a document. One that an older version stored before they were made
stays in effect and is named in a warning. What has no reading (its structure, types, unknown words) is left out; but
of a policy, which protects by being there, a stand-in closes what it selects.
Not for: what is being applied (`document.parse`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from pydantic import ValidationError
from pydantic_core import SchemaValidator

from istiod.resources.document import Document, effect_of, findings_of, of_metadata, unreadable
from istiod.resources.kinds import KINDS, Kind
from istiod.resources.problem import Problem, Severity
from istiod.resources.schema import Spec
from istiod.resources.selector import selector_labels
from registry.model import Resource, ResourceKey

_BOUNDS = frozenset(("ge", "le", "gt", "lt", "min_length", "max_length"))
_BOUNDED = frozenset(("int", "float", "str", "tuple", "dict"))
_OUT_OF_BOUNDS = frozenset(
    (
        "greater_than_equal",
        "less_than_equal",
        "greater_than",
        "less_than",
        "string_too_short",
        "string_too_long",
        "too_short",
        "too_long",
    )
)

_CLOSED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "AuthorizationPolicy": ({"action": "DENY", "rules": [{}]}, "all calls are denied"),
    "PeerAuthentication": ({"mtls": {"mode": "STRICT"}}, "mutual TLS is STRICT"),
}
"""The spec of the stand-in and what it does. A RequestAuthentication has none: no token counts in this version, so that
what needs one is closed with it and without it."""
_REACH = ("selector", "targetRef", "targetRefs", "target_ref", "target_refs")


@dataclass(frozen=True, slots=True)
class Stored:
    """What becomes of a stored resource. `document` is None when it is left out."""

    document: Document[Any] | None
    problems: tuple[Problem, ...] = ()


def stored(resource: Resource) -> Stored:
    """The typed form of a stored resource. Never raises."""
    kind = KINDS.get(resource.kind)
    subject = str(resource.key)
    if kind is None:
        reason = f"unknown kind {resource.kind!r}, left out"
        return Stored(None, (Problem(Severity.ERROR, "kind", reason, subject=subject),))
    try:
        spec, problems = _read(kind, resource.spec, subject)
        if spec is not None:
            rules = of_metadata(kind, spec, resource)
            problems += [Problem(Severity.ERROR, path, reason, subject=subject) for path, reason in rules]
            problems += effect_of(kind, "", subject)
    except Exception as error:
        # A value that passed its own checks and still cannot be used: a defect, kept to that value.
        reason = f"cannot be used: {type(error).__name__}: {error}"
        spec, problems = None, [Problem(Severity.ERROR, "", reason, subject=subject)]
    if spec is not None:
        broken = [one for one in problems if one.severity is not Severity.WARNING]
        return Stored(Document(resource, spec), tuple(map(_tolerated, broken)))
    return closed(resource, tuple(problems))


def closed(resource: Resource, problems: tuple[Problem, ...] = ()) -> Stored:
    """What stands in for a resource that cannot be read: nothing, or of a policy one that closes what it selects."""
    if resource.kind not in _CLOSED:
        return Stored(None, tuple(replace(one, message=f"{one.message}; left out") for one in problems))
    spec, effect = _CLOSED[resource.kind]
    raw = resource.spec if isinstance(resource.spec, Mapping) else {}
    reach = {name: raw[name] for name in _REACH if name in raw}
    model = KINDS[resource.kind].model
    known = True
    try:
        made = model.model_validate({**spec, **reach})
        spec = {**spec, **reach}
    except Exception:
        made, known = model.model_validate(spec), False
    labels = ", ".join(f"{key}={value}" for key, value in sorted(selector_labels(made).items()))
    where = (
        f"workloads with {labels}"
        if labels
        else "all workloads of its namespace (of the root namespace: the mesh)"
    )
    message = f"cannot be read: {effect} for {where} until it is mended or deleted"
    loud = Problem(Severity.ERROR, "", message, subject=str(resource.key))
    document = Document(replace(resource, spec=spec), made, reach_unknown=not known)
    return Stored(document, (loud, *problems))


def damaged(key: ResourceKey) -> Stored:
    """What stands in for a damaged row, of which the key alone is known."""
    kind = KINDS.get(key.kind)
    if kind is None or key.kind not in _CLOSED:
        return Stored(None)
    # A selector that nobody can read; created first, for it may have been.
    return closed(Resource(*key, kind.api_version, {"selector": "damaged"}))


def _read(kind: Kind, raw: object, subject: str) -> tuple[Spec | None, list[Problem]]:
    try:
        model = kind.model.model_validate(raw)
    except ValidationError as failure:
        problems = unreadable(kind, failure, "", subject)
        if any(error["type"] not in _OUT_OF_BOUNDS for error in failure.errors()):
            return None, problems
        unbound: Spec = _without_bounds(kind.model).validate_python(raw)
        return unbound, [*problems, *findings_of(unbound, "", subject)]
    return model, findings_of(model, "", subject)


def _tolerated(problem: Problem) -> Problem:
    message = f"would be refused today and is used as it stands: {problem.message}"
    return replace(problem, severity=Severity.WARNING, message=message)


@cache
def _without_bounds(model: type[Spec]) -> SchemaValidator:
    """The model's own schema with types, words and patterns, and without bounds of numbers and lengths."""
    return SchemaValidator(_unbound(model.__pydantic_core_schema__), _use_prebuilt=False)


def _unbound(node: Any) -> Any:
    if isinstance(node, dict):
        if _is_bound(node):
            return _unbound(node["schema"])
        kind = node.get("type")
        bounded = isinstance(kind, str) and kind in _BOUNDED
        return {key: _unbound(value) for key, value in node.items() if not (bounded and key in _BOUNDS)}
    return [_unbound(one) for one in node] if isinstance(node, list) else node


def _is_bound(node: Mapping[str, Any]) -> bool:
    """A bound of what another validator makes: pydantic puts those behind it, as a function with the bound."""
    if node.get("type") != "function-after":
        return False
    check = node["function"]["function"]
    return isinstance(check, partial) and bool(check.keywords) and _BOUNDS.issuperset(check.keywords)
