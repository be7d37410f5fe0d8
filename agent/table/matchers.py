"""Matchers as values (Envoy type.matcher.v3, route.v3 HeaderMatcher) and their compilation to predicates.

Rule: a value says what the configuration said; `compile_*` turns it into a function over wire bytes once, so that
a request never interprets configuration. Every user's pattern runs in RE2 and must match the whole subject.
Not for: fetching the subject out of a request, which agent/http/matching does for filters and routing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final, TypeAlias

import re2

BytesPredicate: TypeAlias = Callable[[bytes], bool]
HeaderPredicate: TypeAlias = Callable[[bytes | list[bytes] | None], bool]
Network: TypeAlias = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class StringMatch:
    """Envoy StringMatcher. `kind` is `exact`, `prefix`, `suffix`, `contains` or `regex`."""

    kind: str
    value: str
    ignore_case: bool = False


@dataclass(frozen=True, slots=True)
class HeaderMatch:
    """Envoy HeaderMatcher: one of `string`, `range` ([start, end)) or, where both are None, `present`."""

    name: bytes
    """Lower case; may be a pseudo-header (`:method`, `:path`, `:authority`, `:scheme`) or `host`."""
    string: StringMatch | None = None
    range: tuple[int, int] | None = None
    present: bool = True
    invert: bool = False
    missing_as_empty: bool = False


@dataclass(frozen=True, slots=True)
class QueryMatch:
    """Envoy QueryParameterMatcher; `string` None means the parameter must be (or, `present` false, not be) there."""

    name: str
    string: StringMatch | None = None
    present: bool = True


@dataclass(frozen=True, slots=True)
class ValueMatch:
    """Envoy ValueMatcher over metadata. `kind`: `null`, `number`, `range`, `string`, `bool`, `present`, `list`, `or`.

    `value`: None, a float, (start, end), a StringMatch, a bool, a bool, a ValueMatch for one_of, a tuple of ValueMatch.
    """

    kind: str
    value: Any = None


@dataclass(frozen=True, slots=True)
class MetadataMatch:
    """Envoy MetadataMatcher: the value at `path` in the namespace `filter`."""

    filter: str
    path: tuple[str, ...]
    value: ValueMatch
    invert: bool = False


@dataclass(frozen=True, slots=True)
class FilterStateMatch:
    """Envoy FilterStateMatcher over a text."""

    key: str
    value: StringMatch


@dataclass(frozen=True, slots=True)
class Fraction:
    """Envoy FractionalPercent."""

    numerator: int
    denominator: int = 100

    def takes(self, random: int) -> bool:
        """Does a draw (any non-negative integer) fall into this share?"""
        return random % self.denominator < self.numerator


EVERYTHING: Final = Fraction(100)
NOTHING: Final = Fraction(0)


QUIET: Final = re2.Options()
QUIET.log_errors = False


def compile_pattern(pattern: str) -> BytesPredicate:
    """Predicate: does the whole subject match this RE2 pattern? Raises re2.error for a bad pattern."""
    fullmatch = re2.compile(pattern.encode(), QUIET).fullmatch

    def matches(subject: bytes) -> bool:
        return fullmatch(subject) is not None

    return matches


def compile_string(match: StringMatch) -> BytesPredicate:
    """Predicate over wire bytes; ignore_case folds ASCII, as Envoy's does, and has no effect on patterns."""
    if match.kind == "regex":
        return compile_pattern(match.value)
    wanted = match.value.encode()
    if match.ignore_case:
        wanted = wanted.lower()
        folded: dict[str, BytesPredicate] = {
            "exact": lambda subject: subject.lower() == wanted,
            "prefix": lambda subject: subject.lower().startswith(wanted),
            "suffix": lambda subject: subject.lower().endswith(wanted),
            "contains": lambda subject: wanted in subject.lower(),
        }
        return folded[match.kind]
    literal: dict[str, BytesPredicate] = {
        "exact": wanted.__eq__,
        "prefix": lambda subject: subject.startswith(wanted),
        "suffix": lambda subject: subject.endswith(wanted),
        "contains": lambda subject: wanted in subject,
    }
    return literal[match.kind]


def compile_header(match: HeaderMatch) -> HeaderPredicate:
    """Predicate over a header's value: None where it is missing, a list where it came more than once.

    Of several values one has to match; inversion turns the result around. A missing header matches only `present`
    tests, unless treat_missing_header_as_empty: inversion does not apply to it (Envoy's HeaderUtility).
    """
    invert = match.invert
    if match.string is None and match.range is None:
        present = match.present != invert
        return lambda value: (value is not None) == present
    test = compile_string(match.string) if match.string is not None else _compile_range(match.range)
    missing = test(b"") != invert if match.missing_as_empty else False

    def matches(value: bytes | list[bytes] | None) -> bool:
        if value is None:
            return missing
        if isinstance(value, list):
            return any(map(test, value)) != invert
        return test(value) != invert

    return matches


def _compile_range(limits: tuple[int, int] | None) -> BytesPredicate:
    start, end = limits or (0, 0)

    def within(value: bytes) -> bool:
        number = decimal(value)
        return number is not None and start <= number < end

    return within


def decimal(value: bytes) -> int | None:
    """A signed 64-bit decimal number as absl::SimpleAtoi reads it (spaces around it are allowed); else None."""
    text = value.strip(b" \t\n\v\f\r")
    digits = text[1:] if text[:1] in {b"-", b"+"} else text
    if not digits.isdigit() or len(digits) > 20:
        return None
    number = int(text)
    return number if -(1 << 63) <= number < 1 << 63 else None


def compile_metadata(match: MetadataMatch) -> Callable[[Mapping[str, Mapping[str, Any]]], bool]:
    """Predicate over metadata (namespace to a JSON-like tree)."""
    test = _compile_value(match.value)
    path, namespace, invert = match.path, match.filter, match.invert

    def matches(metadata: Mapping[str, Mapping[str, Any]]) -> bool:
        node: Any = metadata.get(namespace, _MISSING)
        for key in path:
            node = node.get(key, _MISSING) if isinstance(node, Mapping) else _MISSING
        return test(node) != invert

    return matches


_MISSING: Final[Any] = object()


def _compile_value(match: ValueMatch) -> Callable[[Any], bool]:
    value = match.value
    if match.kind == "null":
        return lambda node: node is None
    if match.kind == "number":
        return lambda node: _is_number(node) and node == value
    if match.kind == "range":
        start, end = value
        return lambda node: _is_number(node) and start <= node < end
    if match.kind == "string":
        test = compile_string(value)
        return lambda node: isinstance(node, str) and test(node.encode())
    if match.kind == "bool":
        return lambda node: node is value
    if match.kind == "present":
        return lambda node: (node is not _MISSING) == value
    if match.kind == "list":
        one_of = _compile_value(value)
        return lambda node: isinstance(node, list | tuple) and any(one_of(item) for item in node)
    alternatives = tuple(_compile_value(item) for item in value)
    return lambda node: any(alternative(node) for alternative in alternatives)


def _is_number(node: Any) -> bool:
    return isinstance(node, int | float) and not isinstance(node, bool)


def compile_networks(networks: tuple[Network, ...]) -> Callable[[str], bool]:
    """Predicate over an IP address's text: is it in one of the networks? What is no address is in none."""

    def contains(text: str) -> bool:
        address = parse_address(text)
        return address is not None and any(
            address.version == network.version and address in network for network in networks
        )

    return contains


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """An address, v4-mapped v6 as its v4; None where the text is not one (a Unix socket's path)."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
