"""What a VirtualService's HTTP rule does besides forwarding: redirect, answer, rewrite, retry, faults, CORS, mirrors."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from istiod.resources.names import number_of
from istiod.resources.routing.destination import Destination, Percent
from istiod.resources.routing.http_match import StringMatch
from istiod.resources.schema import (
    Bool,
    HeaderName,
    HeaderText,
    Int32,
    NonEmpty,
    PositiveDuration,
    Spec,
    Str,
    UInt32,
    exactly_one,
    regex_problem,
)

MAX_BODY = 1 << 20
"""Bytes of a direct response: it is in every proxy's configuration."""


class HttpRedirect(Spec):
    """Answer with a redirect instead of forwarding."""

    uri: HeaderText = ""
    prefix_rewrite: HeaderText = ""
    authority: HeaderText = ""
    port: UInt32 | None = None
    derive_port: Literal["FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT"] | None = None
    scheme: Str = ""
    redirect_code: Annotated[UInt32, AfterValidator(lambda code: code or 301)] = 301

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.redirect_code not in (301, 302, 303, 307, 308):
            yield "redirectCode", "must be one of 301, 302, 303, 307, 308"
        if self.uri and self.prefix_rewrite:
            yield "prefixRewrite", "may not be set together with uri"
        if self.port is not None and self.derive_port is not None:
            yield "derivePort", "may not be set together with port"
        if self.port is not None and self.port > 65535:
            yield "port", "port must be between 1-65535"
        if self.scheme not in ("", "http", "https"):
            yield "scheme", "must be http or https"
        if not self.model_fields_set - {"redirect_code"}:
            yield "", "must set at least one of uri, prefixRewrite, authority, port, derivePort, scheme"


def _base64(value: str) -> str:
    """Protobuf-JSON bytes, standard or URL-safe, with or without padding, in the standard form."""
    text = value.replace("-", "+").replace("_", "/")
    try:
        content = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise PydanticCustomError("base64", "is not base64") from None
    return base64.b64encode(content).decode()


class ResponseBody(Spec):
    """The body of a direct response: text, or bytes in base64."""

    string: Str | None = None
    bytes: Annotated[Str, AfterValidator(_base64)] | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if len(exactly_one(self, ("string", "bytes"))) != 1:
            yield "", "exactly one of string, bytes must be set"
        size = len((self.string or "").encode()) or len(base64.b64decode(self.bytes or ""))
        if size > MAX_BODY:
            yield "", f"has {size} bytes; at most {MAX_BODY} (1 MB), because every proxy is sent it"


class DirectResponse(Spec):
    """Answer with a fixed status and body."""

    status: UInt32
    body: ResponseBody | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if not 200 <= self.status < 600:
            yield "status", "must be between 200 and 599"


class RegexRewrite(Spec):
    """RE2 substitution on the path; `\\1` is the first group."""

    match: NonEmpty
    rewrite: Str = ""

    def rules(self) -> Iterator[tuple[str, str]]:
        if not self.rewrite:
            yield "rewrite", "must be set together with match"
        if problem := regex_problem(self.match):
            yield "match", problem
        elif problem := regex_problem(self.match, self.rewrite):
            yield "rewrite", problem


class HttpRewrite(Spec):
    """Rewrite the path (the matched prefix, or all of it) and the authority before forwarding."""

    uri: HeaderText = ""
    authority: HeaderText = ""
    uri_regex_rewrite: RegexRewrite | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if not (self.uri or self.authority or self.uri_regex_rewrite):
            yield "", "must set at least one of uri, authority, uriRegexRewrite"
        if self.uri and self.uri_regex_rewrite:
            yield "uriRegexRewrite", "may not be set together with uri"


class HttpRetry(Spec):
    """Retry policy; attempts 0 switches retries off.

    `retryRemoteLocalities` says that a retry may leave the caller's locality. Without balancing by locality
    every retry may, so that both its values are in force.
    """

    attempts: Int32 = 0
    per_try_timeout: PositiveDuration | None = None
    retry_on: Str = ""
    retry_remote_localities: Bool | None = None
    retry_ignore_previous_hosts: Bool = True
    backoff: PositiveDuration | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.attempts < 0:
            yield "attempts", "must not be negative"
        given = self.per_try_timeout is not None or self.retry_on or self.retry_remote_localities is not None
        if self.attempts == 0 and given:
            yield (
                "attempts",
                "must be positive when perTryTimeout, retryOn or retryRemoteLocalities is set",
            )
        for word in filter(None, (part.strip() for part in self.retry_on.split(","))):
            if word not in RETRY_CONDITIONS and not 100 <= (number_of(word) or 0) <= 599:
                yield "retryOn", f"unknown condition {word!r}"


