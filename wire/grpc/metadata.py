"""A call's metadata and deadline as HTTP/2 fields, in both directions.

Rule: names are lower case; a field whose name ends in `-bin` holds bytes, sent as base64; what gRPC and
HTTP/2 keep for themselves is not metadata. Source: gRPC over HTTP/2, "Requests", "Custom-Metadata".
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator

Fields = Iterable[tuple[bytes, bytes]]

_RESERVED = frozenset(
    (b"content-type", b"te", b"user-agent", b"host", b"content-length", b"connection", b"trailer")
)
_NAME = re.compile(r"[0-9a-z_.-]+")
_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


class Metadata:
    """Immutable pairs of name and value, in the order in which they came; names may repeat."""

    def __init__(self, pairs: Iterable[tuple[str, str | bytes]] = ()) -> None:
        self._pairs = tuple(pairs)

    def get(self, name: str, default: str | None = None) -> str | None:
        """The first text value of that name."""
        return next((value for value in self.get_all(name)), default)

    def get_all(self, name: str) -> list[str]:
        """All text values of that name."""
        return [value for key, value in self._pairs if key == name and isinstance(value, str)]

    def binary(self, name: str) -> bytes | None:
        """The first value of a `-bin` name."""
        return next((value for key, value in self._pairs if key == name and isinstance(value, bytes)), None)

    def __iter__(self) -> Iterator[tuple[str, str | bytes]]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __repr__(self) -> str:
        # Values may be tokens: names only.
        return f"Metadata({[name for name, _ in self._pairs]})"


def decode(fields: Fields) -> Metadata:
    """The metadata among received fields; a `-bin` value that is no base64 is left out."""
    pairs: list[tuple[str, str | bytes]] = []
    for name, value in fields:
        if name.startswith((b":", b"grpc-")) or name in _RESERVED:
            continue
        if not name.endswith(b"-bin"):
            pairs.append((name.decode("latin-1"), value.decode("latin-1")))
            continue
        for part in value.split(b","):
            try:
                padded = part + b"=" * (-len(part) % 4)
                pairs.append((name.decode("latin-1"), base64.b64decode(padded, validate=True)))
            except binascii.Error:
                continue
    return Metadata(pairs)


def encode(pairs: Iterable[tuple[str, str | bytes]]) -> list[tuple[bytes, bytes]]:
    """Metadata as fields; raises ValueError for a name or value that gRPC does not allow."""
    fields = []
    for name, value in pairs:
        key = name.encode("ascii", "replace")
        if not _NAME.fullmatch(name) or name.startswith("grpc-") or key in _RESERVED:
            raise ValueError(f"not a metadata name: {name!r}")
        if isinstance(value, bytes):
            if not name.endswith("-bin"):
                raise ValueError(f"bytes need a name ending in -bin: {name!r}")
            fields.append((key, base64.b64encode(value).rstrip(b"=")))
        else:
            if name.endswith("-bin") or not all(0x20 <= ord(char) < 0x7F for char in value):
                raise ValueError(f"the value of {name!r} is not printable ASCII")
            fields.append((key, value.encode("ascii")))
    return fields


def parse_timeout(value: bytes) -> float:
    """Seconds of a `grpc-timeout` field; raises ValueError."""
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise ValueError(f"not a grpc-timeout: {value!r}")
    return int(match[1]) * _UNITS[match[2]]


def format_timeout(seconds: float) -> bytes:
    """A `grpc-timeout` of so many seconds, never longer; at most eight digits as the protocol says."""
    for unit, scale in ((b"u", 1e6), (b"m", 1e3), (b"S", 1.0)):
        if seconds * scale < 1e8:
            return b"%d%s" % (max(int(seconds * scale), 0), unit)
    return b"%dH" % min(int(seconds / 3600), 99_999_999)
