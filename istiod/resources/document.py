"""From text to typed resources, and from the store's resources to typed ones; every problem found at once.

Rule: a document is accepted whole or not at all, and whatever has no effect is refused or named in a warning.
Not for: comparing resources with each other (istiod/snapshot.py does what a compile needs).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from istiod.resources.authorization import DRY_RUN
from istiod.resources.kinds import KINDS, Effect, Kind, nearest
from istiod.resources.problem import Problem, Severity
from istiod.resources.reading.metadata import Metadata, read, unknown_field
from istiod.resources.reading.wording import translate, type_name
from istiod.resources.reading.yaml_text import YamlError, YamlNode, documents
from istiod.resources.schema import Spec
from registry.model import Resource

SpecT_co = TypeVar("SpecT_co", bound=Spec, covariant=True)


@dataclass(frozen=True, slots=True)
class Document(Generic[SpecT_co]):
    """One typed resource. `spec` is the model; `resource` is what the store keeps; `uid` is the document's own."""

    resource: Resource
    spec: SpecT_co
    where: str = ""
    uid: str = ""
    reach_unknown: bool = False
    """It stands in for a document whose selector cannot be read: it counts for all of its namespace, before others."""
    locate: Callable[[str], str] | None = field(default=None, compare=False, repr=False)
    """Where the field at a path is written, as far as the text is at hand."""

    def at(self, path: str) -> str:
        """File and line of a field; of the document where they are not known."""
        return self.where if self.locate is None else self.locate(path)

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
        """What is wrong with the documents, whatever the version."""
        return tuple(problem for problem in self.problems if problem.severity is Severity.ERROR)

    def blocking(self) -> tuple[Problem, ...]:
        """What makes `apply` and `validate` fail: errors and refusals."""
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
        for index, node in enumerate(documents(text)):
            for value, part in _unfold(node):

                def locate(path: str, part: YamlNode = part, index: int = index) -> str:
                    return f"{source}:{part.line_of(path)}" if source else f"document {index + 1}"

                found, trouble = _one(value, locate(""), default_namespace)
                problems += _located(trouble, locate)
                if found is None:
                    continue
                if found.resource.key in seen:
                    message = f"is there twice, first at {seen[found.resource.key]}"
                    where = locate("metadata.name")
                    problems.append(Problem(Severity.ERROR, "metadata.name", message, where, found.subject))
                    continue
                seen[found.resource.key] = found.where
                good.append(replace(found, locate=locate))
    except YamlError as error:
        problems.append(Problem(Severity.ERROR, "", f"not YAML: {error}", source))
    return Parsed(tuple(good), tuple(problems))


def typed(resource: Resource) -> Document[Any]:
    """The typed form of a resource that no document holds (any more). Raises InvalidResourceError.

    What is stored is read by `stored`, which makes allowances.
    """
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
        return None, unreadable(kind, failure, where, subject)
    return model, findings_of(model, where, subject)


def unreadable(kind: Kind, failure: ValidationError, where: str, subject: str) -> list[Problem]:
    """What pydantic found, as problems of a document."""
    found = [translate(error, kind.model) for error in failure.errors()]
    return [Problem(Severity.ERROR, path, message, where, subject) for path, message in found]


def findings_of(spec: Spec, where: str, subject: str) -> list[Problem]:
    """The broken rules, refusals and gaps of a spec whose structure is right."""
    found = _walk(spec, "spec")
    return [Problem(severity, path, message, where, subject) for severity, path, message in found]


def of_metadata(kind: Kind, spec: Spec, metadata: Metadata | Resource) -> Iterator[tuple[str, str]]:
    """Broken rules on a spec and its metadata together, as path and reason."""
    yield from spec.document_rules(metadata.namespace, metadata.annotations)
    if DRY_RUN in metadata.annotations and kind.name != "AuthorizationPolicy":
        reason = f"only an AuthorizationPolicy can be tried out, not a {kind.name}"
        yield f"metadata.annotations[{DRY_RUN}]", reason


def _unfold(node: YamlNode) -> Iterator[tuple[object, YamlNode]]:
    """A `kind: List` is its items."""
    value = node.value
    if isinstance(value, dict) and value.get("kind") == "List" and isinstance(value.get("items"), list):
        for index, item in enumerate(value["items"]):
            yield item, node.inside(f"items[{index}]")
    else:
        yield value, node


def _located(problems: list[Problem], locate: Callable[[str], str]) -> list[Problem]:
    """The problems with the line of the field, or of what the field is missing in."""
    return [replace(problem, where=locate(problem.path)) for problem in problems]


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
    metadata, problems = read(value.get("metadata"), where, default_namespace)
    subject = f"{kind_name} {metadata.namespace}/{metadata.name}" if metadata else kind_name
    for key in value.keys() - {"apiVersion", "kind", "metadata", "spec", "status"}:
        message = unknown_field(str(key), ["metadata", "spec"])
        problems.append(Problem(Severity.ERROR, str(key), message, where, subject))
    raw = value.get("spec")
    if raw is None and kind.spec_required:
        return error("spec", "is required", subject)
    if raw is not None and not isinstance(raw, dict):
        return error("spec", f"must be a mapping, not {type_name(raw)}", subject)
    raw = raw or {}
    spec, found = check_spec(kind, raw, where, subject)
    problems += found
    if metadata is not None and spec is not None:
        broken = of_metadata(kind, spec, metadata)
        problems += [Problem(Severity.ERROR, path, reason, where, subject) for path, reason in broken]
    problems += effect_of(kind, where, subject)
    if metadata is None or spec is None or any(problem.severity is Severity.ERROR for problem in problems):
        return None, problems
    return Document(_resource(kind_name, api_version, metadata, raw), spec, where, metadata.uid), problems


def effect_of(kind: Kind, where: str, subject: str) -> list[Problem]:
    """What is to be said about a kind that has no effect."""
    if kind.effect is Effect.REFUSE:
        message = f"kind {kind.name} is not supported by this version"
        return [Problem(Severity.REFUSAL, "kind", message, where, subject)]
    if kind.effect is Effect.WARN:
        message = f"kind {kind.name} is stored but has no effect in this version"
        return [Problem(Severity.WARNING, "kind", message, where, subject)]
    return []


def _resource(kind: str, api_version: str, metadata: Metadata, spec: dict[str, Any]) -> Resource:
    return Resource(
        kind=kind,
        namespace=metadata.namespace,
        name=metadata.name,
        api_version=api_version,
        spec=json.loads(json.dumps(spec)),
        labels=metadata.labels,
        annotations=metadata.annotations,
        version=metadata.version,
    )


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
        for name, info in type(value).model_fields.items():
            if name not in value.model_fields_set:
                continue
            extra = info.json_schema_extra
            if isinstance(extra, dict) and (reason := extra.get("unsupported")):
                yield Severity.REFUSAL, f"{path}.{info.alias}", str(reason)
            yield from _walk(getattr(value, name), f"{path}.{info.alias}")
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _walk(item, f"{path}[{index}]")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(item, f"{path}[{key}]")
