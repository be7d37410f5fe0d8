"""The hand-written models against Istio's published schema: every field is there, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml

from istiod.resources.kinds import KINDS
from istiod.resources.schema import Spec, fields_of

CRDS = Path(__file__).parents[4] / "shared" / "cases" / "istio-crds.yaml"
# Fields of ours that the schema has not, and its spellings that snake_case acceptance covers.
OURS = {
    "VirtualService.http.websocketUpgrade": "removed from the schema, still in old files",
    "RequestAuthentication.jwtRules.presence": "in Istio's validation cases, newer than the schema",
}
COVERED = {
    "VirtualService.http.mirror_percent": "the snake_case of mirrorPercent",
    "RequestAuthentication.jwtRules.jwks_uri": "the snake_case of jwksUri",
}


def schemas() -> dict[str, dict[str, Any]]:
    """The stored version's schema of every kind."""
    found = {}
    for crd in filter(None, yaml.safe_load_all(CRDS.read_text())):
        stored = next(version for version in crd["spec"]["versions"] if version.get("storage"))
        kind = crd["spec"]["names"]["kind"]
        found[kind] = stored["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return found


SCHEMAS = schemas()


def model_in(annotation: Any) -> type[Spec] | None:
    """The model inside Optional, Annotated, tuple or dict."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return annotation
    arguments = get_args(annotation)
    if get_origin(annotation) is dict:
        arguments = arguments[1:]
    return next((found for found in map(model_in, arguments) if found is not None), None)


def differences(schema: dict[str, Any], model: type[Spec], path: str) -> list[str]:
    """Fields on one side only, at any depth."""
    while schema.get("type") == "array" or isinstance(schema.get("additionalProperties"), dict):
        schema = schema["items"] if schema.get("type") == "array" else schema["additionalProperties"]
    theirs = schema.get("properties", {})
    mine = fields_of(model)
    found = [
        f"{path}.{name}: missing" for name in theirs.keys() - mine.keys() if f"{path}.{name}" not in COVERED
    ]
    found += [
        f"{path}.{name}: unknown to Istio"
        for name in mine.keys() - theirs.keys()
        if f"{path}.{name}" not in OURS
    ]
    for name in theirs.keys() & mine.keys():
        inner = model_in(mine[name].annotation)
        if inner is not None:
            found += differences(theirs[name], inner, f"{path}.{name}")
    return found


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_model_has_exactly_the_fields_of_the_published_schema(kind: str) -> None:
    assert differences(SCHEMAS[kind], KINDS[kind].model, kind) == []


def test_every_published_kind_but_the_newest_is_known() -> None:
    assert set(SCHEMAS) - set(KINDS) == {"TrafficExtension"}
