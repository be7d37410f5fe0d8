"""Matchers, addresses, fractions and data sources (envoy.type.matcher.v3, config.core.v3)."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import re2

from agent.table.decode.message import Reader, tree
from agent.table.listener import Address
from agent.table.matchers import (
    QUIET,
    FilterStateMatch,
    Fraction,
    HeaderMatch,
    MetadataMatch,
    Network,
    QueryMatch,
    StringMatch,
    ValueMatch,
    compile_pattern,
)
from agent.table.route import HeaderChanges, HeaderOption, Substitution
from agent.table.substitution import replacement_pieces
from agent.table.tls import DataSource


def string_match(reader: Reader) -> StringMatch:
    """StringMatcher."""
    with reader as r:
        kind = r.which("match_pattern")
        ignore_case = r.boolean("ignore_case")
        if kind == "safe_regex":
            return StringMatch("regex", regex(r.must("safe_regex")))
        if kind not in {"exact", "prefix", "suffix", "contains"}:
            r.fail(
                kind, "unsupported field" if kind else "one of exact, prefix, suffix, contains, safe_regex"
            )
        return StringMatch(kind, r.text(kind), ignore_case)


def regex(reader: Reader) -> str:
    """RegexMatcher: the pattern, known to be one of RE2."""
    with reader as r:
        largest = MOST_PROGRAM
        if (engine := r.child("google_re2")) is not None:
            with engine as e:
                largest = min(e.integer("max_program_size", MOST_PROGRAM), MOST_PROGRAM)
        pattern = r.text("regex")
        check_pattern(r, "regex", pattern, largest)
        return pattern


MOST_PROGRAM = 32768
"""The largest RE2 program (Istio's re2.max_program_size.error_level): matching costs as much for each byte."""


def check_pattern(reader: Reader, name: str, pattern: str, largest: int = MOST_PROGRAM) -> None:
    """Refuse what RE2 cannot compile, or only to a program that is too large."""
    try:
        compile_pattern(pattern)
        size = re2.compile(pattern.encode(), QUIET).programsize
        if size > largest:
            reader.fail(name, f"the pattern's program has {size} instructions, {largest} are allowed")
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        text = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        reader.fail(name, f"not a pattern of RE2: {text}")


def substitution(reader: Reader | None) -> Substitution | None:
    """RegexMatchAndSubstitute."""
    if reader is None:
        return None
    with reader as r:
        pattern, replacement = regex(r.must("pattern")), r.text("substitution")
        try:
            replacement_pieces(replacement, re2.compile(pattern.encode(), QUIET).groups)
        except ValueError as error:
            r.fail("substitution", str(error))
        return Substitution(pattern, replacement)


def header_match(reader: Reader) -> HeaderMatch:
    """HeaderMatcher; without a specifier it means presence."""
    with reader as r:
        name = r.text("name").lower().encode()
        kind = r.which("header_match_specifier")
        invert, missing_as_empty = r.boolean("invert_match"), r.boolean("treat_missing_header_as_empty")
        string: StringMatch | None = None
        limits: tuple[int, int] | None = None
        present = True
        if kind == "string_match":
            string = string_match(r.must(kind))
        elif kind == "safe_regex_match":
            string = StringMatch("regex", regex(r.must(kind)))
        elif kind == "range_match":
            limits = int_range(r.must(kind))
        elif kind == "present_match":
            present = bool(r.take(kind) or getattr(r.message, kind))
        elif kind in {"exact_match", "prefix_match", "suffix_match", "contains_match"}:
            string = StringMatch(kind.removesuffix("_match"), r.text(kind))
        return HeaderMatch(name, string, limits, present, invert, missing_as_empty)


def header_matches(reader: Reader, name: str) -> tuple[HeaderMatch, ...]:
    """A repeated HeaderMatcher."""
    return tuple(header_match(item) for item in reader.children(name))


def query_match(reader: Reader) -> QueryMatch:
    """QueryParameterMatcher."""
    with reader as r:
        name, kind = r.text("name"), r.which("query_parameter_match_specifier")
        if kind == "string_match":
            return QueryMatch(name, string_match(r.must(kind)))
        if kind == "present_match":
            r.take(kind)
            return QueryMatch(name, present=bool(getattr(r.message, kind)))
        return QueryMatch(name)


def int_range(reader: Reader) -> tuple[int, int]:
    """Int64Range or Int32Range: start inclusive, end exclusive."""
    with reader as r:
        return r.integer("start"), r.integer("end")


def metadata_match(reader: Reader) -> MetadataMatch:
    """MetadataMatcher."""
    with reader as r:
        path: list[str] = []
        for segment in r.children("path"):
            with segment as s:
                path.append(s.text("key"))
        return MetadataMatch(r.text("filter"), tuple(path), value_match(r.must("value")), r.boolean("invert"))


def filter_state_match(reader: Reader) -> FilterStateMatch:
    """FilterStateMatcher."""
    with reader as r:
        key, kind = r.text("key"), r.which("matcher")
        if kind != "string_match":
            r.fail(kind, "unsupported field" if kind else "string_match is required")
        return FilterStateMatch(key, string_match(r.must(kind)))


def value_match(reader: Reader) -> ValueMatch:
    """ValueMatcher."""
    with reader as r:
        kind = r.which("match_pattern")
        if kind == "null_match":
            r.take(kind)
            return ValueMatch("null")
        if kind == "double_match":
            with r.must(kind) as number:
                if number.which("match_pattern") == "range":
                    with number.must("range") as limits:
                        return ValueMatch("range", (limits.take("start") or 0.0, limits.take("end") or 0.0))
                number.take("exact")
                return ValueMatch("number", getattr(number.message, "exact", 0.0))
        if kind == "string_match":
            return ValueMatch("string", string_match(r.must(kind)))
        if kind in {"bool_match", "present_match"}:
            r.take(kind)
            return ValueMatch(kind.removesuffix("_match"), bool(getattr(r.message, kind)))
        if kind == "list_match":
            with r.must(kind) as of_list:
                return ValueMatch("list", value_match(of_list.must("one_of")))
        if kind == "or_match":
            with r.must(kind) as alternatives:
                return ValueMatch(
                    "or", tuple(value_match(v) for v in alternatives.children("value_matchers"))
                )
        return r.fail("", "a value matcher must say what it matches")


def path_match(reader: Reader) -> StringMatch:
    """PathMatcher."""
    with reader as r:
        return string_match(r.must("path"))


def network(reader: Reader) -> Network:
    """CidrRange; host bits are cleared."""
    with reader as r:
        address = r.text("address_prefix")
        length = r.integer("prefix_len")
        try:
            return ip_network(f"{address}/{length}", strict=False)
        except ValueError as error:
            r.fail("", f"not an address range: {error}")


def networks(reader: Reader, name: str) -> tuple[Network, ...]:
    """A repeated CidrRange."""
    return tuple(network(item) for item in reader.children(name))


_DENOMINATORS = {"HUNDRED": "100", "TEN_THOUSAND": "10000", "MILLION": "1000000"}


def fraction(reader: Reader) -> Fraction:
    """FractionalPercent."""
    with reader as r:
        return Fraction(r.integer("numerator"), int(r.choice("denominator", _DENOMINATORS)))


def runtime_fraction(reader: Reader | None, default: Fraction) -> Fraction:
    """RuntimeFractionalPercent: the runtime's value for the key where there is one, else the default value."""
    if reader is None:
        return default
    with reader as r:
        key, given = r.text("runtime_key"), r.child("default_value")
        plain = Fraction(0) if given is None else fraction(given)
        return runtime_value(r, key, plain)


def runtime_value(reader: Reader, key: str, default: Fraction) -> Fraction:
    """A share that a static runtime layer may override: a whole number is a percentage."""
    if not key or key not in reader.context.runtime:
        return default
    reader.context.runtime_used.add(key)
    value = reader.context.runtime[key]
    if isinstance(value, int) and not isinstance(value, bool):
        return Fraction(value)
    if isinstance(value, dict) and isinstance(value.get("numerator"), int):
        return Fraction(value["numerator"], int(_DENOMINATORS[value.get("denominator", "HUNDRED")]))
    return default


def percent(reader: Reader | None, default: float) -> float:
    """Percent."""
    if reader is None:
        return default
    with reader as r:
        return float(r.take("value") or 0.0)


_OPTION_ACTIONS = {
    "APPEND_IF_EXISTS_OR_ADD": "append",
    "ADD_IF_ABSENT": "add_if_absent",
    "OVERWRITE_IF_EXISTS_OR_ADD": "overwrite",
    "OVERWRITE_IF_EXISTS": "overwrite_if_exists",
}


def header_option(reader: Reader) -> HeaderOption:
    """HeaderValueOption; the deprecated `append` false means overwrite."""
    with reader as r:
        with r.must("header") as header:
            name, value = header.text("key"), header.text("value")
            raw = header.take("raw_value")
            if raw:
                value = bytes(raw).decode("utf-8", "surrogateescape").replace("%", "%%")
        action = r.choice("append_action", _OPTION_ACTIONS)
        append = r.optional_boolean("append")
        if append is not None:
            if action != "append":
                r.fail("append", "append and append_action exclude each other")
            action = "append" if append else "overwrite"
        if not modifiable(name):
            r.fail("header.key", ":-prefixed or host headers may not be modified")
        return HeaderOption(name.lower().encode(), value, action, r.boolean("keep_empty_value"))


def modifiable(name: str) -> bool:
    """May configuration set or remove this header? (Envoy HeaderUtility::isModifiableHeader)"""
    return not name.startswith(":") and name.lower() != "host"


def header_options(reader: Reader, name: str) -> tuple[HeaderOption, ...]:
    """A repeated HeaderValueOption."""
    return tuple(header_option(item) for item in reader.children(name))


def header_changes(reader: Reader, direction: str) -> HeaderChanges:
    """`request_headers_to_add` and `_to_remove`, or the response's."""
    removals = reader.texts(f"{direction}_headers_to_remove")
    for position, name in enumerate(removals):
        if not modifiable(name):
            reader.fail(
                f"{direction}_headers_to_remove[{position}]", ":-prefixed or host headers may not be removed"
            )
    return HeaderChanges(
        header_options(reader, f"{direction}_headers_to_add"),
        tuple(name.lower().encode() for name in removals),
    )


def address(reader: Reader) -> Address:
    """Address: socket_address with an IP (or, for DNS clusters, a name) or a pipe."""
    with reader as r:
        kind = r.which("address")
        if kind == "pipe":
            with r.must("pipe") as pipe:
                pipe.only("mode", 0)
                return Address(path=pipe.text("path"))
        if kind != "socket_address":
            r.fail(kind, "unsupported field" if kind else "socket_address or pipe is required")
        return socket_address(r.must("socket_address"))


def socket_address(reader: Reader) -> Address:
    """SocketAddress over TCP."""
    with reader as r:
        r.choice("protocol", {"TCP": ""})
        r.take("port_value")
        return Address(
            r.text("address"), int(getattr(r.message, "port_value", 0)), ipv4_compat=r.boolean("ipv4_compat")
        )


def ip_only(reader: Reader) -> Address:
    """An address whose host must be an IP, as listeners and static endpoints need."""
    found = address(reader)
    if not found.path:
        try:
            ip_address(found.host)
        except ValueError:
            reader.fail("socket_address.address", f"malformed IP address: {found.host}")
    return found


def data_source(reader: Reader) -> DataSource:
    """DataSource, by name: for secrets, which may be renewed."""
    with reader as r:
        kind = r.which("specifier")
        if kind == "filename":
            return DataSource(filename=r.text(kind))
        if kind == "inline_bytes":
            return DataSource(inline=bytes(r.take(kind) or b""))
        if kind == "inline_string":
            return DataSource(inline=r.text(kind).encode())
        if kind == "environment_variable":
            return DataSource(inline=_environment(r, kind))
        return r.fail("", "a data source must name a file or hold its data")


def _environment(reader: Reader, kind: str) -> bytes:
    name = reader.text(kind)
    if name not in reader.context.environment:
        reader.fail(kind, f"environment variable {name} is not set")
    return reader.context.environment[name].encode()


def data(reader: Reader) -> bytes:
    """DataSource, read now."""
    path = reader.path
    source = data_source(reader)
    if not source.filename:
        return source.inline
    try:
        return reader.context.read_file(source.filename)
    except OSError as error:
        reader.path = path
        reader.fail("filename", f"cannot be read: {error}")


def metadata(reader: Reader | None) -> dict[str, dict[str, Any]]:
    """Metadata: namespace to tree."""
    if reader is None:
        return {}
    with reader as r:
        found: dict[str, dict[str, Any]] = {}
        for name, entry in r.entries("filter_metadata"):
            found[name] = tree(entry.message)
        return found
