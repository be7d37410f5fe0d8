"""The header map of one message.

A dictionary of lower-case names to values, because nearly every message names each header once and a
dictionary is the fastest thing Python has. Second and later occurrences of a name wait in `repeated`,
in order. Names and values are the bytes of the wire; nothing here decodes, validates or folds them.
The dictionary is held, not inherited from: calls of a compiled class's own methods are calls of C functions.
Not for: framing (content-length, transfer-encoding), which belongs to the codecs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Final, overload


class Cases:
    """Header names as a peer wrote them (Envoy PreserveCaseHeaderFormatter): the first spelling of each counts."""

    __slots__ = ("_proper", "_written")

    def __init__(self, written: Iterable[bytes], proper: bool) -> None:
        self._written: dict[bytes, bytes] = {}
        self._proper = proper
        for name in written:
            self._written.setdefault(name.lower(), name)

    def of(self, name: bytes) -> bytes:
        """The spelling of a lower-case name; names that the peer did not send stay, or are written properly."""
        found = self._written.get(name)
        if found is not None:
            return found
        return proper_case(name) if self._proper else name


def proper_case(name: bytes) -> bytes:
    """`content-length` as `Content-Length` (Envoy ProperCaseHeaderKeyFormatter)."""
    return b"-".join([part[:1].upper() + part[1:] for part in name.split(b"-")])


class Headers:
    """`first` occurrences as a dictionary, later ones in `repeated` (None while every name is unique).

    Code that runs for every request may read `first` itself; changes go through the methods, which know of `repeated`."""

    __slots__ = ("cases", "first", "repeated")

    def __init__(self, fields: Iterable[tuple[bytes, bytes]] = ()) -> None:
        first: dict[bytes, bytes] = {}
        self.first = first
        self.repeated: list[tuple[bytes, bytes]] | None = None
        self.cases: Cases | None = None
        """How the names were written, where they are to be written so again."""
        for name, value in fields:
            if name not in first:
                first[name] = value
            elif self.repeated is None:
                self.repeated = [(name, value)]
            else:
                self.repeated.append((name, value))

    @classmethod
    def of_wire(cls, fields: Collection[tuple[bytes, bytes]]) -> Headers:
        """The header map of fields as a codec found them: names in any case."""
        headers = Headers()
        first = headers.first
        known = KNOWN_NAMES
        for written, value in fields:
            name = known.get(written)
            if name is None:
                name = _learn(written)
            first[name] = value
        if len(first) != len(fields):
            return Headers([(name.lower(), value) for name, value in fields])
        return headers

    def __contains__(self, name: object) -> bool:
        return name in self.first

    def __getitem__(self, name: bytes) -> bytes:
        return self.first[name]

    def __setitem__(self, name: bytes, value: bytes) -> None:
        """Set the first occurrence; `set` replaces them all."""
        self.first[name] = value

    def __len__(self) -> int:
        return len(self.first)

    def __bool__(self) -> bool:
        return bool(self.first)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.first)

    @overload
    def get(self, name: bytes) -> bytes | None: ...
    @overload
    def get(self, name: bytes, default: bytes) -> bytes: ...
    def get(self, name: bytes, default: bytes | None = None) -> bytes | None:
        """The first value of a name."""
        return self.first.get(name, default)

    def pop(self, name: bytes, default: bytes | None = None) -> bytes | None:
        """Take the first occurrence of a name away, for names that occur once; its value."""
        return self.first.pop(name, default)

    def clear(self) -> None:
        """Take everything away."""
        self.first.clear()
        self.repeated = None

    def get_all(self, name: bytes) -> list[bytes]:
        """Every value of a name, in the order received."""
        first = self.first.get(name)
        if first is None:
            return []
        if self.repeated is None:
            return [first]
        return [first, *(value for other, value in self.repeated if other == name)]

    def joined(self, name: bytes) -> bytes | None:
        """All values of a name joined by commas (RFC 9110 section 5.3); None where there is none."""
        if self.repeated is None:
            return self.first.get(name)
        values = self.get_all(name)
        return b",".join(values) if values else None

    def set(self, name: bytes, value: bytes) -> None:
        """Replace every occurrence of a name with one value."""
        self.first[name] = value
        if self.repeated is not None:
            self.repeated = [field for field in self.repeated if field[0] != name] or None

    def add(self, name: bytes, value: bytes) -> None:
        """Add an occurrence after those that are there."""
        if name not in self.first:
            self.first[name] = value
        elif self.repeated is None:
            self.repeated = [(name, value)]
        else:
            self.repeated.append((name, value))

    def remove(self, name: bytes) -> bool:
        """Take every occurrence of a name away; tells whether there was one."""
        if self.first.pop(name, None) is None:
            return False
        if self.repeated is not None:
            self.repeated = [field for field in self.repeated if field[0] != name] or None
        return True

    def fields(self) -> Collection[tuple[bytes, bytes]]:
        """All fields for serialisation; occurrences of one name stand together, in their order."""
        repeated = self.repeated
        if repeated is None:
            return self.first.items()
        later: dict[bytes, list[tuple[bytes, bytes]]] = {}
        for field in repeated:
            later.setdefault(field[0], []).append(field)
        together: list[tuple[bytes, bytes]] = []
        for field in self.first.items():
            together.append(field)
            if field[0] in later:
                together.extend(later[field[0]])
        return together

    def every(self) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over all fields."""
        yield from self.first.items()
        if self.repeated is not None:
            yield from self.repeated

    def size(self) -> int:
        """Bytes of names and values (Envoy HeaderMap::byteSize), without the framing that a codec adds for itself."""
        total = 0
        for name, value in self.first.items():
            if name != b"transfer-encoding":
                total += len(name) + len(value)
        if self.repeated is not None:
            for name, value in self.repeated:
                total += len(name) + len(value)
        return total

    def duplicate(self) -> Headers:
        """An independent copy, for a retry or a mirror."""
        copy = Headers(self.first.items())
        copy.cases = self.cases
        if self.repeated is not None:
            copy.repeated = list(self.repeated)
        return copy


_REMEMBERED: Final = 1024
_LONG: Final = 64
KNOWN_NAMES: Final[dict[bytes, bytes]] = {}
"""Names as they are written, to lower case, of fields that a parser has found: senders use few, and one object a name makes
every later look-up cheap."""


def _learn(written: bytes) -> bytes:
    lower = written.lower()
    name = KNOWN_NAMES.get(lower, lower)
    if len(KNOWN_NAMES) < _REMEMBERED and len(written) <= _LONG:
        KNOWN_NAMES[lower] = KNOWN_NAMES[written] = name
    return name
