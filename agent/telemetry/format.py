"""Envoy's substitution formatter: `[%START_TIME%] "%REQ(:METHOD)%"` compiled to a function of an Outcome.

Rule: everything that can be known from the format is worked out once; a line is one pass over a flat tuple of
getters. Used for access logs, local replies and (by agent/routing) header values.
Not for: what an operator reads (operators.py), nor for writing lines anywhere (access_log.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from agent.telemetry.operators import OPERATORS
from agent.telemetry.outcome import Outcome
from agent.telemetry.times import Getter

DEFAULT_FORMAT: Final = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" '
    "%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% "
    '%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" '
    '"%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%"\n'
)
"""Envoy's own default line."""

_COMMAND: Final = re.compile(r"%([A-Z0-9_]+)(?:\(([^)]*)\))?(?::([0-9]+))?%")

_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True, default=dict).encode


class FormatError(ValueError):
    """A format that cannot be compiled: which operator, and its offset in the format."""

    def __init__(self, operator: str, offset: int, reason: str) -> None:
        super().__init__(f"{operator or 'format'} at offset {offset}: {reason}")
        self.operator = operator
        self.offset = offset
        self.reason = reason


def compile_format(source: str, *, omit_empty: bool = False) -> Callable[[Outcome], str]:
    """Text formatter. Absent values print as `-`, or as nothing with `omit_empty` (Envoy omit_empty_values).

    Raises FormatError for an unknown operator or a malformed one.
    """
    parts = _parse(source, "" if omit_empty else "-")
    getters = tuple([part for part in parts if not isinstance(part, str)])
    if not getters:
        constant = "".join([part for part in parts if isinstance(part, str)])
        return lambda _outcome: constant
    if len(parts) == 1:
        only = getters[0]
        return lambda outcome: str(only(outcome))
    template = "".join([part.replace("%", "%%") if isinstance(part, str) else "%s" for part in parts])

    def render(outcome: Outcome) -> str:
        return template % tuple([get(outcome) for get in getters])

    return render


def compile_json(tree: Mapping[str, Any], *, omit_empty: bool = False) -> Callable[[Outcome], str]:
    """JSON formatter: one object and a line feed, keys sorted as Envoy's.

    A string of one operator keeps that operator's type; absent is null, or left out with `omit_empty`.
    A value that is not UTF-8 is taken byte by byte (U+00FF for 0xff), as Envoy does.
    Raises FormatError as compile_format does.
    """
    build = _compile_node(tree, omit_empty)

    def render(outcome: Outcome) -> str:
        line = _to_json(build(outcome)) + "\n"
        try:
            if not line.isascii():
                line.encode()
        except UnicodeEncodeError:
            return _to_json(_bytewise(build(outcome))) + "\n"
        return line

    return render


def _bytewise(node: Any) -> Any:
    """The same tree; texts that hold stray bytes become one character a byte."""
    if isinstance(node, str):
        raw = node.encode("utf-8", "surrogateescape")
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return raw.decode("latin-1")
    if isinstance(node, Mapping):
        return {key: _bytewise(value) for key, value in node.items()}
    return [_bytewise(value) for value in node] if isinstance(node, list | tuple) else node


def _parse(source: str, absent: Any) -> list[str | Getter]:
    parts: list[str | Getter] = []
    literal: list[str] = []
    position = 0
    while position < len(source):
        start = source.find("%", position)
        if start < 0:
            literal.append(source[position:])
            break
        literal.append(source[position:start])
        if source.startswith("%%", start):
            literal.append("%")
            position = start + 2
            continue
        found = _COMMAND.match(source, start)
        if found is None:
            raise FormatError(
                source[start : start + 40].split(" ", maxsplit=1)[0],
                start,
                "not an operator (a lone % is %%)",
            )
        if any(literal):
            parts.append("".join(literal))
        literal = []
        parts.append(_operator(found, absent))
        position = found.end()
    if any(literal):
        parts.append("".join(literal))
    return parts


def _operator(found: re.Match[str], absent: Any) -> Getter:
    name, argument, length = found.groups()
    offset = found.start()
    operator = OPERATORS.get(name)
    if operator is None:
        raise FormatError(name, offset, "unknown or unsupported operator")
    if operator.argument == "none" and argument is not None:
        raise FormatError(name, offset, "takes no parameter")
    if operator.argument == "required" and not argument:
        raise FormatError(name, offset, "requires a parameter")
    if length is not None and not operator.length:
        raise FormatError(name, offset, "does not allow a length")
    try:
        get = operator.make(argument or "", absent)
    except ValueError as error:
        raise FormatError(name, offset, str(error)) from None
    if length is not None:
        return _cut(get, int(length), absent)
    return _printed(get) if operator.tree and absent is not None else get


def _cut(get: Getter, length: int, absent: Any) -> Getter:
    def cut(outcome: Outcome) -> Any:
        value = get(outcome)
        return value if value is absent else _as_text(value)[:length]

    return cut


def _printed(get: Getter) -> Getter:
    return lambda outcome: _as_text(get(outcome))


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return _to_json(value) if isinstance(value, bool | float | Mapping | list | tuple) else str(value)


def _compile_node(node: Any, omit_empty: bool) -> Callable[[Outcome], Any]:
    if isinstance(node, str):
        return _compile_leaf(node, omit_empty)
    if isinstance(node, Mapping):
        return _compile_object(node, omit_empty)
    if isinstance(node, Sequence):
        items = tuple([_compile_node(item, omit_empty) for item in node])

        def build_list(outcome: Outcome) -> list[Any]:
            values = [item(outcome) for item in items]
            return [value for value in values if value is not None] if omit_empty else values

        return build_list
    if node is None or isinstance(node, bool | int | float):
        return lambda _outcome: node
    raise FormatError(
        "", 0, f"a JSON format holds texts, numbers, objects and lists, not {type(node).__name__}"
    )


def _compile_object(node: Mapping[str, Any], omit_empty: bool) -> Callable[[Outcome], dict[str, Any]]:
    fields = tuple([(key, _compile_node(value, omit_empty)) for key, value in sorted(node.items())])

    def build_object(outcome: Outcome) -> dict[str, Any]:
        values = {key: build(outcome) for key, build in fields}
        return {key: value for key, value in values.items() if value is not None} if omit_empty else values

    return build_object


def _compile_leaf(source: str, omit_empty: bool) -> Callable[[Outcome], Any]:
    parts = _parse(source, None)
    if len(parts) == 1 and not isinstance(parts[0], str):
        return parts[0]
    return compile_format(source, omit_empty=omit_empty)
