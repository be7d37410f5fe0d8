"""Reading one protobuf message completely.

Rule: a `Reader` knows its message's path and which fields were consumed. Leaving its `with` block with a set field
that nobody consumed is a ConfigError at that field's path, so refusal needs no list of unsupported fields.
Not for: what the fields mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from agent.table.decode.types import unpack
from agent.table.errors import ConfigError

MOST_SECONDS = 9_223_372_036
"""2^63 nanoseconds, the longest duration of Envoy's."""


def read_bytes(name: str) -> bytes:
    """A file named by the configuration."""
    return Path(name).read_bytes()


@dataclass(slots=True)
class Context:
    """What reading needs besides the messages: files, environment and runtime keys."""

    read_file: Callable[[str], bytes] = read_bytes
    environment: Mapping[str, str] = field(default_factory=dict)
    runtime: Mapping[str, Any] = field(default_factory=dict)
    runtime_used: set[str] = field(default_factory=set)
    node_cluster: str = ""
    node_id: str = ""


class Reader:
    """One message at one path. Use as a context manager; leaving it checks for leftovers."""

    __slots__ = ("_seen", "_set", "context", "message", "path")

    def __init__(self, message: Message, path: str, context: Context) -> None:
        self.message = message
        self.path = path
        self.context = context
        self._seen: set[str] = set()
        self._set = {descriptor.name: value for descriptor, value in message.ListFields()}

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            for name in self._set:
                if name not in self._seen:
                    raise ConfigError(self.at(name), "unsupported field")

    def at(self, name: str) -> str:
        """The path of a field of this message."""
        return f"{self.path}.{name}" if self.path else name

    def fail(self, name: str, reason: str) -> NoReturn:
        """Refuse a field (or, with an empty name, the message)."""
        raise ConfigError(self.at(name) if name else self.path, reason)

    def has(self, name: str) -> bool:
        """Is the field set? Does not consume it."""
        return name in self._set

    def take(self, name: str) -> Any:
        """The raw value; None where the field is not set (for scalars: has its zero value)."""
        self._seen.add(name)
        return self._set.get(name)

    def text(self, name: str) -> str:
        """A string field."""
        value: str | None = self.take(name)
        return value or ""

    def texts(self, name: str) -> tuple[str, ...]:
        """A repeated string field."""
        return tuple(self.take(name) or ())

    def integer(self, name: str, default: int = 0) -> int:
        """An integer field, plain or wrapped (UInt32Value)."""
        value = self.take(name)
        if value is None:
            return default
        return int(_plain(value))

    def optional_integer(self, name: str) -> int | None:
        """A wrapped integer, None where it is not set."""
        value = self.take(name)
        return None if value is None else int(_plain(value))

    def boolean(self, name: str, default: bool = False) -> bool:
        """A boolean field, plain or wrapped (BoolValue)."""
        value = self.take(name)
        if value is None:
            return default
        return bool(_plain(value))

    def optional_boolean(self, name: str) -> bool | None:
        """A wrapped boolean, None where it is not set."""
        value = self.take(name)
        return None if value is None else bool(value.value)

    def seconds(self, name: str, default: float = 0.0) -> float:
        """A Duration in seconds."""
        value = self.optional_seconds(name)
        return default if value is None else value

    def optional_seconds(self, name: str) -> float | None:
        """A Duration in seconds, None where it is not set."""
        value = self.take(name)
        if value is None:
            return None
        return self.checked_seconds(name, value)

    def checked_seconds(self, name: str, duration: Any) -> float:
        """A Duration within Envoy's limits (DurationUtil), in seconds."""
        if duration.seconds < 0 or duration.nanos < 0:
            self.fail(name, "a duration must not be negative")
        if duration.seconds > MOST_SECONDS or duration.nanos > 999_999_999:
            self.fail(name, f"a duration of at most {MOST_SECONDS} s is supported")
        return seconds(duration)

    def choice(self, name: str, names: Mapping[str, str]) -> str:
        """An enum field: `names` maps its supported value names to ours; the others are refused."""
        value = self.enum_name(name, self.take(name) or 0)
        if value not in names:
            self.fail(name, f"unsupported value {value}, supported: {', '.join(names)}")
        return names[value]

    def enum_name(self, name: str, number: int) -> str:
        """The name of an enum field's number; the number itself where it has none."""
        enum = self.message.DESCRIPTOR.fields_by_name[name].enum_type
        value = None if enum is None else enum.values_by_number.get(number)
        return str(number) if value is None else str(value.name)

    def which(self, oneof: str) -> str:
        """The name of the set field of a oneof, empty for none."""
        return self.message.WhichOneof(oneof) or ""

    def child(self, name: str) -> Reader | None:
        """A reader for a message field; None where it is not set."""
        value = self.take(name)
        return None if value is None else Reader(value, self.at(name), self.context)

    def must(self, name: str) -> Reader:
        """A reader for a message field that has to be there."""
        return self.child(name) or self.fail(name, "required")

    def children(self, name: str) -> Iterator[Reader]:
        """Readers for a repeated message field."""
        for position, value in enumerate(self.take(name) or ()):
            yield Reader(value, f"{self.at(name)}[{position}]", self.context)

    def entries(self, name: str) -> Iterator[tuple[str, Reader]]:
        """Key and reader of a map of messages, in order of the keys."""
        values = self.take(name) or {}
        for key in sorted(values):
            yield key, Reader(values[key], f'{self.at(name)}["{key}"]', self.context)

    def typed(self, name: str) -> Reader | None:
        """A reader for the message inside an Any field; None where it is not set or empty."""
        value = self.take(name)
        if value is None or not value.type_url:
            return None
        return Reader(unpack(value, self.at(name)), self.at(name), self.context)

    def unpacked(self) -> Reader:
        """If this message is itself an Any, a reader for what is inside."""
        if isinstance(self.message, AnyMessage):
            return Reader(unpack(self.message, self.path), self.path, self.context)
        return self

    def tree(self, name: str) -> dict[str, Any]:
        """A Struct field as a JSON-like tree."""
        value = self.take(name)
        return {} if value is None else tree(value)

    @property
    def type(self) -> str:
        """Full name of the message's type."""
        return str(self.message.DESCRIPTOR.full_name)

    def without_effect(self, *names: str) -> None:
        """Consume fields that change nothing here; the caller says why."""
        self._seen.update(names)

    def only(self, name: str, *allowed: object) -> None:
        """Accept a scalar, wrapper or enum field only with one of these values (besides being unset)."""
        value = self.take(name)
        if value is None:
            return
        plain = _plain(value)
        if self.message.DESCRIPTOR.fields_by_name[name].enum_type is not None:
            plain = self.enum_name(name, plain)
        if plain not in allowed:
            self.fail(name, f"unsupported value {plain}")


def _plain(value: Any) -> Any:
    """The value inside a wrapper message, or the value itself."""
    return getattr(value, "value", value)


def seconds(duration: Any) -> float:
    """A protobuf Duration in seconds."""
    return float(duration.seconds + duration.nanos / 1e9)


def tree(struct: Message) -> dict[str, Any]:
    """A Struct as dictionaries, lists and scalars; whole numbers become int."""
    plain = _whole(json_format.MessageToDict(struct))
    return plain if isinstance(plain, dict) else {}


def _whole(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _whole(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_whole(value) for value in node]
    if isinstance(node, float) and node.is_integer():
        return int(node)
    return node
