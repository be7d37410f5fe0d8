"""networking.istio.io VirtualService: where calls to a host go.

Not for: turning it into Envoy routes (istiod/compile/http_route.py, istiod/compile/tcp_route.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from istiod.resources.schema import (
    Bool,
    Duration,
    HeaderName,
    Int32,
    NonEmpty,
    Percent100,
    PortNumber,
    PositiveDuration,
    Regex,
    Spec,
    Str,
    UInt32,
    address_problem,
    empty,
    exactly_one,
    host_problem,
    later,
)


class StringMatch(Spec):
    """Exactly one of the three; a query parameter or header may have none: then it must merely be present."""

    exact: Str | None = None
    prefix: Str | None = None
    regex: Regex | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        given = exactly_one(self, ("exact", "prefix", "regex"))
        if len(given) > 1:
            yield "", f"only one of exact, prefix, regex may be set, not {' and '.join(given)}"
        if self.regex == "":
            yield "regex", "must not be empty"


class Percent(Spec):
    """A percentage with fraction, 0 to 100."""

    value: Percent100 = 0.0


class PortSelector(Spec):
    """A port by number."""

    number: PortNumber


class Destination(Spec):
    """A service, perhaps one subset or port of it."""

    host: NonEmpty
    subset: Str = ""
    port: PortSelector | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if problem := host_problem(self.host, wildcard=False):
            yield "host", problem


class HeaderOperations(Spec):
    """Fields to set (overwrite), add (append) and remove, in that order in Envoy: remove first."""

    set: dict[HeaderName | Literal[":authority"], Str] = empty()
    add: dict[HeaderName | Literal[":authority"], Str] = empty()
    remove: tuple[HeaderName, ...] = ()


class Headers(Spec):
    """Header operations on the request and on the response."""

    request: HeaderOperations = HeaderOperations()
    response: HeaderOperations = HeaderOperations()


class RouteDestination(Spec):
    """One weighted destination of an HTTP route, with header operations of its own."""

    destination: Destination
    weight: Int32 = 0
    headers: Headers | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.weight < 0:
            yield "weight", "must not be negative"


class Delegate(Spec):
    """Another VirtualService whose HTTP routes take the place of this one."""

    name: NonEmpty
    namespace: Str = ""


class HttpMatchRequest(Spec):
    """All conditions of one match must hold; a route matches when any of its matches does."""

    name: Str = ""
    uri: StringMatch | None = None
    scheme: StringMatch | None = None
    method: StringMatch | None = None
    authority: StringMatch | None = None
    headers: dict[HeaderName, StringMatch] = empty()
    without_headers: dict[HeaderName, StringMatch] = empty()
    query_params: dict[NonEmpty, StringMatch] = empty()
    port: UInt32 = 0
    source_labels: dict[str, Str] = empty()
    source_namespace: Str = ""
    gateways: tuple[NonEmpty, ...] = ()
    ignore_uri_case: Bool = False
    stat_prefix: Str = ""

    def rules(self) -> Iterator[tuple[str, str]]:
        for name in ("uri", "scheme", "method", "authority"):
            match: StringMatch | None = getattr(self, name)
            if match is not None and not exactly_one(match, ("exact", "prefix", "regex")):
                yield name, "one of exact, prefix, regex must be set"
        for name, match in self.query_params.items():
            if match.prefix is not None and not match.prefix:
                yield f"queryParams[{name}].prefix", "must not be empty"
        if self.port > 65535:
            yield "port", "port must be between 1-65535"


class HttpRedirect(Spec):
    """Answer with a redirect instead of forwarding."""

    uri: Str = ""
    prefix_rewrite: Str = ""
    authority: Str = ""
    port: UInt32 | None = None
    derive_port: Literal["FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT"] | None = None
    scheme: Str = ""
    redirect_code: UInt32 = 301

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.redirect_code not in (301, 302, 303, 307, 308):
            yield "redirectCode", "must be one of 301, 302, 303, 307, 308"
        if self.uri and self.prefix_rewrite:
            yield "prefixRewrite", "may not be set together with uri"
        if self.port is not None and self.derive_port is not None:
            yield "derivePort", "may not be set together with port"
        if not self.model_fields_set - {"redirect_code"}:
            yield "", "must set at least one of uri, prefixRewrite, authority, port, derivePort, scheme"


class ResponseBody(Spec):
    """The body of a direct response: text, or bytes in base64."""

    string: Str | None = None
    bytes: Str | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if len(exactly_one(self, ("string", "bytes"))) != 1:
            yield "", "exactly one of string, bytes must be set"


class DirectResponse(Spec):
    """Answer with a fixed status and body."""

    status: UInt32
    body: ResponseBody | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if not 200 <= self.status < 600:
            yield "status", "must be between 200 and 599"


class RegexRewrite(Spec):
    """RE2 substitution on the path; `\\1` is the first group."""

    match: Regex
    rewrite: Str = ""


class HttpRewrite(Spec):
    """Rewrite the path (the matched prefix, or all of it) and the authority before forwarding."""

    uri: Str = ""
    authority: Str = ""
    uri_regex_rewrite: RegexRewrite | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if not (self.uri or self.authority or self.uri_regex_rewrite):
            yield "", "must set at least one of uri, authority, uriRegexRewrite"
        if self.uri and self.uri_regex_rewrite:
            yield "uriRegexRewrite", "may not be set together with uri"


class HttpRetry(Spec):
    """Retry policy; attempts 0 switches retries off."""

    attempts: Int32 = 0
    per_try_timeout: PositiveDuration | None = None
    retry_on: Str = ""
    retry_remote_localities: Bool | None = later()
    retry_ignore_previous_hosts: Bool = True
    backoff: PositiveDuration | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.attempts < 0:
            yield "attempts", "must not be negative"
        if self.attempts == 0 and (self.per_try_timeout is not None or self.retry_on):
            yield "attempts", "must be positive when perTryTimeout or retryOn is set"
        for word in filter(None, (part.strip() for part in self.retry_on.split(","))):
            if word.isdigit() and 100 <= int(word) <= 599:
                continue
            if word not in RETRY_CONDITIONS:
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
"""What x-envoy-retry-on and x-envoy-retry-grpc-on know."""


class FaultDelay(Spec):
    """Delay requests before they are forwarded."""

    fixed_delay: PositiveDuration | None = None
    exponential_delay: PositiveDuration | None = later()
    percent: Int32 | None = None
    percentage: Percent | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if len(exactly_one(self, ("fixed_delay", "exponential_delay"))) != 1:
            yield "", "exactly one of fixedDelay, exponentialDelay must be set"
        if self.percent is not None and not 0 <= self.percent <= 100:
            yield "percent", "must be between 0 and 100"


class FaultAbort(Spec):
    """Answer with an error instead of forwarding."""

    http_status: Int32 | None = None
    grpc_status: Str | None = None
    http2_error: Str | None = later()
    percentage: Percent | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if len(exactly_one(self, ("http_status", "grpc_status", "http2_error"))) != 1:
            yield "", "exactly one of httpStatus, grpcStatus, http2Error must be set"
        if self.http_status is not None and not 200 <= self.http_status < 600:
            yield "httpStatus", "must be between 200 and 599"
        if self.grpc_status is not None and self.grpc_status not in GRPC_STATUSES:
            yield "grpcStatus", f"unknown gRPC status {self.grpc_status!r}"


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


class CorsPolicy(Spec):
    """Cross-origin resource sharing, answered by the client's proxy."""

    allow_origin: tuple[NonEmpty, ...] = ()
    allow_origins: tuple[StringMatch, ...] = ()
    allow_methods: tuple[NonEmpty, ...] = ()
    allow_headers: tuple[NonEmpty, ...] = ()
    expose_headers: tuple[NonEmpty, ...] = ()
    max_age: Duration | None = None
    allow_credentials: Bool | None = None
    unmatched_preflights: Literal["UNSPECIFIED", "FORWARD", "IGNORE"] = "UNSPECIFIED"

    def rules(self) -> Iterator[tuple[str, str]]:
        for index, origin in enumerate(self.allow_origins):
            if not exactly_one(origin, ("exact", "prefix", "regex")):
                yield f"allowOrigins[{index}]", "one of exact, prefix, regex must be set"
        if self.max_age is not None and self.max_age != int(self.max_age):
            yield "maxAge", "must be whole seconds"


