"""The names in a certificate, read from its DER (X.690, RFC 5280).

Rule: strict and bounded; every length is checked, names are bytes until they are whole, so a NUL or a comma inside a name
stays inside it. Only what a peer's identity and the access log need is read; that the certificate is genuine has been
OpenSSL's judgement. The `cryptography` package, which could read it too, costs a worker 9 MB (docs/decisions/014).
Not for: verification, keys, making certificates (wire/x509).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

_SEQUENCE, _SET, _INTEGER, _OID, _OCTETS, _BOOLEAN = 0x30, 0x31, 0x02, 0x06, 0x04, 0x01
_VERSION, _EXTENSIONS = 0xA0, 0xA3
_DNS_NAME, _URI = 0x82, 0x86
_SUBJECT_ALTERNATIVE_NAME = "2.5.29.17"
_TEXT = {
    0x0C: "utf-8", 0x12: "ascii", 0x13: "ascii", 0x14: "latin-1", 0x16: "ascii", 0x1A: "ascii", 0x1C: "utf-32-be",
    0x1E: "utf-16-be",
}  # fmt: skip
"""Encodings of the ASN.1 string types."""
_SHORT = {
    "2.5.4.3": "CN", "2.5.4.4": "SN", "2.5.4.5": "serialNumber", "2.5.4.6": "C", "2.5.4.7": "L", "2.5.4.8": "ST",
    "2.5.4.9": "street", "2.5.4.10": "O", "2.5.4.11": "OU", "2.5.4.12": "title", "2.5.4.17": "postalCode",
    "2.5.4.42": "GN", "2.5.4.43": "initials", "2.5.4.44": "generationQualifier", "2.5.4.46": "dnQualifier",
    "2.5.4.65": "pseudonym", "0.9.2342.19200300.100.1.1": "UID", "0.9.2342.19200300.100.1.25": "DC",
    "1.2.840.113549.1.9.1": "emailAddress",
}  # fmt: skip
"""OpenSSL's short names, which Envoy prints."""
_SPECIAL = frozenset(b',+"\\<>;')


class DerError(ValueError):
    """Not a certificate as RFC 5280 has it; the message says where it ends to be one."""


class Names(NamedTuple):
    """What a certificate says of its holder and its issuer."""

    subject: str
    """RFC 2253, most specific first, as Envoy prints it."""
    issuer: str
    serial: str
    """Lower-case hexadecimal."""
    uris: tuple[str, ...]
    dns: tuple[str, ...]


