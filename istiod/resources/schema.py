"""The building blocks of the resource models: scalar types, the model class, rules and effect marks.

Rule: a model accepts exactly what the protobuf-JSON form of Istio's message accepts (camelCase, or the
snake_case of the .proto), plus the constraints of the published schema; everything else is an error with a
path. Not for: reading YAML (document.py) or deciding what a resource means (istiod/compile).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from types import NoneType
from typing import Annotated, Any, cast, get_args

import re2
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictStr,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

_GO_DURATION = re.compile(r"([+-]?)((?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:ns|us|µs|ms|s|m|h))+")
_GO_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
_UNIT = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_MAX_UINT32 = 2**32 - 1
_MAX_PATTERN = 1024
MAX_PROGRAM = 32768
"""Instructions of a compiled pattern: what Istio lets its proxies take (runtime re2.max_program_size.error_level)."""
MAX_DURATION = 2**63 / 1e9
"""Seconds: what fits into 64 bits of nanoseconds, in which Go and Envoy count."""


def camel_case(name: str) -> str:
    """The JSON name of a protobuf field: `max_retries` → `maxRetries`, `from_` → `from`."""
    head, *tail = name.rstrip("_").split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in tail)


class Spec(BaseModel):
    """One message of a resource. Immutable; unknown fields are errors; `rules` spans several fields."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=camel_case,
        populate_by_name=True,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        """Protobuf-JSON, and with it kubectl: a field that is null is not set."""
        if not isinstance(value, dict) or None not in value.values():
            return value
        known = {**fields_of(cls), **cls.model_fields}
        return {
            key: entry
            for key, entry in value.items()
            if entry is not None or key not in known or NoneType in get_args(known[key].annotation)
        }

    def rules(self) -> Iterator[tuple[str, str]]:
        """Broken cross-field rules as (path relative to this message, reason); "" is the message itself."""
        return iter(())

    def document_rules(self, namespace: str, annotations: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """Broken rules that depend on the document's metadata, with paths from its root. Of a kind's model only."""
        return iter(())

    def gaps(self) -> Iterator[tuple[str, str]]:
        """Values that are valid but have no effect in this version, as (relative path, reason).

        Only for what nobody could take for working: a Gateway where there is no gateway.
        """
        return iter(())

    def refusals(self) -> Iterator[tuple[str, str]]:
        """Values that are valid and that this version cannot put into effect, as (relative path, reason)."""
        return iter(())


def unsupported(default: Any = None, reason: str = "", **constraints: Any) -> Any:
    """A field of the schema that this version cannot put into effect: a document that sets it is refused."""
    return Field(default, json_schema_extra={"unsupported": reason or UNSUPPORTED}, **constraints)


UNSUPPORTED = "is not supported by this version"


def empty() -> Any:
    """A field that is an empty mapping when it is not given."""
    return Field(default_factory=dict)


def parse_duration(text: str) -> float:
    """Seconds of a Go duration (`1h30m`, `2.5s`, `100ms`), as Istio's YAML has them. Raises ValueError."""
    if not _GO_DURATION.fullmatch(text):
        raise ValueError(f"{text!r} is not a duration such as 5s, 100ms or 1h30m")
    seconds = sum(float(amount) * _UNIT[unit] for amount, unit in _GO_PART.findall(text))
    return -seconds if text.startswith("-") else seconds


def _duration(value: object) -> float:
    if not isinstance(value, str):
        raise PydanticCustomError("duration", "must be a duration string such as 5s, 100ms or 1h30m")
    try:
        seconds = parse_duration(value)
    except ValueError as error:
        raise PydanticCustomError("duration", "{reason}", {"reason": str(error)}) from None
    if abs(seconds) > MAX_DURATION:
        raise PydanticCustomError(
            "duration", "is longer than the longest duration of Istio and Envoy (292 years)"
        )
    if abs(seconds * 1000 - round(seconds * 1000)) > 1e-6 * max(1.0, abs(seconds)):
        raise PydanticCustomError("duration", "must be whole milliseconds")
    return seconds


def _number(value: object) -> object:
    """Protobuf-JSON integers: a number without fraction, or its decimal string; never a boolean."""
    if isinstance(value, bool):
        raise PydanticCustomError("integer", "must be an integer, not a boolean")
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,20}", value):
        return int(value)
    if isinstance(value, int):
        return value
    raise PydanticCustomError("integer", "must be an integer")


