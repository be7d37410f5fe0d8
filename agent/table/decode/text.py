"""Bootstrap text (YAML or JSON) to its protobuf message, with errors that name the exact place.

Rule: the tree is walked against the message descriptors before protobuf's own parser sees it, so an unknown field is
reported with its path and the nearest known name, and the types inside Any are loaded.
"""

from __future__ import annotations

import difflib
import re
from typing import Any

import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from agent.table.decode.types import message_class, type_name
from agent.table.errors import ConfigError

_OPAQUE = frozenset(
    f"google.protobuf.{name}"
    for name in [
        "Struct",
        "Value",
        "ListValue",
        "Duration",
        "Timestamp",
        "FieldMask",
        "BoolValue",
        "BytesValue",
        "DoubleValue",
        "FloatValue",
        "Int32Value",
        "Int64Value",
        "StringValue",
        "UInt32Value",
        "UInt64Value",
    ]
)


class _Loader(yaml.SafeLoader):
    """YAML scalars as Envoy's parser reads them: no dates, no base-60 numbers; a fraction is text, and so is a plain
    key (`on`, `1`)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See the class."""
        self.flatten_mapping(node)
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
_Loader.bool_values = {**yaml.SafeLoader.bool_values, "y": True, "n": False}
for _tag, _pattern, _first in (
    (
        "bool",
        r"^(?:true|True|TRUE|false|False|FALSE|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF|y|Y|n|N)$",
        "tTfFyYnNoO",
    ),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*|0x[0-9a-fA-F]+)$", "-+0123456789"),
    ("merge", r"^<<$", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def parse(text: str, kind: type[Message], source: str) -> Message:
    """The message that the text describes. Raises ConfigError; the path is empty where the text itself is bad."""
    try:
        tree = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader with fewer scalar types
        _count(tree, source)
    except yaml.YAMLError as error:
        raise ConfigError("", f"{source}: {error}") from error
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError("", f"{source}: a mapping is expected at the top")
    descriptor: Any = kind.DESCRIPTOR
    tree = _checked(tree, descriptor, "")
    try:
        return json_format.ParseDict(tree, kind())
    except json_format.ParseError as error:
        raise _located(error) from error


_MOST_NODES = 1_000_000
"""Values of a document with its aliases written out."""


def _count(tree: Any, source: str) -> None:
    """Refuse aliases of aliases that grow without bound once they are written out."""
    left = _MOST_NODES
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        left -= 1
        if left < 0:
            raise ConfigError("", f"{source}: more than {_MOST_NODES} values, aliases written out")
        if isinstance(node, dict):
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _checked(node: Any, descriptor: Descriptor, path: str) -> Any:
    """The node with nulls dropped; unknown fields and wrong shapes are refused."""
    if descriptor.full_name == "google.protobuf.Duration" and isinstance(node, dict):
        return _duration(node, path)
    if descriptor.full_name in _OPAQUE:
        return node
    if not isinstance(node, dict):
        raise ConfigError(path, f"a {descriptor.name} is expected, not {_shown(node)}")
    if descriptor.full_name == "google.protobuf.Any":
        return _checked_any(node, path)
    known = {field.name: field for field in descriptor.fields}
    known.update({field.json_name: field for field in descriptor.fields})
    result: dict[str, Any] = {}
    for key, value in node.items():
        where = f"{path}.{key}" if path else str(key)
        field = known.get(key)
        if field is None:
            nearest = difflib.get_close_matches(str(key), [f.name for f in descriptor.fields], 1)
            raise ConfigError(where, "unknown field" + (f", did you mean {nearest[0]}?" if nearest else ""))
        if value is None:
            continue
        if field.name in result:
            raise ConfigError(where, "given twice")
        result[field.name] = _checked_field(value, field, f"{path}.{field.name}" if path else field.name)
    return result


def _duration(node: dict[str, Any], path: str) -> str:
    """`{seconds: 30, nanos: 500000000}`, which Envoy takes as it takes `30.5s`."""
    for key, value in node.items():
        if key not in ("seconds", "nanos"):
            raise ConfigError(f"{path}.{key}", "unknown field of a Duration: seconds and nanos are known")
        if isinstance(value, bool) or not re.fullmatch(r"-?[0-9]+", str(value)):
            raise ConfigError(f"{path}.{key}", f"a whole number is expected, not {_shown(value)}")
    seconds, nanos = int(node.get("seconds") or 0), int(node.get("nanos") or 0)
    if abs(nanos) > 999_999_999 or seconds * nanos < 0:
        raise ConfigError(f"{path}.nanos", "must be less than a second, with the sign of seconds")
    return f"{'-' if seconds < 0 or nanos < 0 else ''}{abs(seconds)}.{abs(nanos):09d}s"


def _checked_any(node: dict[str, Any], path: str) -> Any:
    url = node.get("@type")
    if url is None:
        if node:
            raise ConfigError(f"{path}.@type", "required")
        return node
    kind = message_class(type_name(str(url)))
    if kind is None:
        raise ConfigError(f"{path}.@type", f"unknown type {url!r}")
    descriptor: Any = kind.DESCRIPTOR
    if descriptor.full_name in _OPAQUE or descriptor.full_name == "google.protobuf.Any":
        return node
    inner = {key: value for key, value in node.items() if key != "@type"}
    return {"@type": url, **_checked(inner, descriptor, path)}


def _checked_field(value: Any, field: FieldDescriptor, path: str) -> Any:
    message: Any = field.message_type
    if message is not None and message.GetOptions().map_entry:
        if not isinstance(value, dict):
            raise ConfigError(path, f"a mapping is expected, not {_shown(value)}")
        of_value = message.fields_by_name["value"]
        return {key: _checked_one(item, of_value, f'{path}["{key}"]') for key, item in value.items()}
    if field.is_repeated:
        if not isinstance(value, list):
            raise ConfigError(path, f"a list is expected, not {_shown(value)}")
        return [_checked_one(item, field, f"{path}[{position}]") for position, item in enumerate(value)]
    return _checked_one(value, field, path)


def _checked_one(value: Any, field: FieldDescriptor, path: str) -> Any:
    if field.message_type is not None:
        return _checked(value, field.message_type, path)
    if isinstance(value, dict | list):
        raise ConfigError(path, f"a plain value is expected, not {_shown(value)}")
    if field.type == FieldDescriptor.TYPE_STRING and not isinstance(value, str):
        raise ConfigError(path, f"a string is expected, not {_shown(value)}")
    return value


def _shown(node: Any) -> str:
    return "a mapping" if isinstance(node, dict) else "a list" if isinstance(node, list) else repr(node)


_PLACE = re.compile(r"(?: at |\bat \")\"?[A-Za-z]+\.([\w.\[\]\"/@-]+?)\"?\.*$")
_WRAPPED = re.compile(r"^(?:Failed to parse \S+ field: )+")


def _located(error: json_format.ParseError) -> ConfigError:
    text = str(error).split("\n", 1)[0]
    found = _PLACE.search(text)
    names = re.findall(r"Failed to parse (\S+) field", text)
    reason = _WRAPPED.sub("", text)
    if found is not None:
        return ConfigError(found.group(1).rstrip("."), _PLACE.sub("", reason).rstrip(". "))
    return ConfigError(".".join(names), reason.rstrip(". "))
