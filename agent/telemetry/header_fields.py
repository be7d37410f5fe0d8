"""How the operators of the substitution formatter read headers: by name, by size, and gRPC's status.

Rule: as fields.py, which has the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final

from agent.telemetry.outcome import Outcome
from agent.telemetry.times import Factory, Getter

_PSEUDO = {
    ":method": "method",
    ":path": "path",
    ":authority": "authority",
    ":scheme": "scheme",
    "host": "authority",
}


def request_field(name: str) -> Callable[[Any], bytes | None]:
    """Reader of one request header (lower case), pseudo-headers included."""
    if name in _PSEUDO:
        read = attrgetter(_PSEUDO[name])
        return lambda request: read(request) or None
    wanted = name.encode()
    return lambda request: request.headers.get(wanted)


def _names(argument: str) -> tuple[str, str]:
    main, _, alternative = argument.lower().partition("?")
    if "?" in alternative:
        raise ValueError(f"more than one alternative header in {argument!r}")
    for name in (main, alternative):
        if not all(character.isalnum() or character in "!#$%&'*+-.^_`|~:" for character in name):
            raise ValueError(f"invalid header name {name!r}")
    return main, alternative


def request_header(argument: str, absent: Any) -> Getter:
    main, alternative = _names(argument)
    if not alternative and main not in _PSEUDO:
        return _plain_request_header(main.encode(), absent)
    first = request_field(main)
    second = request_field(alternative) if alternative else None

    def get(outcome: Outcome) -> Any:
        request = outcome.request
        if request is None:
            return absent
        value = first(request)
        if value is None and second is not None:
            value = second(request)
        return absent if value is None else value.decode("utf-8", "surrogateescape")

    return get


def request_header_without_query(argument: str, absent: Any) -> Getter:
    """REQ_WITHOUT_QUERY."""
    get = request_header(argument, absent)

    def without(outcome: Outcome) -> Any:
        value = get(outcome)
        return value.partition("?")[0] if isinstance(value, str) else value

    return without


def _plain_request_header(name: bytes, absent: Any) -> Getter:
    """The common case in one frame: every access-log line has several of these."""

    def get(outcome: Outcome) -> Any:
        request = outcome.request
        if request is None:
            return absent
        value = request.headers.get(name)
        return absent if value is None else value.decode("utf-8", "surrogateescape")

    return get


def headers_of(attribute: str) -> Factory:
    read = attrgetter(attribute)

    def make(argument: str, absent: Any) -> Getter:
        main, alternative = (name.encode() for name in _names(argument))

        def get(outcome: Outcome) -> Any:
            headers = read(outcome)
            if headers is None:
                return absent
            value = headers.get(main)
            if value is None and alternative:
                value = headers.get(alternative)
            return absent if value is None else value.decode("utf-8", "surrogateescape")

        return get

    return make


_resp_header = headers_of("response_headers")


def response_header(argument: str, absent: Any) -> Getter:
    if argument.lower() == ":status":
        return lambda outcome: str(outcome.response_code) if outcome.response_code else absent
    if argument.lower() == "transfer-encoding":
        return lambda _outcome: absent  # the codec's own affair
    return _resp_header(argument, absent)


def grpc_status_as(argument: str, absent: Any) -> Getter:
    if argument not in ("", "CAMEL_STRING", "SNAKE_STRING", "NUMBER"):
        raise ValueError("GRPC_STATUS takes CAMEL_STRING, SNAKE_STRING or NUMBER")

    def get(outcome: Outcome) -> Any:
        number = grpc_status(outcome)
        if number is None:
            return absent
        if argument == "NUMBER":
            return number
        if not 0 <= number < len(GRPC_STATUSES):
            return str(number)
        name = GRPC_STATUSES[number]
        if argument == "SNAKE_STRING":
            return name
        return "OK" if number == 0 else name.title().replace("_", "").replace("Cancelled", "Canceled")

    return get


GRPC_STATUSES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE",
    "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
"""By number (gRPC status codes)."""


def grpc_status(outcome: Outcome) -> int | None:
    """The gRPC status of a gRPC call, from trailers or a trailers-only answer; None for other requests."""
    request = outcome.request
    if request is None:
        return None
    kind = request.headers.get(b"content-type")
    if kind is None or not kind.startswith(b"application/grpc"):
        return None
    for headers in (outcome.response_trailers, outcome.response_headers):
        value = headers.get(b"grpc-status") if headers is not None else None
        if value is not None:
            return int(value) if value.isdigit() and len(value) < 10 else None
    return None


# Sizes


def request_headers_bytes(_argument: str, _absent: Any) -> Getter:
    """Names and values of the request's headers, as they are at the end (Envoy HeaderMap::byteSize)."""
    return lambda outcome: 0 if outcome.request is None else outcome.request.size()


def response_headers_bytes(_argument: str, _absent: Any) -> Getter:
    """As for the request: `:status` counts."""
    return lambda outcome: STATUS_BYTES + _size(outcome.response_headers) if outcome.response_code else 0


def response_trailers_bytes(_argument: str, _absent: Any) -> Getter:
    return lambda outcome: _size(outcome.response_trailers)


STATUS_BYTES: Final = len(":status200")


def _size(headers: Any) -> int:
    return 0 if headers is None else int(headers.size())