class MirrorPolicy(Spec):
    """One destination that gets copies of requests."""

    destination: Destination
    percentage: Percent | None = None


class HttpRoute(Spec):
    """One HTTP rule: conditions and what to do. The first rule that matches is taken."""

    name: Str = ""
    match: tuple[HttpMatchRequest, ...] = ()
    route: tuple[RouteDestination, ...] = ()
    redirect: HttpRedirect | None = None
    direct_response: DirectResponse | None = None
    delegate: Delegate | None = None
    rewrite: HttpRewrite | None = None
    timeout: Duration | None = None
    retries: HttpRetry | None = None
    fault: HttpFault | None = None
    mirror: Destination | None = later()
    mirrors: tuple[MirrorPolicy, ...] = later(())
    mirror_percent: UInt32 | None = later()
    mirror_percentage: Percent | None = later()
    cors_policy: CorsPolicy | None = None
    headers: Headers | None = None
    websocket_upgrade: Bool | None = None
    """Removed from Istio's schema, still in old files: WebSocket upgrades are always allowed."""

    def rules(self) -> Iterator[tuple[str, str]]:
        actions = exactly_one(self, ("redirect", "direct_response", "delegate"))
        if self.route:
            actions.insert(0, "route")
        if not actions:
            yield "", "one of route, redirect, directResponse, delegate must be set"
        if len(actions) > 1:
            yield actions[1], f"may not be set together with {actions[0]}"
        if self.redirect is not None and self.fault is not None:
            yield "fault", "may not be set together with redirect"
        if self.redirect is not None and self.rewrite is not None:
            yield "rewrite", "may not be set together with redirect"
        if self.mirror is not None and self.mirrors:
            yield "mirrors", "may not be set together with mirror"
        yield from weights(self.route, "route")


