"""From text to typed resources, and from the store's resources to typed ones; every problem found at once.

Rule: a document is accepted whole or not at all, and whatever has no effect is named in a warning.
Not for: comparing resources with each other (istiod/snapshot.py does what a compile needs).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, get_args, get_origin

from pydantic import ValidationError

from istiod.resources.kinds import KINDS, Effect, Kind, nearest
from istiod.resources.problem import Problem, Severity
from istiod.resources.schema import Spec, fields_of
from istiod.resources.yaml_text import YamlError, documents
from registry.model import Resource

SpecT_co = TypeVar("SpecT_co", bound=Spec, covariant=True)

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_METADATA = (
    "name",
    "namespace",
    "labels",
    "annotations",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "uid",
    "managedFields",
    "selfLink",
    "ownerReferences",
    "finalizers",
    "generateName",
)


@dataclass(frozen=True, slots=True)
class Document(Generic[SpecT_co]):
    """One typed resource. `spec` is the model; `resource` is what the store keeps."""

    resource: Resource
    spec: SpecT_co
    where: str = ""

    @property
    def subject(self) -> str:
        """`VirtualService default/reviews`, for people."""
        return f"{self.resource.kind} {self.resource.namespace}/{self.resource.name}"


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a text holds: the documents that are right, and every problem of every document."""

    documents: tuple[Document[Any], ...]
    problems: tuple[Problem, ...] = field(default_factory=tuple)

    def errors(self) -> tuple[Problem, ...]:
        """What makes `validate` fail."""
        return tuple(problem for problem in self.problems if problem.severity is Severity.ERROR)

    def blocking(self) -> tuple[Problem, ...]:
        """What makes `apply` fail: errors and refusals."""
        return tuple(problem for problem in self.problems if problem.severity is not Severity.WARNING)

    def warnings(self) -> tuple[Problem, ...]:
        """What a user should know and can live with."""
        return tuple(problem for problem in self.problems if problem.severity is Severity.WARNING)


