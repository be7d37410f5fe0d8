"""How long a gRPC request may take by its own `grpc-timeout`, within what its route allows.

Sources: Envoy FilterUtility::finalTimeout (max_grpc_timeout) and ConnectionManagerImpl refreshDurationTimeout
(max_stream_duration.grpc_timeout_header_max); gRPC over HTTP2 for the header.
Not for: routes that say nothing of gRPC, which pay one comparison.
"""

from __future__ import annotations

from typing import Final

from agent.http.headers import Headers
from agent.table.matchers import decimal
from agent.table.route import GrpcTimeouts

_LARGEST: Final = 99_999_999
_MILLISECONDS: Final = {b"H": 3_600_000, b"M": 60_000, b"S": 1000, b"m": 1}
_PARTS: Final = {b"u": 1000, b"n": 1_000_000}


def told(headers: Headers) -> float | None:
    """The seconds in `grpc-timeout`, None where it is not there or malformed."""
    value = headers.get(b"grpc-timeout")
    if not value:
        return None
    number, unit = decimal(value[:-1]), value[-1:]
    if number is None or not 0 <= number <= _LARGEST:
        return None
    if unit in _MILLISECONDS:
        return number * _MILLISECONDS[unit] / 1000.0
    if unit in _PARTS:
        return -(-number // _PARTS[unit]) / 1000.0
    return None


def whole(limits: GrpcTimeouts, headers: Headers, default: float) -> float:
    """The timeout of a request; 0 for none. `default`: that of one that is not gRPC."""
    if limits.most is None or not _is_grpc(headers):
        return default
    timeout = told(headers) or 0.0
    if limits.offset < timeout:
        timeout -= limits.offset
    if limits.most and (not timeout or timeout > limits.most):
        timeout = limits.most
    return timeout


def tell(limits: GrpcTimeouts, headers: Headers, expected: float) -> None:
    """Send the upstream how long it has (Envoy FilterUtility::setTimeoutHeaders)."""
    if limits.most is not None and expected > 0 and _is_grpc(headers):
        headers.set(b"grpc-timeout", _text(expected))


def stream(limits: GrpcTimeouts, headers: Headers, default: float | None) -> float | None:
    """How long the stream may take, None without limit; sent to the upstream too. `default`: where neither the request nor
    the route has a limit."""
    timeout = told(headers) if limits.stream_most is not None else None
    if timeout is None or limits.stream_most is None:
        return default or None
    if limits.stream_most:
        timeout = min(timeout, limits.stream_most)
    timeout = max(0.0, timeout - limits.stream_offset)
    if _is_grpc(headers):
        headers.set(b"grpc-timeout", _text(timeout))
    return timeout


def _text(seconds: float) -> bytes:
    """Envoy Grpc::Common::toGrpcTimeout: milliseconds, or the first larger unit of eight digits."""
    number, units = round(seconds * 1000), ((b"S", 1000), (b"M", 60), (b"H", 60))
    unit = b"m"
    for larger, size in units:
        if number <= _LARGEST:
            break
        number, unit = number // size, larger
    return b"%d%s" % (min(number, _LARGEST), unit)


def _is_grpc(headers: Headers) -> bool:
    kind = headers.get(b"content-type", b"")
    return kind == b"application/grpc" or kind.startswith(b"application/grpc+")