RETRY_CONDITIONS = frozenset(
    (
        "5xx",
        "gateway-error",
        "reset",
        "reset-before-request",
        "connect-failure",
        "envoy-ratelimited",
        "retriable-4xx",
        "refused-stream",
        "retriable-status-codes",
        "retriable-headers",
        "http3-post-connect-failure",
        "cancelled",
        "deadline-exceeded",
        "internal",
        "resource-exhausted",
        "unavailable",
    )
)
"""The conditions of x-envoy-retry-on and x-envoy-retry-grpc-on."""


class FaultDelay(Spec):
    """Delay requests before they are forwarded."""

    fixed_delay: PositiveDuration | None = None
    exponential_delay: PositiveDuration | None = None
    percent: Int32 | None = None
    percentage: Percent | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.exponential_delay is not None:
            yield "exponentialDelay", "is not implemented by Istio or Envoy; use fixedDelay"
        elif self.fixed_delay is None:
            yield "fixedDelay", "is required"
        if self.percent is not None and not 0 <= self.percent <= 100:
            yield "percent", "must be between 0 and 100"

    def gaps(self) -> Iterator[tuple[str, str]]:
        if self.percent is None and self.percentage is None:
            yield "", "delays no request: a percentage is missing"


class FaultAbort(Spec):
    """Answer with an error instead of forwarding."""

    http_status: Int32 | None = None
    grpc_status: Str | None = None
    http2_error: Str | None = None
    percentage: Percent | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.http2_error is not None:
            yield "http2Error", "is not implemented by Istio or Envoy; use httpStatus or grpcStatus"
        elif len(exactly_one(self, ("http_status", "grpc_status"))) != 1:
            yield "", "exactly one of httpStatus, grpcStatus must be set"
        if self.http_status is not None and not 200 <= self.http_status < 600:
            yield "httpStatus", "must be between 200 and 599"
        if self.grpc_status is not None and self.grpc_status not in GRPC_STATUSES:
            yield "grpcStatus", f"unknown gRPC status {self.grpc_status!r}"

    def gaps(self) -> Iterator[tuple[str, str]]:
        if self.percentage is None:
            yield "", "aborts no request: a percentage is missing"


GRPC_STATUSES = {
    "OK": 0,
    "CANCELLED": 1,
    "UNKNOWN": 2,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "ABORTED": 10,
    "OUT_OF_RANGE": 11,
    "UNIMPLEMENTED": 12,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "DATA_LOSS": 15,
    "UNAUTHENTICATED": 16,
}


class HttpFault(Spec):
    """Fault injection: delay, abort, or both (the delay comes first)."""

    delay: FaultDelay | None = None
    abort: FaultAbort | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.delay is None and self.abort is None:
            yield "", "at least one of delay, abort must be set"


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE")


class CorsPolicy(Spec):
    """Cross-origin resource sharing, answered by the client's proxy."""

    allow_origin: tuple[NonEmpty, ...] = ()
    allow_origins: tuple[StringMatch, ...] = ()
    allow_methods: tuple[NonEmpty, ...] = ()
    allow_headers: tuple[HeaderName, ...] = ()
    expose_headers: tuple[HeaderName, ...] = ()
    max_age: PositiveDuration | None = None
    allow_credentials: Bool | None = None
    unmatched_preflights: Literal["UNSPECIFIED", "FORWARD", "IGNORE"] = "UNSPECIFIED"

    def rules(self) -> Iterator[tuple[str, str]]:
        for index, origin in enumerate(self.allow_origins):
            path = f"allowOrigins[{index}]"
            if not (origin.exact or origin.prefix or origin.regex):
                yield path, "one of exact, prefix, regex must be set, and not be empty"
                continue
            for field, problem in origin.value_problems():
                yield f"{path}.{field}", problem
        for index, method in enumerate(self.allow_methods):
            if method not in METHODS:
                yield f"allowMethods[{index}]", f"{method!r} is not a method; one of {', '.join(METHODS)}"
        if self.max_age is not None and self.max_age != int(self.max_age):
            yield "maxAge", "must be whole seconds"


class MirrorPolicy(Spec):
    """One destination that gets copies of requests."""

    destination: Destination
    percentage: Percent | None = None
