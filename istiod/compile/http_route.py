"""A VirtualService's HTTP rules as Envoy routes, for one proxy and one port.

Rule: the order of the rules is the order of the routes; a rule with several matches becomes several routes.
Not for: which VirtualService a host has (routes.py).
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2 as route_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.type.matcher.v3 import regex_pb2, string_pb2
from google.protobuf import any_pb2

from istiod.compile import naming
from istiod.compile.delegate import Delegates, undelegated
from istiod.compile.envoy import any_of, duration, fit_weights, struct, uint32
from istiod.compile.mirrors import mirror_policies
from istiod.compile.route_filters import CORS_FILTER, FAULT_FILTER, cors, fault
from istiod.resources.document import Document
from istiod.resources.routing.destination import Destination
from istiod.resources.routing.header_operations import HeaderOperations
from istiod.resources.routing.http_actions import HttpRedirect, HttpRetry
from istiod.resources.routing.http_match import HttpMatchRequest, StringMatch
from istiod.resources.routing.http_route import HttpRoute, RouteDestination
from istiod.resources.traffic.load_balancer import ConsistentHash
from istiod.resources.virtual_service import VirtualService
from istiod.services import includes

DEFAULT_RETRY_ON = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
_Append = base_pb2.HeaderValueOption.HeaderAppendAction
_Redirect = route_pb2.RedirectAction.RedirectResponseCode
_REDIRECT_CODES = {
    301: _Redirect.MOVED_PERMANENTLY,
    302: _Redirect.FOUND,
    303: _Redirect.SEE_OTHER,
    307: _Redirect.TEMPORARY_REDIRECT,
    308: _Redirect.PERMANENT_REDIRECT,
}


@dataclass(frozen=True, slots=True)
class RouteContext:
    """What routes depend on besides their rule: the caller, the port, and where a destination leads."""

    namespace: str
    labels: Mapping[str, str]
    port: int
    cluster_of: Callable[[Destination, str], str]
    """The cluster of a destination as a rule of the given namespace writes it."""
    hash_of: Callable[[Destination, str], ConsistentHash | None]
    """The consistent hash that the destination's DestinationRule asks for."""


def http_routes(
    document: Document[VirtualService],
    context: RouteContext,
    delegates: Delegates,
) -> list[route_pb2.Route]:
    """All routes of a VirtualService that apply to the caller and port; empty when none does."""
    result = []
    for rule in document.spec.http:
        for owner, flat in undelegated(document, rule, delegates):
            result += _routes_of(flat, owner, context)
            if result and _catches_all(result[-1]):
                return result
    return result


def default_route(cluster: str, hashing: ConsistentHash | None) -> route_pb2.Route:
    """Everything to one cluster, with Istio's defaults."""
    route = route_pb2.Route(name="default", match=route_pb2.RouteMatch(prefix="/"))
    route.route.cluster = cluster
    _timeouts(route.route, None)
    route.route.retry_policy.CopyFrom(retry_policy(None, hashed=hashing is not None))
    if hashing is not None:
        route.route.hash_policy.append(hash_policy(hashing))
    return route


def _routes_of(
    rule: HttpRoute, owner: Document[VirtualService], context: RouteContext
) -> list[route_pb2.Route]:
    if not rule.match:
        return [_route(rule, None, owner, context)]
    return [_route(rule, match, owner, context) for match in rule.match if _applies(match, context)]


def _applies(match: HttpMatchRequest, context: RouteContext) -> bool:
    """The conditions that are known when the route is made."""
    if match.port and match.port != context.port:
        return False
    if match.gateways and "mesh" not in match.gateways:
        return False
    if match.source_namespace and match.source_namespace != context.namespace:
        return False
    return includes(context.labels, match.source_labels)


def _catches_all(route: route_pb2.Route) -> bool:
    """Nothing after this route can be reached."""
    match = route.match
    return (
        match.prefix == "/"
        and not match.headers
        and not match.query_parameters
        and not match.HasField("grpc")
    )


def _route(
    rule: HttpRoute, match: HttpMatchRequest | None, owner: Document[VirtualService], context: RouteContext
) -> route_pb2.Route:
    resource = owner.resource
    name = ".".join(part for part in (rule.name, match.name if match else "") if part) or "default"
    route = route_pb2.Route(name=name, match=_match(match))
    path = naming.config_path(
        "networking.istio.io", "v1", resource.namespace, "virtual-service", resource.name
    )
    route.metadata.filter_metadata["istio"].CopyFrom(struct({"config": path}))
    if rule.headers is not None:
        _headers(route, rule.headers.request, rule.headers.response)
    if rule.redirect is not None:
        _redirect(route.redirect, rule.redirect, context.port)
    elif rule.direct_response is not None:
        route.direct_response.status = rule.direct_response.status
        body = rule.direct_response.body
        if body is not None and body.string is not None:
            route.direct_response.body.inline_string = body.string
        elif body is not None and body.bytes is not None:
            route.direct_response.body.inline_bytes = base64.b64decode(body.bytes)
    else:
        _forward(route.route, rule, resource.namespace, context)
    overrides: dict[str, any_pb2.Any] = {}
    if rule.fault is not None and (injected := fault(rule.fault)) is not None:
        overrides[FAULT_FILTER] = any_of(injected)
    if rule.cors_policy is not None:
        overrides[CORS_FILTER] = any_of(cors(rule.cors_policy))
    for filter_name, value in overrides.items():
        route.typed_per_filter_config[filter_name].CopyFrom(value)
    if match is not None and match.stat_prefix:
        route.stat_prefix = match.stat_prefix
    return route