def read_names(der: bytes) -> Names:
    """The names of one certificate. Raises DerError."""
    certificate = _only(_elements(der), _SEQUENCE, "certificate")
    body = list(_elements(next(_expected(_elements(certificate), _SEQUENCE, "signed part"))))
    if body and body[0][0] == _VERSION:
        del body[0]
    if len(body) < 6 or body[0][0] != _INTEGER or any(tag != _SEQUENCE for tag, _ in body[1:6]):
        raise DerError("the signed part lacks a serial number or names")
    uris, dns = _alternative_names(body[6:])
    serial = int.from_bytes(body[0][1], "big", signed=True)
    return Names(_distinguished(body[4][1]), _distinguished(body[2][1]), f"{serial:x}", uris, dns)


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each element, one after the other."""
    at, end = 0, len(data)
    while at < end:
        if end - at < 2 or data[at] & 0x1F == 0x1F:
            raise DerError(f"an element is cut off or has a long tag at byte {at}")
        tag, size = data[at], data[at + 1]
        at += 2
        if size & 0x80:
            count = size & 0x7F
            if not 1 <= count <= 4 or count > end - at:
                raise DerError(f"a length of {count} bytes at byte {at}")
            size = int.from_bytes(data[at : at + count], "big")
            at += count
        if size > end - at:
            raise DerError(f"an element of {size} bytes where {end - at} are left")
        yield tag, data[at : at + size]
        at += size


def _expected(elements: Iterator[tuple[int, bytes]], tag: int, what: str) -> Iterator[bytes]:
    for found, content in elements:
        if found != tag:
            raise DerError(f"the {what} has tag {found:#x}, not {tag:#x}")
        yield content
        return
    raise DerError(f"there is no {what}")


def _only(elements: Iterator[tuple[int, bytes]], tag: int, what: str) -> bytes:
    content = next(_expected(elements, tag, what))
    if next(elements, None) is not None:
        raise DerError(f"something follows the {what}")
    return content


def _alternative_names(rest: list[tuple[int, bytes]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """URI and DNS names of the subject alternative name extension."""
    uris: list[str] = []
    dns: list[str] = []
    seen = False
    for tag, content in rest:
        if tag != _EXTENSIONS:
            continue
        for kind, extension in _elements(_only(_elements(content), _SEQUENCE, "list of extensions")):
            parts = [part for part in _elements(extension) if part[0] != _BOOLEAN]
            if kind != _SEQUENCE or [tag for tag, _ in parts] != [_OID, _OCTETS]:
                raise DerError("an extension is not an identifier and a value")
            if _dotted(parts[0][1]) != _SUBJECT_ALTERNATIVE_NAME:
                continue
            if seen:
                raise DerError("two subject alternative name extensions")
            seen = True
            for name, value in _elements(_only(_elements(parts[1][1]), _SEQUENCE, "alternative names")):
                if name in (_URI, _DNS_NAME):
                    (uris if name == _URI else dns).append(_ascii(value))
    return tuple(uris), tuple(dns)


def _ascii(value: bytes) -> str:
    try:
        return value.decode("ascii")
    except UnicodeDecodeError:
        raise DerError(f"an alternative name is not ASCII: {value[:80]!r}") from None


def _dotted(content: bytes) -> str:
    """An object identifier (X.690 section 8.19)."""
    numbers: list[int] = []
    number = 0
    for byte in content:
        number = number << 7 | byte & 0x7F
        if number >> 64:
            raise DerError("an object identifier with a number beyond 64 bits")
        if not byte & 0x80:
            numbers.append(number)
            number = 0
    if not numbers or content[-1] & 0x80:
        raise DerError("an object identifier is cut off")
    first = min(numbers[0] // 40, 2)
    return ".".join(map(str, (first, numbers[0] - 40 * first, *numbers[1:])))


def _distinguished(content: bytes) -> str:
    """A distinguished name as OpenSSL writes RFC 2253: the last part first, parts of one set joined by a plus."""
    parts: list[str] = []
    for tag, relative in _elements(content):
        if tag != _SET:
            raise DerError("a name is not made of sets")
        parts.append("+".join(reversed([_attribute(attribute) for _, attribute in _elements(relative)])))
    return ",".join(reversed(parts))


def _attribute(content: bytes) -> str:
    elements = list(_elements(content))
    if len(elements) != 2 or elements[0][0] != _OID:
        raise DerError("a part of a name is not a type and a value")
    identifier, (tag, value) = _dotted(elements[0][1]), elements[1]
    name, encoding = _SHORT.get(identifier), _TEXT.get(tag)
    if name is not None and encoding is not None:
        try:
            return f"{name}={_escaped(value.decode(encoding).encode())}"
        except UnicodeDecodeError:
            raise DerError(f"a part of a name is not {encoding}") from None
    # The whole element again, as a dump; it was read from the end of `content`.
    return f"{name or identifier}=#{content[len(content) - len(value) - _header(len(value)) :].hex().upper()}"


def _header(size: int) -> int:
    """Bytes of a tag and a length."""
    return 2 if size < 0x80 else 2 + (size.bit_length() + 7) // 8


def _escaped(value: bytes) -> str:
    """RFC 2253 section 2.4; control characters and what is not ASCII by their bytes, as OpenSSL does."""
    out: list[str] = []
    last = len(value) - 1
    for at, byte in enumerate(value):
        if not 0x20 <= byte < 0x7F:
            out.append(f"\\{byte:02X}")
        elif byte in _SPECIAL or (byte == 0x20 and at in (0, last)) or (byte == 0x23 and at == 0):
            out.append("\\" + chr(byte))
        else:
            out.append(chr(byte))
    return "".join(out)
