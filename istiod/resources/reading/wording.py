"""pydantic's errors in the words of this project: the path as people write it, and the reason.

Not for: the rules that span fields (`Spec.rules`), which have their own words.
"""

from __future__ import annotations

import json
from typing import Any, get_args, get_origin

from istiod.resources.kinds import nearest
from istiod.resources.reading.metadata import unknown_field
from istiod.resources.schema import Spec, fields_of


def translate(error: Any, model: type[Spec]) -> tuple[str, str]:
    """A pydantic error as the path of the field and a reason in our words."""
    loc = tuple(part for part in error["loc"] if part != "[key]")
    path, owner = _locate(loc, model)
    kind, message = error["type"], error["msg"]
    if kind == "extra_forbidden":
        message = unknown_field(str(loc[-1]), sorted(fields_of(owner)) if owner else [])
    elif kind == "missing":
        message = "is required"
    elif kind == "literal_error":
        expected = str(error["ctx"]["expected"]).replace("'", "").replace(" or ", ", ")
        guess = nearest(str(error["input"]), expected.split(", "))
        message = f"Unsupported value: {json.dumps(error['input'], default=str)}; one of {expected}"
        message += f"; did you mean {guess}?" if guess else ""
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        message = f"must be a mapping, not {type_name(error['input'])}"
    elif kind == "tuple_type":
        message = f"must be a list, not {type_name(error['input'])}"
    elif kind == "string_type":
        message = f"must be a string, not {type_name(error['input'])}" + _quote_hint(error["input"])
    elif kind == "bool_type":
        message = f"must be true or false, not {type_name(error['input'])}"
    elif kind == "less_than_equal":
        message = f"must be at most {error['ctx']['le']:.15g}"
    elif kind == "greater_than_equal":
        message = f"must be at least {error['ctx']['ge']:.15g}"
    elif kind == "string_too_short":
        message = f"should be at least {error['ctx']['min_length']} chars long"
    elif kind == "string_pattern_mismatch":
        message = f"{error['input']!r} should match {error['ctx']['pattern']}"
    return path, message


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


def type_name(value: object) -> str:
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
