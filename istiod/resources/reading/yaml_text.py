"""YAML as Kubernetes reads it: safe, with merge keys, no dates, no base-60 numbers, no duplicate keys, no alias bombs.

Not for: anything about Istio.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from istiod.resources.names import number_of

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
        return {key.value: self.construct_object(value, deep=True) for key, value in members(node)}

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if (
            isinstance(value, str)
            and not value.isascii()
            and any("\ud800" <= char <= "\udfff" for char in value)
        ):
            raise yaml.MarkedYAMLError(
                "while reading a text",
                node.start_mark,
                "half of a surrogate pair is no character",
                node.start_mark,
            )
        return value

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


_Member: TypeAlias = tuple[yaml.Node, yaml.Node]
_MERGE = "<<"
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(.*?)\](?=[.\[]|$)")


def members(node: yaml.MappingNode) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
    """The keys and values of a mapping, with those that merge keys (`<<: *defaults`) bring and it does not have.

    Raises yaml.MarkedYAMLError: for a key that is no plain scalar or is there twice, for a merge of anything but
    mappings.
    """
    own: dict[str, tuple[yaml.ScalarNode, yaml.Node]] = {}
    merged: list[yaml.Node] = []
    for key, value in node.value:
        problem = ""
        if not isinstance(key, yaml.ScalarNode):
            problem = "keys must be plain"
        elif key.value == _MERGE and key.style is None:
            merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
            continue
        elif key.value in own:
            problem = f"the key {key.value!r} is there twice"
        if problem:
            raise yaml.MarkedYAMLError("while reading a mapping", node.start_mark, problem, key.start_mark)
        own[key.value] = (key, value)
    for other in merged:
        if not isinstance(other, yaml.MappingNode):
            raise yaml.MarkedYAMLError(
                "while reading a mapping", node.start_mark, "<< can merge mappings only", other.start_mark
            )
        for key, value in members(other):
            own.setdefault(key.value, (key, value))
    return list(own.values())


@dataclass(frozen=True, slots=True)
class YamlNode:
    """A document, or a part of one: its value, and where its parts are written."""

    value: Any
    node: yaml.Node
    _found: dict[int, dict[str, _Member]] = field(default_factory=dict, repr=False, compare=False)
    """The members of the mappings that were asked for: problems come by the thousand for one mapping."""

    @property
    def line(self) -> int:
        """The line (from 1) on which it starts."""
        return int(self.node.start_mark.line) + 1

    def line_of(self, path: str) -> int:
        """The line of the field at `path` (`spec.http[0].route`), or of the innermost part of it that is there.

        A step of the path is the key as it is written, or the camelCase of it.
        """
        line, node = self.line, self.node
        for step in _steps(path):
            found = self._child(node, step)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        return line

    def inside(self, path: str) -> YamlNode:
        """The part at `path`, which must be there."""
        node, value = self.node, self.value
        for step in _steps(path):
            found = self._child(node, step)
            assert found is not None
            node = found[1]
            value = value[int(step)] if isinstance(value, list) else value[step]
        return YamlNode(value, node, self._found)

    def _child(self, node: yaml.Node, step: str) -> _Member | None:
        """Where a member begins (its key, or itself in a list), and the member."""
        if isinstance(node, yaml.MappingNode):
            found = self._found.get(id(node))
            if found is None:
                found = self._found[id(node)] = {}
                for key, value in members(node):
                    head, *rest = key.value.split("_")
                    found.setdefault(
                        head + "".join(part[:1].upper() + part[1:] for part in rest), (key, value)
                    )
                    found[key.value] = (key, value)
            return found.get(step)
        if isinstance(node, yaml.SequenceNode):
            index = number_of(step)
            if index is not None and index < len(node.value):
                return node.value[index], node.value[index]
        return None


def _steps(path: str) -> Iterator[str]:
    for match in _STEP.finditer(path):
        yield match.group(1) if match.group(1) is not None else match.group(2)


def documents(text: str) -> Iterator[YamlNode]:
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
                yield YamlNode(value, node)
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
