"""The header map of one message.

A dictionary of lower-case names to values, because nearly every message names each header once and a
dictionary is the fastest thing Python has. Second and later occurrences of a name wait in `repeated`,
in order. Names and values are the bytes of the wire; nothing here decodes, validates or folds them.
Not for: framing (content-length, transfer-encoding), which belongs to the codecs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator


class Headers(dict[bytes, bytes]):
    """First occurrences as a dictionary, later ones in `repeated` (None while every name is unique)."""

    __slots__ = ("repeated",)

    repeated: list[tuple[bytes, bytes]] | None

    def __init__(self, fields: Iterable[tuple[bytes, bytes]] = ()) -> None:
        super().__init__()
        self.repeated = None
        if not fields:
            return
        fields = tuple(fields)
        self.update(fields)
        if len(self) != len(fields):
            self.clear()
            later: list[tuple[bytes, bytes]] = []
            for name, value in fields:
                if name in self:
                    later.append((name, value))
                else:
                    self[name] = value
            self.repeated = later

    @classmethod
    def of_wire(cls, fields: Collection[tuple[bytes, bytes]]) -> Headers:
        """The header map of fields as a codec found them: names in any case."""
        headers = cls()
        for name, value in fields:
            headers[name.lower()] = value
        if len(headers) != len(fields):
            return cls([(name.lower(), value) for name, value in fields])
        return headers

    def get_all(self, name: bytes) -> list[bytes]:
        """Every value of a name, in the order received."""
        first = self.get(name)
        if first is None:
            return []
        if self.repeated is None:
            return [first]
        return [first, *(value for other, value in self.repeated if other == name)]

    def joined(self, name: bytes) -> bytes | None:
        """All values of a name joined by commas (RFC 9110 section 5.3); None where there is none."""
        if self.repeated is None:
            return self.get(name)
        values = self.get_all(name)
        return b",".join(values) if values else None

    def set(self, name: bytes, value: bytes) -> None:
        """Replace every occurrence of a name with one value."""
        self[name] = value
        if self.repeated is not None:
            self.repeated = [field for field in self.repeated if field[0] != name] or None

    def add(self, name: bytes, value: bytes) -> None:
        """Add an occurrence after those that are there."""
        if name not in self:
            self[name] = value
        elif self.repeated is None:
            self.repeated = [(name, value)]
        else:
            self.repeated.append((name, value))

    def remove(self, name: bytes) -> bool:
        """Take every occurrence of a name away; tells whether there was one."""
        if self.pop(name, None) is None:
            return False
        if self.repeated is not None:
            self.repeated = [field for field in self.repeated if field[0] != name] or None
        return True

    def fields(self) -> Collection[tuple[bytes, bytes]]:
        """All fields for serialisation; occurrences of one name stand together, in their order."""
        repeated = self.repeated
        if repeated is None:
            return self.items()
        later: dict[bytes, list[tuple[bytes, bytes]]] = {}
        for field in repeated:
            later.setdefault(field[0], []).append(field)
        together: list[tuple[bytes, bytes]] = []
        for field in self.items():
            together.append(field)
            if field[0] in later:
                together.extend(later[field[0]])
        return together

    def every(self) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over all fields."""
        yield from self.items()
        if self.repeated is not None:
            yield from self.repeated

    def duplicate(self) -> Headers:
        """An independent copy, for a retry or a mirror."""
        copy = Headers(self.items())
        if self.repeated is not None:
            copy.repeated = list(self.repeated)
        return copy
