"""The constraints that Envoy's API states about its own fields (protoc-gen-validate rules), checked as Envoy does.

Rule: the rules are read from the message descriptors, once per message type, and applied to the whole tree including
the messages inside Any. Not for: what this build does not support.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

import re2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from validate import validate_pb2

from agent.table.decode.types import unpack
from agent.table.errors import ConfigError

Check: TypeAlias = Callable[[Any, str], None]


def check_constraints(message: Message, path: str = "") -> None:
    """Raises ConfigError at the first field that breaks a rule."""
    if isinstance(message, AnyMessage):
        if message.type_url:
            check_constraints(unpack(message, path), path)
        return
    name = message.DESCRIPTOR.full_name
    if name.startswith("google.protobuf."):
        return
    for check in _checks(message.DESCRIPTOR):
        check(message, path)
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        where = f"{path}.{field.name}" if path else field.name
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None:
                for key in value:
                    check_constraints(value[key], f'{where}["{key}"]')
        elif field.is_repeated:
            for position, item in enumerate(value):
                check_constraints(item, f"{where}[{position}]")
        else:
            check_constraints(value, where)


@cache
def _checks(descriptor: Descriptor) -> tuple[Check, ...]:
    found: list[Check] = [
        _required_oneof(oneof.name, [field.name for field in oneof.fields])
        for oneof in descriptor.oneofs
        if oneof.GetOptions().Extensions[validate_pb2.required]
    ]
    for field in descriptor.fields:
        options = field.GetOptions()
        if options.HasExtension(validate_pb2.rules):
            check = _field_check(field, options.Extensions[validate_pb2.rules])
            if check is not None:
                found.append(check)
    return tuple(found)


def _required_oneof(name: str, fields: list[str]) -> Check:
    def check(message: Any, path: str) -> None:
        if message.WhichOneof(name) is None:
            raise ConfigError(path, f"one of {', '.join(fields)} is required")

    return check


def _field_check(field: FieldDescriptor, rules: Any) -> Check | None:
    name = field.name
    if rules.message.required:
        if field.containing_oneof is not None:
            return None  # a member of a oneof is only judged when it is the one chosen

        def required(message: Any, path: str) -> None:
            if not message.HasField(name):
                raise ConfigError(f"{path}.{name}" if path else name, "required")

        return required
    kind = rules.WhichOneof("type")
    if kind is None:
        return None
    if kind == "repeated":
        return _repeated(name, field, rules.repeated)
    if kind == "map":
        return None
    judge = _judge(kind, getattr(rules, kind), field)
    if judge is None:
        return None
    optional = field.message_type is not None or field.containing_oneof is not None
    wrapped = field.message_type is not None and field.message_type.full_name.endswith("Value")

    def check(message: Any, path: str) -> None:
        if optional and not message.HasField(name):
            if kind == "duration" and rules.duration.required:
                raise ConfigError(f"{path}.{name}" if path else name, "required")
            return
        value = getattr(message, name)
        reason = judge(value.value if wrapped else value)
        if reason:
            raise ConfigError(f"{path}.{name}" if path else name, reason)

    return check


def _repeated(name: str, field: FieldDescriptor, rules: Any) -> Check:
    kind = rules.items.WhichOneof("type")
    judge = _judge(kind, getattr(rules.items, kind), field) if kind else None

    def check(message: Any, path: str) -> None:
        values = getattr(message, name)
        where = f"{path}.{name}" if path else name
        if rules.HasField("min_items") and len(values) < rules.min_items:
            raise ConfigError(where, f"at least {rules.min_items} needed, there are {len(values)}")
        if rules.HasField("max_items") and len(values) > rules.max_items:
            raise ConfigError(where, f"at most {rules.max_items} allowed, there are {len(values)}")
        if rules.unique and len(set(values)) != len(values):
            raise ConfigError(where, "values must be unique")
        if judge is not None:
            for position, value in enumerate(values):
                reason = judge(value)
                if reason:
                    raise ConfigError(f"{where}[{position}]", reason)

    return check


Judge: TypeAlias = Callable[[Any], str]


def _judge(kind: str, rules: Any, field: FieldDescriptor) -> Judge | None:
    if kind == "string":
        return _string(rules)
    if kind == "bytes":
        return lambda value: f"at least {rules.min_len} bytes needed" if len(value) < rules.min_len else ""
    if kind == "enum":
        numbers = frozenset(field.enum_type.values_by_number) if field.enum_type is not None else frozenset()
        return lambda value: (
            f"{value} is not a defined value"
            if (rules.defined_only and value not in numbers)
            or value in rules.not_in
            or (len(getattr(rules, "in")) and value not in getattr(rules, "in"))
            else ""
        )
    if kind == "duration":
        return _range(rules, lambda duration: duration.seconds + duration.nanos / 1e9, "s")
    if kind == "bool":
        return lambda value: (
            f"must be {rules.const}" if rules.HasField("const") and value != rules.const else ""
        )
    if kind in {"any", "timestamp", "message"}:
        return None
    return _range(rules, lambda number: number, "")


def _range(rules: Any, plain: Callable[[Any], float], unit: str) -> Judge:
    limits = {
        name: plain(getattr(rules, name)) for name in ("gt", "gte", "lt", "lte") if rules.HasField(name)
    }
    tests: dict[str, tuple[str, Callable[[float, float], bool]]] = {
        "gt": ("greater than", lambda value, limit: value > limit),
        "gte": ("at least", lambda value, limit: value >= limit),
        "lt": ("less than", lambda value, limit: value < limit),
        "lte": ("at most", lambda value, limit: value <= limit),
    }
    excluded = {plain(value) for value in rules.not_in}
    included = {plain(value) for value in getattr(rules, "in")}
    lower = next((limits[name] for name in ("gt", "gte") if name in limits), None)
    upper = next((limits[name] for name in ("lt", "lte") if name in limits), None)
    outside = lower is not None and upper is not None and upper < lower

    def judge(value: Any) -> str:
        number = plain(value)
        if number in excluded or (included and number not in included):
            return f"{number}{unit} is not allowed"
        passed = [tests[name][1](number, limit) for name, limit in limits.items()]
        if (any(passed) if outside else all(passed)) or not passed:
            return ""
        wanted = " and ".join(f"{tests[name][0]} {limit:g}{unit}" for name, limit in limits.items())
        return f"must be {wanted}, is {number:g}{unit}"

    return judge


_NO_CRLF = re.compile(r"[\x00\n\r]")
_HEADER_NAME = re.compile(r":?[0-9a-zA-Z!#$%&'*+\-.^_|~`]+")


def _string(rules: Any) -> Judge:
    strict = not rules.HasField("strict") or rules.strict
    well_known = rules.WhichOneof("well_known")
    pattern = re2.compile(rules.pattern) if rules.pattern else None

    def judge(value: str) -> str:
        if rules.ignore_empty and not value:
            return ""
        if len(value) < rules.min_len or len(value.encode()) < rules.min_bytes:
            return "must not be empty" if not value else "too short"
        if (rules.HasField("max_len") and len(value) > rules.max_len) or (
            rules.HasField("max_bytes") and len(value.encode()) > rules.max_bytes
        ):
            return "too long"
        if rules.prefix and not value.startswith(rules.prefix):
            return f"must start with {rules.prefix!r}"
        if rules.suffix and not value.endswith(rules.suffix):
            return f"must end with {rules.suffix!r}"
        if pattern is not None and pattern.search(value) is None:
            return f"must match {rules.pattern!r}"
        if well_known == "well_known_regex" and value:
            if rules.well_known_regex == validate_pb2.HTTP_HEADER_NAME and strict:
                return "" if _HEADER_NAME.fullmatch(value) else "not a header name"
            if _NO_CRLF.search(value):
                return "must not contain NUL, CR or LF"
        choices = getattr(rules, "in")
        if (choices and value not in choices) or value in rules.not_in:
            return f"{value!r} is not allowed"
        return ""

    return judge