def _double(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise PydanticCustomError("number", "must be a number")
    try:
        number = float(value)
    except ValueError:
        raise PydanticCustomError("number", "must be a number") from None
    if not math.isfinite(number):
        raise PydanticCustomError("number", "must be a finite number")
    return number


def _port(value: object) -> object:
    number = _number(value)
    if not isinstance(number, int) or not 1 <= number <= 65535:
        raise PydanticCustomError("port", "port must be between 1-65535")
    return number


def _regex(value: object) -> object:
    if isinstance(value, str) and (problem := regex_problem(value)):
        raise PydanticCustomError("regex", "{problem}", {"problem": problem})
    return value


def regex_problem(pattern: str, rewrite: str | None = None) -> str | None:
    """Why RE2, the engine of Envoy and of our data plane, does not take `pattern` (and a rewrite of it), or None."""
    if len(pattern) > _MAX_PATTERN:
        return f"is longer than {_MAX_PATTERN} characters, Istio's limit"
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0] if error.args else "invalid"
        reason = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        return f"not an RE2 expression: {reason}"
    if compiled.programsize > MAX_PROGRAM:
        return f"compiles to {compiled.programsize} instructions; at most {MAX_PROGRAM} are allowed"
    for escape in re.findall(r"\\(.?)", rewrite or "", re.DOTALL):
        if escape != "\\" and not ("0" <= escape <= "9"):
            return f"the rewrite has \\{escape}; only \\0 to \\9 and \\\\ are allowed"
        if escape != "\\" and int(escape) > compiled.groups:
            return f"the rewrite has \\{escape}, but the pattern has {compiled.groups} groups"
    return None


Str = StrictStr
Bool = StrictBool
NonEmpty = Annotated[StrictStr, StringConstraints(min_length=1)]
Int32 = Annotated[int, BeforeValidator(_number), Field(ge=-(2**31), le=2**31 - 1)]
UInt32 = Annotated[int, BeforeValidator(_number), Field(ge=0, le=_MAX_UINT32)]
UInt64 = Annotated[int, BeforeValidator(_number), Field(ge=0, le=2**64 - 1)]
Double = Annotated[float, BeforeValidator(_double)]
Percent100 = Annotated[float, BeforeValidator(_double), Field(ge=0, le=100)]
IntPercent = Annotated[int, BeforeValidator(_number), Field(ge=0, le=100)]
PortNumber = Annotated[int, BeforeValidator(_port)]
Duration = Annotated[float, BeforeValidator(_duration), Field(ge=0)]
"""Seconds."""
PositiveDuration = Annotated[float, BeforeValidator(_duration), Field(ge=0.001)]
"""Seconds; at least 1 ms, as Istio's schema demands of most durations."""
Regex = Annotated[StrictStr, BeforeValidator(_regex)]
HeaderName = Annotated[StrictStr, StringConstraints(min_length=1, pattern=r"^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$")]
HeaderText = Annotated[StrictStr, StringConstraints(pattern=r"^[^\x00-\x08\x0a-\x1f\x7f]*$")]
"""What may become a header's value or part of a request line: no control characters."""
RefGroup = Annotated[
    StrictStr,
    StringConstraints(
        max_length=253, pattern=r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
    ),
]
RefKind = Annotated[
    StrictStr,
    StringConstraints(min_length=1, max_length=63, pattern=r"^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$"),
]
Struct = dict[str, Any]
"""google.protobuf.Struct: free-form."""


def exactly_one(message: Spec, names: tuple[str, ...]) -> list[str]:
    """The JSON names among `names` that are set (given and not None) on `message`."""
    return [camel_case(name) for name in names if getattr(message, name) is not None]


def repeated(names: Iterable[str]) -> Iterator[int]:
    """The positions of names that were there before."""
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            yield index
        seen.add(name)


def fields_of(model: type[Spec]) -> dict[str, Any]:
    """The JSON name of every field of `model`, mapped to pydantic's FieldInfo."""
    return {cast(str, info.alias): info for info in model.model_fields.values()}
