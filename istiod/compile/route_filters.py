"""Fault injection and CORS of a route, as configuration of the filters that do them.

Not for: putting the filters into the chain (http_connection.py).
"""

from __future__ import annotations

from envoy.config.core.v3 import base_pb2
from envoy.extensions.filters.http.cors.v3 import cors_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.type.matcher.v3 import regex_pb2, string_pb2
from envoy.type.v3 import percent_pb2

from istiod.compile.envoy import duration
from istiod.resources.routing.destination import Percent
from istiod.resources.routing.http_actions import GRPC_STATUSES, CorsPolicy, HttpFault

FAULT_FILTER = "envoy.filters.http.fault"
CORS_FILTER = "envoy.filters.http.cors"


def fault(injected: HttpFault) -> fault_pb2.HTTPFault | None:
    """Delay and abort. A part without percentage hits no request, as in Istio; None when nothing is left."""
    result = fault_pb2.HTTPFault()
    delay, abort = injected.delay, injected.abort
    if delay is not None and delay.fixed_delay is not None:
        result.delay.fixed_delay.CopyFrom(duration(delay.fixed_delay))
        result.delay.percentage.CopyFrom(fraction(delay.percentage, delay.percent))
    if abort is not None and abort.http_status is not None:
        result.abort.http_status = abort.http_status
        result.abort.percentage.CopyFrom(fraction(abort.percentage, None))
    elif abort is not None and abort.grpc_status is not None:
        result.abort.grpc_status = GRPC_STATUSES[abort.grpc_status]
        result.abort.percentage.CopyFrom(fraction(abort.percentage, None))
    return result if result.HasField("delay") or result.HasField("abort") else None


def cors(policy: CorsPolicy) -> cors_pb2.CorsPolicy:
    """The policy of one route."""
    result = cors_pb2.CorsPolicy(
        filter_enabled=base_pb2.RuntimeFractionalPercent(
            default_value=percent_pb2.FractionalPercent(numerator=100)
        ),
        allow_methods=",".join(policy.allow_methods),
        allow_headers=",".join(policy.allow_headers),
        expose_headers=",".join(policy.expose_headers),
    )
    for origin in policy.allow_origin:
        matcher = string_pb2.StringMatcher(exact=origin)
        if origin == "*":
            matcher = string_pb2.StringMatcher(safe_regex=regex_pb2.RegexMatcher(regex=".*"))
        result.allow_origin_string_match.append(matcher)
    for match in policy.allow_origins:
        matcher = string_pb2.StringMatcher()
        if match.exact is not None:
            matcher.exact = match.exact
        elif match.prefix is not None:
            matcher.prefix = match.prefix
        else:
            matcher.safe_regex.regex = match.regex or ""
        result.allow_origin_string_match.append(matcher)
    if policy.max_age is not None:
        result.max_age = str(int(policy.max_age))
    if policy.allow_credentials is not None:
        result.allow_credentials.value = policy.allow_credentials
    if policy.unmatched_preflights != "UNSPECIFIED":
        result.forward_not_matching_preflights.value = policy.unmatched_preflights == "FORWARD"
    return result


def fraction(percentage: Percent | None, percent: int | None) -> percent_pb2.FractionalPercent:
    """A percentage with fraction, or the old whole one; neither is 0 %."""
    if percentage is None:
        return percent_pb2.FractionalPercent(numerator=percent or 0)
    return percent_pb2.FractionalPercent(
        numerator=round(percentage.value * 10_000), denominator=percent_pb2.FractionalPercent.MILLION
    )