def weights(
    routes: tuple[RouteDestination, ...] | tuple[TcpDestination, ...], path: str
) -> Iterator[tuple[str, str]]:
    """Istio's rule on weights: with more than one destination their sum must not be zero."""
    if len(routes) > 1 and sum(route.weight for route in routes) == 0:
        yield path, "the sum of the weights must not be zero"


class TcpDestination(Spec):
    """One weighted destination of a TCP or TLS route."""

    destination: Destination
    weight: Int32 = 0

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.weight < 0:
            yield "weight", "must not be negative"


class L4Match(Spec):
    """Conditions on a TCP connection; all must hold."""

    destination_subnets: tuple[NonEmpty, ...] = ()
    port: UInt32 = 0
    source_labels: dict[str, Str] = empty()
    source_namespace: Str = ""
    source_subnet: Str = later("")
    gateways: tuple[NonEmpty, ...] = ()

    def rules(self) -> Iterator[tuple[str, str]]:
        for index, subnet in enumerate(self.destination_subnets):
            if problem := address_problem(subnet):
                yield f"destinationSubnets[{index}]", problem
        if self.port > 65535:
            yield "port", "port must be between 1-65535"


class TlsMatch(Spec):
    """Conditions on a TLS connection that is passed through; at least one name."""

    sni_hosts: tuple[NonEmpty, ...]
    destination_subnets: tuple[NonEmpty, ...] = ()
    port: UInt32 = 0
    source_labels: dict[str, Str] = empty()
    source_namespace: Str = ""
    gateways: tuple[NonEmpty, ...] = ()

    def rules(self) -> Iterator[tuple[str, str]]:
        if not self.sni_hosts:
            yield "sniHosts", "must not be empty"
        for index, host in enumerate(self.sni_hosts):
            if problem := host_problem(host, wildcard=True):
                yield f"sniHosts[{index}]", problem
        for index, subnet in enumerate(self.destination_subnets):
            if problem := address_problem(subnet):
                yield f"destinationSubnets[{index}]", problem
        if self.port > 65535:
            yield "port", "port must be between 1-65535"


class TcpRoute(Spec):
    """One rule for opaque TCP."""

    match: tuple[L4Match, ...] = ()
    route: tuple[TcpDestination, ...] = ()

    def rules(self) -> Iterator[tuple[str, str]]:
        if not self.route:
            yield "route", "must not be empty"
        yield from weights(self.route, "route")


class TlsRoute(Spec):
    """One rule for TLS that is passed through, by server name."""

    match: tuple[TlsMatch, ...]
    route: tuple[TcpDestination, ...] = ()

    def rules(self) -> Iterator[tuple[str, str]]:
        if not self.match:
            yield "match", "must not be empty"
        if not self.route:
            yield "route", "must not be empty"
        yield from weights(self.route, "route")


class VirtualService(Spec):
    """Routing rules for hosts."""

    hosts: tuple[NonEmpty, ...] = ()
    gateways: tuple[NonEmpty, ...] = ()
    http: tuple[HttpRoute, ...] = ()
    tls: tuple[TlsRoute, ...] = ()
    tcp: tuple[TcpRoute, ...] = ()
    export_to: tuple[NonEmpty, ...] = ()

    def applies_to_mesh(self) -> bool:
        """Whether sidecars (the gateway `mesh`) use it at all."""
        return not self.gateways or "mesh" in self.gateways

    def rules(self) -> Iterator[tuple[str, str]]:
        if not (self.http or self.tls or self.tcp):
            yield "", "one of http, tls, tcp must be set"
        if not self.hosts and self.gateways:
            yield "gateways", "a delegate (a VirtualService without hosts) must not set gateways"
        for index, host in enumerate(self.hosts):
            if host == "*" and self.applies_to_mesh():
                yield f"hosts[{index}]", "the wildcard * is not allowed for the gateway mesh"
            elif address_problem(host) is not None and (problem := host_problem(host, wildcard=True)):
                yield f"hosts[{index}]", problem
        if len({host.lower() for host in self.hosts}) != len(self.hosts):
            yield "hosts", "the same host is listed twice"

    def gaps(self) -> Iterator[tuple[str, str]]:
        for index, gateway in enumerate(self.gateways):
            if gateway != "mesh":
                yield f"gateways[{index}]", f"gateway {gateway!r} is served by no proxy of this version"
