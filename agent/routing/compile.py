"""From a route configuration to the function that decides about requests.

Rule: everything that the configuration alone determines is made here, once; `Router.route` finds the virtual host by
dictionary, the first route that matches in the configured order, and the destination of its split. It changes nothing.
Not for: acting on the decision, which the exchange does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from agent.http.matching import compile_request_headers
from agent.http.mutation import (
    RequestChange,
    ResponseChange,
    compile_request_changes,
    compile_response_changes,
)
from agent.http.request import LocalReply, RequestContext, ResponseHead
from agent.http.step import Steps
from agent.routing.conditions import compile_conditions
from agent.routing.hashing import compile_cookies, compile_hash
from agent.routing.hosts import HostIndex
from agent.routing.order import Choice, RouteOrder
from agent.routing.paths import compile_path
from agent.routing.plan import Mirror, RoutePlan
from agent.routing.redirect import compile_direct, compile_redirect, to_https
from agent.routing.retry import compile_retry
from agent.routing.rewrite import compile_request_rewrite
from agent.routing.split import Split, compile_split
from agent.table.errors import ConfigError
from agent.table.route import (
    NO_ROUTE,
    ClusterWeight,
    Direct,
    FilterOverride,
    Forward,
    HeaderChanges,
    MirrorPolicy,
    NonForwarding,
    Redirect,
    Route,
    RouteConfiguration,
    RouteScope,
    VirtualCluster,
    VirtualHost,
)

StepsFor: TypeAlias = Callable[[RouteScope], Steps]
Action: TypeAlias = Forward | Redirect | Direct | NonForwarding
VirtualHostRoute: TypeAlias = Callable[[RequestContext], RoutePlan | None]


class Router:
    """A compiled route configuration. Immutable but for the memory of looked-up authorities."""

    __slots__ = ("_host_of", "_hosts", "_only", "internal_only", "name", "no_route_steps")

    def __init__(
        self,
        name: str,
        hosts: HostIndex[VirtualHostRoute],
        no_route_steps: Steps,
        vhost_header: bytes = b"",
        internal_only: tuple[bytes, ...] = (),
    ) -> None:
        self.name = name
        self.internal_only = internal_only
        """Headers that are taken from requests of other than internal clients."""
        self.no_route_steps = no_route_steps
        """Steps of requests that no route takes: filters still see them before the 404."""
        self._hosts = hosts
        self._only = hosts.only_default
        self._host_of = vhost_header.lower()

    def route(self, ctx: RequestContext) -> RoutePlan | None:
        """The plan for a request, None where no route matches (the answer is 404, flag NR)."""
        if self._only is not None:
            return self._only(ctx)
        host = ctx.headers.get(self._host_of, b"") if self._host_of else ctx.authority
        found = self._hosts.find(host)
        return None if found is None else found(ctx)


def compile_routes(
    config: RouteConfiguration, steps_for: StepsFor, *, suppress_envoy_headers: bool = False
) -> Router:
    """Compile a configuration. `steps_for` makes the filters' steps for a route's scope and is asked once for each
    distinct scope. Raises ConfigError or ValueError for what Envoy refuses too (a bad %OPERATOR%, a domain twice).
    """
    builder = _Builder(config, steps_for, suppress_envoy_headers)
    hosts = HostIndex(
        ((domain, compiled) for vhost, compiled in builder.virtual_hosts() for domain in vhost.domains),
        config.ignore_port,
    )
    return Router(config.name, hosts, steps_for(NO_ROUTE), config.vhost_header, config.internal_only_headers)


class _Builder:
    """One compilation: remembers the steps of scopes that were asked for already."""

    def __init__(self, config: RouteConfiguration, steps_for: StepsFor, suppress: bool) -> None:
        self._config = config
        self._steps_for = steps_for
        self._suppress = suppress
        self._known: dict[tuple[object, ...], tuple[RouteScope, Steps]] = {}

    def virtual_hosts(self) -> list[tuple[VirtualHost, VirtualHostRoute]]:
        return [
            (vhost, self._virtual_host(vhost, f"route_config[{self._config.name}].virtual_hosts[{number}]"))
            for number, vhost in enumerate(self._config.virtual_hosts)
        ]

    def _virtual_host(self, vhost: VirtualHost, path: str) -> VirtualHostRoute:
        order = RouteOrder(
            [
                (
                    route.match,
                    compile_path(route.match),
                    compile_conditions(route.match),
                    self._choice(vhost, route, f"{path}.routes[{position}]"),
                )
                for position, route in enumerate(vhost.routes)
            ],
            self._config.ignore_path_parameters,
        )
        find = order.find
        if vhost.require_tls == "none":
            return find
        secure = RoutePlan(name="", virtual_host=vhost.name, respond=to_https)
        steps = self._steps(NO_ROUTE)
        secure = replace(secure, request_steps=steps.request, response_steps=steps.response)
        external_only = vhost.require_tls == "external_only"

        def require_tls(ctx: RequestContext) -> RoutePlan | None:
            plain = ctx.headers.get(b"x-forwarded-proto", ctx.scheme) != b"https"
            if plain and not (external_only and ctx.headers.get(b"x-envoy-internal") == b"true"):
                return secure
            return find(ctx)

        return require_tls

    def _choice(self, vhost: VirtualHost, route: Route, path: str) -> Choice:
        """What a matching request gets: one plan, or a split between several."""
        try:
            return self._choice_of(vhost, route, route.action)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(path, str(error)) from error

    def _choice_of(self, vhost: VirtualHost, route: Route, action: Action) -> Choice:
        if isinstance(action, Forward) and action.weighted:
            plans = [self._forward(vhost, route, action, weight) for weight in action.weighted]
            weights = [weight.weight for weight in action.weighted]
            split = Split(weights, action.weight_header, compile_hash(action.hash_policies))
            return compile_split(split, plans, by_hash=action.weight_by_hash)
        if isinstance(action, Forward):
            return self._forward(vhost, route, action, None)
        return self._answer(vhost, route, action)

    def _answer(
        self, vhost: VirtualHost, route: Route, action: Redirect | Direct | NonForwarding
    ) -> RoutePlan:
        respond: Callable[[RequestContext], LocalReply]
        if isinstance(action, Redirect):
            respond = compile_redirect(route.match, action)
        elif isinstance(action, Direct):
            respond = compile_direct(action)
        else:
            respond = _not_for_proxies
        return self._plan(vhost, route, None, respond=respond)

    def _forward(
        self, vhost: VirtualHost, route: Route, action: Forward, weight: ClusterWeight | None
    ) -> RoutePlan:
        mirrors = action.mirrors or vhost.mirrors or self._config.mirrors
        plan = self._plan(vhost, route, weight)
        return replace(
            plan,
            finish_response=_both(compile_cookies(action.hash_policies), plan.finish_response),
            cluster=weight.cluster if weight is not None else action.cluster,
            cluster_header=(weight.cluster_header if weight is not None else action.cluster_header).lower(),
            cluster_not_found_status=action.cluster_not_found_status,
            auto_host_rewrite=action.auto_host_rewrite,
            append_x_forwarded_host=action.append_x_forwarded_host,
            keep_original=not self._suppress,
            timeout=action.timeout,
            idle_timeout=action.idle_timeout,
            max_stream_duration=action.max_stream_duration,
            grpc_timeouts=action.grpc_timeouts,
            retry=compile_retry(action.retry or vhost.retry),
            internal_redirect=action.internal_redirect,
            hash_key=compile_hash(action.hash_policies),
            priority=action.priority,
            metadata_match={**action.metadata_match, **(weight.metadata_match if weight is not None else {})},
            mirrors=tuple(_mirror(policy) for policy in mirrors),
            connect_ends_here=action.connect_ends_here,
            upgrades={name.lower().encode(): enabled for name, enabled in action.upgrades.items()},
        )

    def _plan(
        self,
        vhost: VirtualHost,
        route: Route,
        weight: ClusterWeight | None,
        respond: Callable[[RequestContext], LocalReply] | None = None,
    ) -> RoutePlan:
        steps = self._steps(self._scope(vhost, route, weight))
        request_changes = compile_request_changes(
            self._levels(
                None if weight is None else weight.request_headers,
                route.request_headers,
                vhost.request_headers,
                self._config.request_headers,
            )
        )
        forward = route.action if isinstance(route.action, Forward) else None
        finish: RequestChange | None = request_changes
        if forward is not None:
            finish = compile_request_rewrite(
                route.match, forward, weight, request_changes, original=not self._suppress
            )
        return RoutePlan(
            name=route.name,
            virtual_host=vhost.name,
            respond=respond,
            request_steps=steps.request,
            response_steps=steps.response,
            finish_request=finish,
            finish_response=compile_response_changes(
                self._levels(
                    None if weight is None else weight.response_headers,
                    route.response_headers,
                    vhost.response_headers,
                    self._config.response_headers,
                )
            ),
            attempt_count_in_request=vhost.attempt_count_in_request,
            attempt_count_in_response=vhost.attempt_count_in_response,
            tell_timeout_retry=vhost.tell_timeout_retry,
            buffer_limit=_first_limit(route.buffer_limit, vhost.buffer_limit),
            metadata=route.metadata,
            decorator=route.decorator,
            virtual_host_metadata=vhost.metadata,
            virtual_cluster=_virtual_cluster(vhost.virtual_clusters),
        )

    def _levels(
        self, weight: HeaderChanges | None, route: HeaderChanges, vhost: HeaderChanges, config: HeaderChanges
    ) -> list[HeaderChanges]:
        """In the order of their application: the last one to overwrite a header wins. A destination's own are
        always first (Envoy's WeightedClusterEntry), even where the most specific shall win."""
        levels = [config, vhost, route] if self._config.most_specific_wins else [route, vhost, config]
        return levels if weight is None else [weight, *levels]

    def _scope(self, vhost: VirtualHost, route: Route, weight: ClusterWeight | None) -> RouteScope:
        levels: list[Mapping[str, FilterOverride]] = [
            self._config.overrides, vhost.overrides, route.overrides,
        ]  # fmt: skip
        if weight is not None:
            levels.append(weight.overrides)
        overrides: dict[str, tuple[FilterOverride, ...]] = {}
        for level in levels:
            for name, override in level.items():
                overrides[name] = (*overrides.get(name, ()), override)
        forward = route.action if isinstance(route.action, Forward) else None
        return RouteScope(
            overrides,
            cors=tuple(policy for policy in (forward and forward.cors, vhost.cors) if policy is not None),
            rate_limits=(forward.rate_limits if forward else (), vhost.rate_limits),
            both_rate_limits=forward is not None and forward.include_vhost_rate_limits,
            forwards=forward is not None,
        )

    def _steps(self, scope: RouteScope) -> Steps:
        """The scope is kept beside its steps, so that the identities in the key stay taken."""
        key: tuple[object, ...] = (
            tuple((name, *map(id, entries)) for name, entries in sorted(scope.overrides.items())),
            scope.forwards,
            scope.both_rate_limits,
            tuple(map(id, scope.cors)),
            tuple(tuple(map(id, level)) for level in scope.rate_limits),
        )
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = (scope, self._steps_for(scope))
        return known[1]


def _both(first: ResponseChange | None, then: ResponseChange | None) -> ResponseChange | None:
    if first is None or then is None:
        return then if first is None else first
    one, other = first, then

    def change(ctx: RequestContext, head: ResponseHead) -> None:
        one(ctx, head)
        other(ctx, head)

    return change


def _virtual_cluster(clusters: Sequence[VirtualCluster]) -> Callable[[RequestContext], str] | None:
    if not clusters:
        return None
    tests = tuple((cluster.name, compile_request_headers(cluster.headers)) for cluster in clusters)

    def find(ctx: RequestContext) -> str:
        for name, test in tests:
            if test is None or test(ctx):
                return name
        return ""

    return find


def _mirror(policy: MirrorPolicy) -> Mirror:
    share = policy.fraction
    return Mirror(
        policy.cluster, policy.cluster_header, share.numerator, share.denominator, policy.shadow_suffix
    )


def _first_limit(route: int | None, vhost: int | None) -> int:
    limit = vhost if route is None else route
    return -1 if limit is None else limit


def _not_for_proxies(ctx: RequestContext) -> LocalReply:
    return LocalReply(500, details="route_not_found")