def _forward(action: route_pb2.RouteAction, rule: HttpRoute, namespace: str, context: RouteContext) -> None:
    live = [one for one in rule.route if one.weight > 0] or list(rule.route[:1])
    if len(live) == 1:
        single = live[0]
        action.cluster = context.cluster_of(single.destination, namespace)
        if single.headers is not None:
            _destination_headers_on_split(action, single, namespace, context)
    else:
        for one, weight in zip(live, fit_weights([one.weight for one in live]), strict=True):
            _weighted(action.weighted_clusters, one, namespace, context, weight)
    _timeouts(action, rule.timeout)
    for one in live:
        hashing = context.hash_of(one.destination, namespace)
        if hashing is not None:
            action.hash_policy.append(hash_policy(hashing))
            break
    if (policy := retry_policy(rule.retries, hashed=bool(action.hash_policy))) is not None:
        action.retry_policy.CopyFrom(policy)
    if rule.rewrite is not None:
        if rule.rewrite.uri_regex_rewrite is not None:
            action.regex_rewrite.pattern.regex = rule.rewrite.uri_regex_rewrite.match
            action.regex_rewrite.substitution = rule.rewrite.uri_regex_rewrite.rewrite
        elif rule.rewrite.uri:
            action.prefix_rewrite = rule.rewrite.uri
        if rule.rewrite.authority:
            action.host_rewrite_literal = rule.rewrite.authority
    action.request_mirror_policies.extend(
        mirror_policies(rule, lambda destination: context.cluster_of(destination, namespace))
    )
    authority = _authority(rule.headers.request) if rule.headers else ""
    if authority and not action.host_rewrite_literal:
        action.host_rewrite_literal = authority


def _destination_headers_on_split(
    action: route_pb2.RouteAction, one: RouteDestination, namespace: str, context: RouteContext
) -> None:
    """Header operations of a single destination: Envoy has them on a weighted cluster, so make it one of one."""
    action.ClearField("cluster")
    _weighted(action.weighted_clusters, one, namespace, context, weight=1)


def _weighted(
    split: route_pb2.WeightedCluster,
    one: RouteDestination,
    namespace: str,
    context: RouteContext,
    weight: int,
) -> None:
    part = split.clusters.add(name=context.cluster_of(one.destination, namespace), weight=uint32(weight))
    if one.headers is not None:
        _headers(part, one.headers.request, one.headers.response)
        if authority := _authority(one.headers.request):
            part.host_rewrite_literal = authority


def _timeouts(action: route_pb2.RouteAction, timeout: float | None) -> None:
    """Istio switches Envoy's 15 s off where a rule says nothing; gRPC's own time-outs count up to the rule's."""
    action.timeout.CopyFrom(duration(timeout or 0))
    action.max_grpc_timeout.CopyFrom(action.timeout)


def retry_policy(retries: HttpRetry | None, *, hashed: bool) -> route_pb2.RetryPolicy | None:
    """Istio's retries: two by default, none for attempts 0, never on the host that just failed.

    `hashed`: a consistent hash chooses the host, so a retry stays there unless the rule says otherwise.
    """
    if retries is not None and retries.attempts == 0:
        return None
    policy = route_pb2.RetryPolicy(
        retry_on=DEFAULT_RETRY_ON,
        num_retries=uint32(2 if retries is None else retries.attempts),
        host_selection_retry_max_attempts=5,
    )
    if retries is None or not retries.retry_on:
        policy.retriable_status_codes.append(503)
    asked = retries is not None and "retry_ignore_previous_hosts" in retries.model_fields_set
    if retries.retry_ignore_previous_hosts if retries is not None and asked else not hashed:
        policy.retry_host_predicate.add(
            name="envoy.retry_host_predicates.previous_hosts",
            typed_config=any_of(previous_hosts_pb2.PreviousHostsPredicate()),
        )
    if retries is None:
        return policy
    if retries.retry_on:
        words = [word for word in (part.strip() for part in retries.retry_on.split(",")) if word]
        codes = [int(word) for word in words if word.isdigit()]
        conditions = [word for word in words if not word.isdigit()]
        if codes and "retriable-status-codes" not in conditions:
            conditions.append("retriable-status-codes")
        policy.retry_on = ",".join(conditions)
        policy.retriable_status_codes.extend(codes)
    if retries.per_try_timeout is not None:
        policy.per_try_timeout.CopyFrom(duration(retries.per_try_timeout))
    if retries.backoff is not None:
        policy.retry_back_off.base_interval.CopyFrom(duration(retries.backoff))
    return policy


