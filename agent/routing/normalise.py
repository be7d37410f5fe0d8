"""Cleaning up path and authority before anything reads them.

Rule (Envoy ConnectionManagerUtility::maybeNormalizePath and PathUtil): fragment, escaped slashes, RFC 3986 dot
segments, duplicate slashes, in this order; then the host's port. What cannot be cleaned is refused with 400.
Not for: matching. Made once from a connection manager's settings; nothing at all where all is off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from agent.http.request import LocalReply, RequestContext
from agent.routing.hosts import port_start
from agent.table.listener import HttpManager
from agent.table.matchers import decimal

Normaliser: TypeAlias = Callable[[RequestContext], LocalReply | None]

_HASH: Final = 0x23
_PERCENT: Final = 0x25
"""Bytes are looked for as numbers: `b"#" in path` costs CPython an exception inside."""
FAILED: Final = LocalReply(400, details="path_normalization_failed")
_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_ESCAPED: Final = frozenset(b'"<>^`{|}')
_PLAIN: Final = bytes(byte for byte in range(0x21, 0x7F) if byte not in _ESCAPED and byte not in b"%\\")
_ESCAPED_SLASHES: Final = (b"%2f", b"%2F", b"%5c", b"%5C")


def compile_normaliser(hcm: HttpManager) -> Normaliser:
    """The function that cleans a request, or answers it with 400 or (unescape_redirect) 307."""
    strip_host = _compile_host(hcm)
    unescape = hcm.escaped_slashes
    dots, merge = hcm.normalize_path, hcm.merge_slashes

    def normalise(ctx: RequestContext) -> LocalReply | None:
        path = ctx.path
        if _HASH in path:
            return FAILED
        if strip_host is not None:
            strip_host(ctx)
        if path[:1] != b"/":
            return None
        redirect = rejected = False
        if unescape != "keep" and _PERCENT in path:
            unescaped = unescape_slashes(path)
            if unescaped != path:
                rejected = unescape == "reject"
                redirect = unescape == "unescape_redirect"
                path = unescaped
        if rejected:
            ctx.path = path  # as Envoy logs it
            return FAILED
        if dots:
            cleaned = remove_dot_segments(path)
            if cleaned is None:
                return FAILED
            path = cleaned
        if merge and path.find(b"//") >= 0:
            path = merge_slashes(path)
        ctx.path = path
        if redirect:
            return LocalReply(307, headers=((b"location", path),), details="path_normalization_failed")
        return None

    return normalise


def unescape_slashes(path: bytes) -> bytes:
    """%2F to `/` and %5C to `\\` in the path, not in the query."""
    bare, mark, query = path.partition(b"?")
    for escaped in _ESCAPED_SLASHES:
        bare = bare.replace(escaped, b"/" if escaped[1:2] == b"2" else b"\\")
    return bare + mark + query


def merge_slashes(path: bytes) -> bytes:
    """Runs of slashes in the path, not in the query, become one; of nothing but slashes two are left, as in Envoy."""
    bare, mark, query = path.partition(b"?")
    if not bare.strip(b"/") and len(bare) > 1:
        return b"//" + mark + query
    while b"//" in bare:
        bare = bare.replace(b"//", b"/")
    return bare + mark + query


def remove_dot_segments(path: bytes) -> bytes | None:
    """RFC 3986 section 6.2.2 as Envoy does it (Chromium's URL canonicaliser); None where it refuses the path.

    Backslashes count as slashes, %-escapes of unreserved characters are decoded, `%2e` counts as a dot, %00 is refused.
    A dot segment that was written plainly loses its parameters (`/..;x`).
    """
    bare, mark, query = path.partition(b"?")
    if bare.find(b".;") >= 0:
        bare = b"/".join(
            [
                part.partition(b";")[0] if part.startswith((b".;", b"..;")) else part
                for part in bare.split(b"/")
            ]
        )
    if bare.find(b"/.") < 0 and not bare.translate(None, _PLAIN):
        return path
    canonical = _decode_unreserved(bare.replace(b"\\", b"/"))
    if canonical is None:
        return None
    output: list[bytes] = []
    segments = canonical.split(b"/")[1:]
    last = len(segments) - 1
    for position, segment in enumerate(segments):
        if segment == b"..":
            if output:
                output.pop()
            if position == last:
                output.append(b"")
        elif segment == b".":
            if position == last:
                output.append(b"")
        else:
            output.append(segment)
    return b"/" + b"/".join(output) + mark + query


def _decode_unreserved(path: bytes) -> bytes | None:
    if not path.translate(None, _PLAIN):
        return path
    output = bytearray()
    position = 0
    while position < len(path):
        byte = path[position]
        if byte == 0x25:
            digits = path[position + 1 : position + 3]
            try:
                code = int(digits, 16) if len(digits) == 2 and digits.isalnum() else -1
            except ValueError:
                code = -1
            if code == 0:
                return None
            if code in _UNRESERVED:
                output.append(code)
                position += 3
                continue
            output.append(byte)
        elif byte in _ESCAPED or byte >= 0x7F:
            output += b"%%%02X" % byte
        else:
            output.append(byte)
        position += 1
    return bytes(output)


def _compile_host(hcm: HttpManager) -> Callable[[RequestContext], None] | None:
    if not (hcm.strip_any_host_port or hcm.strip_matching_host_port or hcm.strip_trailing_host_dot):
        return None
    any_port, matching, dot = (
        hcm.strip_any_host_port, hcm.strip_matching_host_port, hcm.strip_trailing_host_dot,
    )  # fmt: skip

    def strip(ctx: RequestContext) -> None:
        host = ctx.authority
        if dot:
            last = host.rfind(b".")
            if last >= 0 and (last == len(host) - 1 or host[last + 1] == 0x3A):
                host = host[:last] + host[last + 1 :]
        if (any_port or matching) and ctx.method != b"CONNECT":
            start = port_start(host)
            port = decimal(host[start + 1 :])
            if port is not None and (any_port or port == ctx.connection.local[1]):
                host = host[:start]
        ctx.authority = host

    return strip
