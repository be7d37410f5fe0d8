"""Header and query mutation (envoy.filters.http.header_mutation).

Rule: each mutation is applied after the one before it, and sees what that one did. The chain's own come first, then
the routes', the most specific first unless most_specific_header_mutations_wins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from agent.filters.chain import Placed
from agent.filters.query import compile_query_mutations
from agent.filters.step import RequestStep, ResponseStep, Steps
from agent.http.headers import Headers
from agent.http.mutation import prepare
from agent.http.request import RequestContext, ResponseHead
from agent.table.filter_config import HeaderMutation, Mutation
from agent.table.matchers import StringMatch, compile_string
from agent.table.route import HeaderChanges, HeaderOption

Apply: TypeAlias = Callable[[Headers, RequestContext, ResponseHead | None], None]


def compile(placed: Placed) -> Steps | None:
    """Steps for a place in a chain; None where nothing is changed."""
    own: HeaderMutation = placed.config
    routes = [override.value for override in placed.overrides if isinstance(override.value, HeaderMutation)]
    if not own.most_specific_wins:
        routes.reverse()
    levels = [own, *routes]
    request: list[RequestStep] = []
    response: list[ResponseStep] = []
    on_request = _mutations([mutation for level in levels for mutation in level.request])
    if on_request:
        request.append(_request(on_request))
    query = compile_query_mutations([mutation for level in levels for mutation in level.query])
    if query is not None:
        request.append(query)
    on_response = _mutations([mutation for level in levels for mutation in level.response])
    if on_response:
        response.append(_response(on_response))
    return Steps(tuple(request), tuple(response)) if request or response else None


def _mutations(mutations: Sequence[Mutation]) -> list[Apply]:
    return [_mutation(mutation) for mutation in mutations]


def _mutation(mutation: Mutation) -> Apply:
    value = mutation.value
    if isinstance(value, bytes):
        name = value
        return lambda headers, ctx, head: _remove(headers, name)
    if isinstance(value, StringMatch):
        matches = compile_string(value)

        def remove_matching(headers: Headers, ctx: RequestContext, head: ResponseHead | None) -> None:
            for name in [name for name in headers if matches(name)]:
                headers.remove(name)

        return remove_matching
    assert isinstance(value, HeaderOption)
    prepared = prepare(HeaderChanges((value,)))
    assert prepared is not None
    return prepared


def _remove(headers: Headers, name: bytes) -> None:
    headers.remove(name)


def _request(mutations: list[Apply]) -> RequestStep:
    def mutate(ctx: RequestContext) -> None:
        for mutation in mutations:
            mutation(ctx.headers, ctx, None)

    return mutate


def _response(mutations: list[Apply]) -> ResponseStep:
    def mutate(ctx: RequestContext, head: ResponseHead) -> None:
        for mutation in mutations:
            mutation(head.headers, ctx, head)

    return mutate
