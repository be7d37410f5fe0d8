"""YAML as Kubernetes reads it: safe, no dates, no base-60 numbers, no duplicate keys, no alias bombs.

Not for: anything about Istio.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

_MAX_NODES = 200_000
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9]*|0o[0-7]+|0x[0-9a-fA-F]+)$")
_FLOAT = re.compile(
    r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
)

_BLANKS = "\0 \t\r\n\x85\u2028\u2029"
_FLOW_ENDS = "\0\r\n\x85\u2028\u2029,[]{}"


class YamlError(ValueError):
    """The text is not YAML that we read; the message has line and column."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's numbers, without timestamps, and refusing duplicate keys."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as PyYAML declares it
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:null")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    "while reading a mapping", node.start_mark, "keys must be plain", key_node.start_mark
                )
            if key_node.value in seen:
                problem = f"the key {key_node.value!r} is there twice"
                raise yaml.MarkedYAMLError(
                    "while reading a mapping", node.start_mark, problem, key_node.start_mark
                )
            seen.add(key_node.value)
        return {key_node.value: self.construct_object(value, deep=True) for key_node, value in node.value}

    def construct_plain_map(self, node: yaml.MappingNode) -> dict[Any, Any]:
        return self.construct_mapping(node)

    def scan_plain(self) -> yaml.ScalarToken:
        """As Go's YAML reads it, a colon ends a plain scalar only before white space, also between brackets
        (`[2001:db8::]` is one address)."""
        if not self.flow_level:
            return super().scan_plain()
        start = self.get_mark()
        length = 0
        while (char := self.peek(length)) not in _FLOW_ENDS:
            if char == ":" and self.peek(length + 1) in _BLANKS:
                break
            if char == "#" and length and self.peek(length - 1) in _BLANKS:
                break
            length += 1
        text = self.prefix(length).rstrip(" \t")
        self.forward(len(text))
        self.allow_simple_key = False
        return yaml.ScalarToken(text, True, start, self.get_mark())

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        return int(text, 0)


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_plain_map)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """One document of a stream: its value and the line (from 1) on which it starts."""

    value: Any
    line: int


def documents(text: str) -> Iterator[YamlDocument]:
    """The non-empty documents of a YAML stream. Raises YamlError."""
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:
        raise YamlError(_explain(error)) from None
    try:
        while loader.check_node():
            node = loader.get_node()
            if node is None:
                continue
            _measure(node, {}, 0)
            value = loader.construct_document(node)
            if value is not None:
                yield YamlDocument(value, node.start_mark.line + 1)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, YamlError):
            raise
        raise YamlError(_explain(error)) from None
    finally:
        loader.dispose()


def _measure(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """How many nodes `node` has once every alias is written out; refuses bombs and self-reference."""
    if depth > 100:
        raise YamlError(f"line {node.start_mark.line + 1}: nested too deeply")
    if id(node) in known:
        size = known[id(node)]
        if size == 0:
            raise YamlError(f"line {node.start_mark.line + 1}: an anchor contains itself")
        return size
    known[id(node)] = 0
    size = 1
    if isinstance(node, yaml.MappingNode):
        size += sum(
            _measure(key, known, depth + 1) + _measure(value, known, depth + 1) for key, value in node.value
        )
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_measure(item, known, depth + 1) for item in node.value)
    if size > _MAX_NODES:
        raise YamlError(f"line {node.start_mark.line + 1}: too large once its aliases are written out")
    known[id(node)] = size
    return size


def _explain(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error) or type(error).__name__
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark is not None else str(problem)