def hash_policy(hashing: ConsistentHash) -> route_pb2.RouteAction.HashPolicy:
    """What the load balancer hashes."""
    policy = route_pb2.RouteAction.HashPolicy()
    if hashing.http_header_name is not None:
        policy.header.header_name = hashing.http_header_name
    elif hashing.http_cookie is not None:
        policy.cookie.name = hashing.http_cookie.name
        policy.cookie.path = hashing.http_cookie.path
        if hashing.http_cookie.ttl is not None:
            policy.cookie.ttl.CopyFrom(duration(hashing.http_cookie.ttl))
        for attribute in hashing.http_cookie.attributes:
            policy.cookie.attributes.add(name=attribute.name, value=attribute.value)
    elif hashing.http_query_parameter_name is not None:
        policy.query_parameter.name = hashing.http_query_parameter_name
    else:
        policy.connection_properties.source_ip = True
    return policy


def _redirect(action: route_pb2.RedirectAction, redirect: HttpRedirect, port: int) -> None:
    action.response_code = _REDIRECT_CODES[redirect.redirect_code]
    action.host_redirect = redirect.authority
    if redirect.uri:
        action.path_redirect = redirect.uri
    elif redirect.prefix_rewrite:
        action.prefix_rewrite = redirect.prefix_rewrite
    if redirect.scheme:
        action.scheme_redirect = redirect.scheme
    # Routes are made for one port, so that is the request's. The scheme's default is never written out.
    target = redirect.port or (port if redirect.derive_port == "FROM_REQUEST_PORT" else 0)
    if target != (443 if redirect.scheme == "https" else 80):
        action.port_redirect = target


def _headers(
    target: route_pb2.Route | route_pb2.WeightedCluster.ClusterWeight,
    request: HeaderOperations,
    response: HeaderOperations,
) -> None:
    target.request_headers_to_add.extend(_options(request))
    target.request_headers_to_remove.extend(name for name in request.remove if _is_field(name))
    target.response_headers_to_add.extend(_options(response))
    target.response_headers_to_remove.extend(name for name in response.remove if _is_field(name))


def _is_field(name: str) -> bool:
    """Whether Envoy lets configuration change it: the authority, by whatever name, is rewritten instead (Istio)."""
    return not name.startswith(":") and name.lower() != "host"


def _authority(operations: HeaderOperations) -> str:
    """What the request's operations make of the authority; "" for nothing."""
    changes = (*operations.set.items(), *operations.add.items())
    return next((value for name, value in changes if name.lower() in ("host", ":authority")), "")


def _options(operations: HeaderOperations) -> list[base_pb2.HeaderValueOption]:
    changes = (
        (operations.set, _Append.OVERWRITE_IF_EXISTS_OR_ADD),
        (operations.add, _Append.APPEND_IF_EXISTS_OR_ADD),
    )
    return [
        base_pb2.HeaderValueOption(header=base_pb2.HeaderValue(key=name, value=value), append_action=action)
        for headers, action in changes
        for name, value in sorted(headers.items())
        if _is_field(name)
    ]


def _match(match: HttpMatchRequest | None) -> route_pb2.RouteMatch:
    result = route_pb2.RouteMatch()
    if match is None or match.uri is None:
        result.prefix = "/"
    elif match.uri.exact is not None:
        result.path = match.uri.exact
    elif match.uri.prefix is not None:
        result.prefix = match.uri.prefix
    else:
        result.safe_regex.regex = match.uri.regex or ""
    if match is None:
        return result
    if match.ignore_uri_case:
        result.case_sensitive.value = False
    fields = [(":method", match.method), (":authority", match.authority), (":scheme", match.scheme)]
    for name, value in [*((n, v) for n, v in fields if v is not None), *sorted(match.headers.items())]:
        result.headers.append(_header(name, value, invert=False))
    for name, value in sorted(match.without_headers.items()):
        result.headers.append(_header(name, value, invert=True))
    for name, value in sorted(match.query_params.items()):
        parameter = result.query_parameters.add(name=name)
        text = string_matcher(value)
        if text is None:
            parameter.present_match = True
        else:
            parameter.string_match.CopyFrom(text)
    return result


def _header(name: str, match: StringMatch, *, invert: bool) -> route_pb2.HeaderMatcher:
    matcher = route_pb2.HeaderMatcher(name=name, invert_match=invert)
    text = string_matcher(match)
    if text is None:
        matcher.present_match = True
    else:
        matcher.string_match.CopyFrom(text)
        matcher.treat_missing_header_as_empty = invert
    return matcher


def string_matcher(match: StringMatch) -> string_pb2.StringMatcher | None:
    """Envoy's form of a StringMatch; None for one without condition (presence)."""
    if match.exact is not None:
        return string_pb2.StringMatcher(exact=match.exact)
    if match.prefix is not None:
        return string_pb2.StringMatcher(prefix=match.prefix)
    if match.regex is not None and not match.only_presence:
        return string_pb2.StringMatcher(safe_regex=regex_pb2.RegexMatcher(regex=match.regex))
    return None
