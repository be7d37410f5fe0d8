"""gRPC's status codes, the error that carries one, and how HTTP outcomes become statuses.

Source: gRPC over HTTP/2 ("Errors", "HTTP2 Transport Mapping") and gRPC's http-grpc-status-mapping.
"""

from __future__ import annotations

from enum import IntEnum
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ngh2 import ErrorCode


class GrpcStatus(IntEnum):
    """The status of a finished call."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class GrpcError(Exception):
    """A call that ended with another status than OK. Raise it in a handler to end the call so."""

    def __init__(self, status: GrpcStatus, message: str = "") -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message

    def __str__(self) -> str:
        return f"{self.status.name}: {self.message}" if self.message else self.status.name


def parse_status(value: str) -> GrpcStatus:
    """The status of a `grpc-status` field; what is no known code is UNKNOWN."""
    try:
        return GrpcStatus(int(value))
    except ValueError:
        return GrpcStatus.UNKNOWN


def encode_message(message: str) -> bytes:
    """Percent-encode a `grpc-message`: everything but printable ASCII without '%'."""
    printable = "".join(chr(code) for code in range(0x20, 0x7F) if code != ord("%"))
    return quote_from_bytes(message.encode(), safe=printable).encode("ascii")


def decode_message(value: bytes) -> str:
    """The text of a `grpc-message`; broken encodings are shown as they are."""
    return unquote_to_bytes(value).decode(errors="replace")


_OF_RESET = {
    ErrorCode.REFUSED_STREAM: GrpcStatus.UNAVAILABLE,
    ErrorCode.CANCEL: GrpcStatus.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: GrpcStatus.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: GrpcStatus.PERMISSION_DENIED,
}


def status_of_reset(error_code: int) -> GrpcStatus:
    """The status of a stream that the peer reset with an HTTP/2 error code."""
    return _OF_RESET.get(error_code, GrpcStatus.INTERNAL)  # type: ignore[call-overload,no-any-return]


_OF_HTTP = {
    "400": GrpcStatus.INTERNAL,
    "401": GrpcStatus.UNAUTHENTICATED,
    "403": GrpcStatus.PERMISSION_DENIED,
    "404": GrpcStatus.UNIMPLEMENTED,
    "429": GrpcStatus.UNAVAILABLE,
    "502": GrpcStatus.UNAVAILABLE,
    "503": GrpcStatus.UNAVAILABLE,
    "504": GrpcStatus.UNAVAILABLE,
}


def status_of_http(status: str) -> GrpcStatus:
    """The status of an answer that carries no `grpc-status`, by its HTTP status."""
    return _OF_HTTP.get(status, GrpcStatus.UNKNOWN)
