"""Cross-origin resource sharing (envoy.filters.http.cors).

Rule (Envoy CorsFilter): the policies of route and virtual host are read attribute by attribute, the most
specific that sets one wins. A preflight of an allowed origin is answered here; other requests of one get
their headers on the way back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agent.filters.chain import Placed
from agent.filters.chance import ENABLED, draw
from agent.filters.step import Steps
from agent.http.request import LocalReply, RequestContext, ResponseHead
from agent.table.filter_config import CorsPolicy
from agent.table.matchers import BytesPredicate, Fraction, compile_string


@dataclass(frozen=True, slots=True)
class _Effective:
    origins: tuple[BytesPredicate, ...]
    enabled: Fraction | None
    reply_headers: tuple[tuple[bytes, bytes], ...]
    response_headers: tuple[tuple[bytes, bytes], ...]
    private_network: bool
    forward_not_matching: bool

    def allows(self, origin: bytes) -> bool:
        return any(match(b"*") or match(origin) for match in self.origins)

    def is_on(self, ctx: RequestContext) -> bool:
        return self.enabled is None or self.enabled.takes(draw(ctx, ENABLED))


def compile(placed: Placed) -> Steps | None:
    """Steps for a route's policies; None where it has none or answers by itself (then Envoy's CORS is silent)."""
    if not placed.scope.forwards:
        return None
    policies = [
        override.value for override in reversed(placed.overrides) if isinstance(override.value, CorsPolicy)
    ]
    policies.extend(placed.scope.cors)
    if not policies:
        return None
    effective = _merge(policies)
    if effective.enabled is not None and effective.enabled.numerator == 0:
        return None
    return Steps((_request(effective, placed),), (_response(effective),))


def _first(policies: list[CorsPolicy], attribute: Callable[[CorsPolicy], Any]) -> Any:
    """The attribute of the most specific policy that sets it."""
    for policy in policies:
        value = attribute(policy)
        if value is not None and value != "" and value != ():
            return value
    return None


def _merge(policies: list[CorsPolicy]) -> _Effective:
    credentials = ((b"access-control-allow-credentials", b"true"),)
    reply: tuple[tuple[bytes, bytes], ...] = ()
    response: tuple[tuple[bytes, bytes], ...] = ()
    if _first(policies, lambda policy: policy.allow_credentials):
        reply = response = credentials
    for name, value in (
        (b"access-control-allow-methods", _first(policies, lambda policy: policy.allow_methods)),
        (b"access-control-allow-headers", _first(policies, lambda policy: policy.allow_headers)),
        (b"access-control-max-age", _first(policies, lambda policy: policy.max_age)),
    ):
        if value:
            reply = (*reply, (name, value.encode()))
    expose = _first(policies, lambda policy: policy.expose_headers)
    if expose:
        response = (*response, (b"access-control-expose-headers", expose.encode()))
    forward = _first(policies, lambda policy: policy.forward_not_matching_preflights)
    return _Effective(
        origins=tuple(
            compile_string(match) for match in _first(policies, lambda policy: policy.allow_origins) or ()
        ),
        enabled=policies[0].enabled,
        reply_headers=reply,
        response_headers=response,
        private_network=bool(_first(policies, lambda policy: policy.allow_private_network)),
        forward_not_matching=forward is None or bool(forward),
    )


def _request(policy: _Effective, placed: Placed) -> Callable[[RequestContext], LocalReply | None]:
    valid, invalid = (placed.count(f"{placed.stats}cors.origin_{name}") for name in ("valid", "invalid"))
    refusal = LocalReply(200, headers=policy.reply_headers, details="cors_response")

    def request(ctx: RequestContext) -> LocalReply | None:
        origin = ctx.headers.get(b"origin")
        if not origin or not policy.is_on(ctx):
            return None
        allowed = policy.allows(origin)
        (valid if allowed else invalid)()
        if ctx.method != b"OPTIONS" or not ctx.headers.get(b"access-control-request-method"):
            return None
        if not allowed:
            return None if policy.forward_not_matching else refusal
        headers = ((b"access-control-allow-origin", origin), *policy.reply_headers)
        if policy.private_network and ctx.headers.get(b"access-control-request-private-network") == b"true":
            headers = (*headers, (b"access-control-allow-private-network", b"true"))
        return LocalReply(200, headers=headers, details="cors_response")

    return request


def _response(policy: _Effective) -> Callable[[RequestContext, ResponseHead], None]:
    def response(ctx: RequestContext, head: ResponseHead) -> None:
        origin = ctx.headers.get(b"origin")
        if not origin or not policy.is_on(ctx) or not policy.allows(origin):
            return
        head.headers.set(b"access-control-allow-origin", origin)
        for name, value in policy.response_headers:
            head.headers.set(name, value)

    return response
