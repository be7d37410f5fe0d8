"""The building blocks of the resource models: scalar types, the model class, rules and effect marks.

Rule: a model accepts exactly what the protobuf-JSON form of Istio's message accepts (camelCase, or the
snake_case of the .proto), plus the constraints of the published schema; everything else is an error with a
path. Not for: reading YAML (document.py) or deciding what a resource means (istiod/compile).
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, cast

import re2
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictStr, StringConstraints
from pydantic_core import PydanticCustomError

_GO_DURATION = re.compile(r"([+-]?)((?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h))+")
_GO_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNIT = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_MAX_UINT32 = 2**32 - 1


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

    def rules(self) -> Iterator[tuple[str, str]]:
        """Broken cross-field rules as (path relative to this message, reason); "" is the message itself."""
        return iter(())

    def gaps(self) -> Iterator[tuple[str, str]]:
        """Values that are valid but have no effect in this version, as (relative path, reason)."""
        return iter(())

    def refusals(self) -> Iterator[tuple[str, str]]:
        """Values that are valid but whose missing effect would be dangerous, as (relative path, reason)."""
        return iter(())


def later(default: Any = None, **constraints: Any) -> Any:
    """A field of the schema that is accepted and does nothing yet; setting it makes a warning."""
    return Field(default, json_schema_extra={"effect": "none"}, **constraints)


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
        return parse_duration(value)
    except ValueError as error:
        raise PydanticCustomError("duration", "{reason}", {"reason": str(error)}) from None


def _number(value: object) -> object:
    """Protobuf-JSON integers: a number without fraction, or its decimal string; never a boolean."""
    if isinstance(value, bool):
        raise PydanticCustomError("integer", "must be an integer, not a boolean")
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"-?\d+", value):
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
    if isinstance(value, str):
        compile_regex(value)
    return value


def compile_regex(pattern: str) -> None:
    """Check a pattern with RE2, the engine of Envoy and of our data plane. Raises a validation error."""
    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0] if error.args else "invalid"
        reason = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise PydanticCustomError("regex", "not an RE2 expression: {reason}", {"reason": reason}) from None


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

_HOST_LABEL = re.compile(r"[a-zA-Z0-9_]([-a-zA-Z0-9_]{0,61}[a-zA-Z0-9_])?")


def host_problem(host: str, *, wildcard: bool) -> str | None:
    """Why `host` is not a host name (with `wildcard` also `*` or `*.example.com`), or None."""
    if not host:
        return "must not be empty"
    if len(host) > 255:
        return "is longer than 255 characters"
    rest = host
    if host.startswith("*"):
        if not wildcard:
            return "must not be a wildcard"
        rest = host[1:].removeprefix(".")
        if not rest:
            return None if host == "*" else "is not a host name"
    if "*" in rest:
        return "may have a wildcard only in front"
    for label in rest.removesuffix(".").split("."):
        if not _HOST_LABEL.fullmatch(label):
            return f"{label!r} is not a DNS label"
    return None


def address_problem(text: str) -> str | None:
    """Why `text` is neither an IP address nor a CIDR block, or None."""
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return f"{text!r} is neither an IP address nor a CIDR block"
    return None


def exactly_one(message: Spec, names: tuple[str, ...]) -> list[str]:
    """The JSON names among `names` that are set (given and not None) on `message`."""
    return [camel_case(name) for name in names if getattr(message, name) is not None]


def fields_of(model: type[Spec]) -> dict[str, Any]:
    """The JSON name of every field of `model`, mapped to pydantic's FieldInfo."""
    return {cast(str, info.alias): info for info in model.model_fields.values()}