class InvalidResourceError(ValueError):
    """A resource breaks its schema; `problems` says where."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = problems


def parse(text: str, source: str = "", default_namespace: str = "default") -> Parsed:
    """Read a YAML (or JSON) stream of resources. Never raises: what is wrong is in `problems`.

    `source` names the text in messages; documents without namespace get `default_namespace`. Documents of
    other API groups than Istio's (Services, Deployments) are passed over with a warning. A List is unfolded.
    """
    good: list[Document[Any]] = []
    problems: list[Problem] = []
    seen: dict[object, str] = {}
    try:
        for index, document in enumerate(documents(text)):
            where = f"{source or 'document'}:{document.line}" if source else f"document {index + 1}"
            for value in _unfold(document.value):
                found, trouble = _one(value, where, default_namespace)
                problems += trouble
                if found is None:
                    continue
                if found.resource.key in seen:
                    message = f"is there twice, first at {seen[found.resource.key]}"
                    problems.append(Problem(Severity.ERROR, "metadata.name", message, where, found.subject))
                    continue
                seen[found.resource.key] = where
                good.append(found)
    except YamlError as error:
        problems.append(Problem(Severity.ERROR, "", f"not YAML: {error}", source))
    return Parsed(tuple(good), tuple(problems))


def typed(resource: Resource) -> Document[Any]:
    """The typed form of a stored resource. Raises InvalidResourceError."""
    kind = KINDS.get(resource.kind)
    if kind is None:
        raise InvalidResourceError((Problem(Severity.ERROR, "kind", f"unknown kind {resource.kind!r}"),))
    subject = f"{resource.kind} {resource.namespace}/{resource.name}"
    spec, problems = check_spec(kind, resource.spec, "", subject)
    errors = tuple(problem for problem in problems if problem.severity is Severity.ERROR)
    if spec is None or errors:
        raise InvalidResourceError(errors)
    return Document(resource, spec)


def check_spec(kind: Kind, spec: object, where: str, subject: str) -> tuple[Spec | None, list[Problem]]:
    """Validate one spec against its model and rules; the model is None when its structure is wrong."""
    try:
        model = kind.model.model_validate(spec)
    except ValidationError as failure:
        return None, [_translate(error, kind.model, where, subject) for error in failure.errors()]
    problems = []
    for severity, path, message in _walk(model, "spec"):
        problems.append(Problem(severity, path, message, where, subject))
    return model, problems


def _unfold(value: object) -> Iterator[object]:
    """A `kind: List` is its items."""
    if isinstance(value, dict) and value.get("kind") == "List" and isinstance(value.get("items"), list):
        yield from value["items"]
    else:
        yield value


def _one(value: object, where: str, default_namespace: str) -> tuple[Document[Any] | None, list[Problem]]:
    def error(path: str, message: str, subject: str = "") -> tuple[None, list[Problem]]:
        return None, [Problem(Severity.ERROR, path, message, where, subject)]

    if not isinstance(value, dict):
        return error("", "a resource must be a mapping with apiVersion, kind, metadata and spec")
    kind_name, api_version = value.get("kind"), value.get("apiVersion")
    if not isinstance(kind_name, str) or not isinstance(api_version, str):
        return error("kind" if isinstance(api_version, str) else "apiVersion", "must be set to a string")
    group, _, version = api_version.rpartition("/")
    if not group.endswith("istio.io"):
        message = f"{kind_name} of {api_version} is no resource of the mesh; passed over"
        return None, [Problem(Severity.WARNING, "apiVersion", message, where)]
    kind = KINDS.get(kind_name)
    if kind is None:
        guess = nearest(kind_name, list(KINDS))
        return error("kind", f"unknown kind {kind_name!r}" + (f"; did you mean {guess}?" if guess else ""))
    if group != kind.group or version not in kind.versions:
        known = ", ".join(f"{kind.group}/{known}" for known in kind.versions)
        return error("apiVersion", f"{api_version!r} has no {kind_name}; use one of {known}")
    metadata, problems = _metadata(value.get("metadata"), where, default_namespace)
    subject = f"{kind_name} {metadata['namespace']}/{metadata['name']}" if metadata else kind_name
    for key in value.keys() - {"apiVersion", "kind", "metadata", "spec", "status"}:
        problems.append(
            Problem(Severity.ERROR, str(key), _unknown(str(key), ["metadata", "spec"]), where, subject)
        )
    raw = value.get("spec", {})
    if "spec" in value and not isinstance(raw, dict):
        return error("spec", f"must be a mapping, not {_type_name(raw)}", subject)
    if "spec" not in value and kind.spec_required:
        return error("spec", "is required", subject)
    spec, found = check_spec(kind, raw, where, subject)
    problems += found
    if kind.effect is Effect.REFUSE:
        message = f"kind {kind_name} is not supported by this version"
        problems.append(Problem(Severity.REFUSAL, "kind", message, where, subject))
    elif kind.effect is Effect.WARN:
        message = f"kind {kind_name} is stored but has no effect in this version"
        problems.append(Problem(Severity.WARNING, "kind", message, where, subject))
    if metadata is None or spec is None or any(problem.severity is Severity.ERROR for problem in problems):
        return None, problems
    resource = Resource(
        kind=kind_name,
        namespace=metadata["namespace"],
        name=metadata["name"],
        api_version=api_version,
        spec=json.loads(json.dumps(raw)),
        labels=metadata["labels"],
        annotations=metadata["annotations"],
        version=metadata["version"],
    )
    return Document(resource, spec, where), problems


def _metadata(
    value: object, where: str, default_namespace: str
) -> tuple[dict[str, Any] | None, list[Problem]]:
    problems: list[Problem] = []

    def error(path: str, message: str) -> None:
        problems.append(Problem(Severity.ERROR, path, message, where))

    if not isinstance(value, dict):
        error("metadata", "must be a mapping with a name")
        return None, problems
    for key in value:
        if key not in _METADATA:
            error(f"metadata.{key}", _unknown(str(key), _METADATA))
    name, namespace = value.get("name"), value.get("namespace", default_namespace)
    if not isinstance(name, str) or len(name) > 253 or not _NAME.fullmatch(name):
        error("metadata.name", f"{name!r} must be lower case letters, digits, - and . (at most 253)")
    if not isinstance(namespace, str) or len(namespace) > 63 or not _NAMESPACE.fullmatch(namespace):
        error("metadata.namespace", f"{namespace!r} must be lower case letters, digits and - (at most 63)")
    maps: dict[str, dict[str, str]] = {}
    for part in ("labels", "annotations"):
        entries = value.get(part) or {}
        if not isinstance(entries, dict) or not all(isinstance(entry, str) for entry in entries.values()):
            error(f"metadata.{part}", "must be a mapping of strings to strings (quote numbers and booleans)")
            entries = {}
        maps[part] = entries
    if problems:
        return None, problems
    version = value.get("resourceVersion", "")
    return {"name": name, "namespace": namespace, "version": str(version), **maps}, problems


def _unknown(key: str, known: Sequence[str]) -> str:
    guess = nearest(key, known)
    return "unknown field" + (f"; did you mean {guess}?" if guess else "")


def _translate(error: Any, model: type[Spec], where: str, subject: str) -> Problem:
    """A pydantic error as a problem in our words."""
    loc = tuple(part for part in error["loc"] if part != "[key]")
    path, owner = _locate(loc, model)
    kind, message = error["type"], error["msg"]
    if kind == "extra_forbidden":
        message = _unknown(str(loc[-1]), sorted(fields_of(owner)) if owner else [])
    elif kind == "missing":
        message = "is required"
    elif kind == "literal_error":
        expected = str(error["ctx"]["expected"]).replace("'", "").replace(" or ", ", ")
        guess = nearest(str(error["input"]), expected.split(", "))
        message = f"Unsupported value: {json.dumps(error['input'], default=str)}; one of {expected}"
        message += f"; did you mean {guess}?" if guess else ""
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        message = f"must be a mapping, not {_type_name(error['input'])}"
    elif kind == "tuple_type":
        message = f"must be a list, not {_type_name(error['input'])}"
    elif kind == "string_type":
        message = f"must be a string, not {_type_name(error['input'])}" + _quote_hint(error["input"])
    elif kind == "bool_type":
        message = f"must be true or false, not {_type_name(error['input'])}"
    elif kind == "string_too_short":
        message = f"should be at least {error['ctx']['min_length']} chars long"
    elif kind == "string_pattern_mismatch":
        message = f"{error['input']!r} should match {error['ctx']['pattern']}"
    return Problem(Severity.ERROR, path, message, where, subject)


def _locate(loc: tuple[Any, ...], model: type[Spec]) -> tuple[str, type[Spec] | None]:
    """The path of `loc` for people, and the model that holds its last part."""
    path = "spec"
    annotation: Any = model
    owner: type[Spec] | None = None
    for part in loc:
        annotation = _spec_in(annotation, part)
        owner = annotation if isinstance(annotation, type) and issubclass(annotation, Spec) else None
        if isinstance(part, int) or (owner is None and get_origin(annotation) is dict):
            path += f"[{part}]"
        else:
            path += f".{part}"
        if owner is not None:
            info = fields_of(owner).get(str(part)) or owner.model_fields.get(str(part))
            annotation = info.annotation if info is not None else None
        elif get_origin(annotation) in (tuple, dict):
            arguments = get_args(annotation)
            annotation = arguments[0] if get_origin(annotation) is tuple else arguments[1]
    return path, owner


def _spec_in(annotation: Any, part: object) -> Any:
    """Out of an annotation (perhaps Optional or Annotated) the model, tuple or dict that `part` indexes."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return annotation
    if get_origin(annotation) in (tuple, dict):
        return annotation
    for argument in get_args(annotation):
        found = _spec_in(argument, part)
        if found is not None:
            return found
    return None


def _walk(value: object, path: str) -> Iterator[tuple[Severity, str, str]]:
    """All broken rules, refusals and effect gaps of a model tree, with full paths."""
    if isinstance(value, Spec):
        checks = (
            (Severity.ERROR, value.rules()),
            (Severity.REFUSAL, value.refusals()),
            (Severity.WARNING, value.gaps()),
        )
        for severity, findings in checks:
            for relative, message in findings:
                yield severity, f"{path}.{relative}" if relative else path, message
        for name in value.model_fields_set:
            info = type(value).model_fields[name]
            extra = info.json_schema_extra
            if isinstance(extra, dict) and extra.get("effect") == "none":
                yield (
                    Severity.WARNING,
                    f"{path}.{info.alias}",
                    "is accepted but has no effect in this version",
                )
            yield from _walk(getattr(value, name), f"{path}.{info.alias}")
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _walk(item, f"{path}[{index}]")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(item, f"{path}[{key}]")


def _type_name(value: object) -> str:
    if value is None:
        return "null"
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "a mapping",
    }
    return names.get(type(value), type(value).__name__)


def _quote_hint(value: object) -> str:
    return f'; write "{json.dumps(value)}" in quotes' if isinstance(value, (bool, int, float)) else ""
