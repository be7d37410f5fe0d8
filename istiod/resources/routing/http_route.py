"""One HTTP rule of a VirtualService: conditions and what to do."""

from __future__ import annotations

from collections.abc import Iterator

from istiod.resources.names import label_problem
from istiod.resources.routing.destination import Destination, Percent, weight_problems
from istiod.resources.routing.header_operations import Headers
from istiod.resources.routing.http_actions import (
    CorsPolicy,
    DirectResponse,
    HttpFault,
    HttpRedirect,
    HttpRetry,
    HttpRewrite,
    MirrorPolicy,
)
from istiod.resources.routing.http_match import HttpMatchRequest
from istiod.resources.schema import (
    Bool,
    Int32,
    NonEmpty,
    PositiveDuration,
    Spec,
    Str,
    UInt32,
    exactly_one,
)


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

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.namespace and (problem := label_problem(self.namespace)):
            yield "namespace", problem


class HttpRoute(Spec):
    """One HTTP rule: conditions and what to do. The first rule that matches is taken."""

    name: Str = ""
    match: tuple[HttpMatchRequest, ...] = ()
    route: tuple[RouteDestination, ...] = ()
    redirect: HttpRedirect | None = None
    direct_response: DirectResponse | None = None
    delegate: Delegate | None = None
    rewrite: HttpRewrite | None = None
    timeout: PositiveDuration | None = None
    retries: HttpRetry | None = None
    fault: HttpFault | None = None
    mirror: Destination | None = None
    mirrors: tuple[MirrorPolicy, ...] = ()
    mirror_percent: UInt32 | None = None
    mirror_percentage: Percent | None = None
    cors_policy: CorsPolicy | None = None
    headers: Headers | None = None
    websocket_upgrade: Bool | None = None
    """Removed from Istio's schema, still in old files: WebSocket upgrades are always allowed."""

    def destinations(self) -> Iterator[Destination]:
        """Everywhere that its requests or copies of them can go."""
        yield from (one.destination for one in self.route)
        if self.mirror is not None:
            yield self.mirror
        yield from (one.destination for one in self.mirrors)

    def refusals(self) -> Iterator[tuple[str, str]]:
        if self.delegate is not None and (self.mirror is not None or self.mirrors):
            name = "mirror" if self.mirror is not None else "mirrors"
            yield name, "is not handed on to delegates by this version: set it on the delegate's routes"

    def rules(self) -> Iterator[tuple[str, str]]:
        yield from self._action_rules()
        if self.mirror is not None and self.mirrors:
            yield "mirrors", "may not be set together with mirror"
        if self.mirror_percent is not None and self.mirror_percent > 100:
            yield "mirrorPercent", "must be between 0 and 100"
        if not self.route and self.delegate is None and (self.mirror is not None or self.mirrors):
            yield (
                "mirror" if self.mirror is not None else "mirrors",
                "needs a route: only what is forwarded is copied",
            )
        if self.redirect is not None and self.redirect.prefix_rewrite:
            for match in self.match:
                if match.uri is not None and match.uri.prefix is None:
                    yield (
                        "redirect.prefixRewrite",
                        "needs matches with uri.prefix: there is no prefix to replace",
                    )
                    break
        if self.rewrite is not None and self.rewrite.authority and self.headers is not None:
            for path in self.headers.request.authorities():
                yield f"headers.request.{path}", "may not be set together with rewrite.authority"
        yield from weight_problems(self.route, "route")

    def _action_rules(self) -> Iterator[tuple[str, str]]:
        actions = exactly_one(self, ("redirect", "direct_response", "delegate"))
        if self.route:
            actions.insert(0, "route")
        if not actions:
            yield "", "one of route, redirect, directResponse, delegate must be set"
        if len(actions) > 1:
            yield actions[1], f"may not be set together with {actions[0]}"
        for action in ("redirect", "directResponse"):
            if action in actions:
                if self.fault is not None:
                    yield "fault", f"may not be set together with {action}"
                if self.rewrite is not None:
                    yield "rewrite", f"may not be set together with {action}"
