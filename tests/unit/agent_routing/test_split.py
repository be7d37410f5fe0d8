"""Weighted destinations get their share of the random numbers, and their own header changes and filters."""

from __future__ import annotations

from collections import Counter

import pytest

from agent.filters.step import NO_STEPS, Steps
from agent.http.headers import Headers
from agent.http.request import ConnectionInfo, RequestContext
from agent.routing.compile import compile_routes
from agent.routing.hashing import xxhash64
from agent.table.route import (
    ClusterWeight,
    FilterOverride,
    Forward,
    HeaderChanges,
    HeaderOption,
    Route,
    RouteConfiguration,
    RouteMatch,
    RouteScope,
    VirtualHost,
)


def _request(random: int) -> RequestContext:
    connection = ConnectionInfo(1, ("127.0.0.1", 1), ("127.0.0.1", 2))
    return RequestContext(b"GET", b"/", b"host", Headers(), connection, random=random)


def _config(*weights: ClusterWeight) -> RouteConfiguration:
    route = Route(
        RouteMatch("prefix", "/"), Forward(weighted=weights), overrides={"f": FilterOverride("route")}
    )
    return RouteConfiguration("r", (VirtualHost("v", ("*",), (route,)),))


def test_each_destination_gets_exactly_its_share_of_the_numbers() -> None:
    router = compile_routes(
        _config(ClusterWeight("a", 90), ClusterWeight("b", 0), ClusterWeight("c", 10)), _none
    )
    plans = [router.route(_request(number)) for number in range(1000)]
    assert Counter(plan.cluster for plan in plans if plan is not None) == {"a": 900, "c": 100}


def _none(scope: RouteScope) -> Steps:
    return NO_STEPS


def test_a_destination_changes_its_own_headers_and_overrides_the_routes_filters() -> None:
    seen: list[dict[str, tuple[object, ...]]] = []

    def steps(scope: RouteScope) -> Steps:
        seen.append({name: tuple(o.value for o in entries) for name, entries in scope.overrides.items()})
        return NO_STEPS

    changed = HeaderChanges((HeaderOption(b"x-to", "a"),))
    weight = ClusterWeight("a", 1, request_headers=changed, overrides={"f": FilterOverride("destination")})
    router = compile_routes(_config(weight), steps)
    assert {"f": ("route", "destination")} in seen
    ctx = _request(0)
    plan = router.route(ctx)
    assert plan is not None and plan.finish_request is not None
    plan.finish_request(ctx)
    assert ctx.headers[b"x-to"] == b"a"


def test_weights_that_add_up_to_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="more than nothing"):
        compile_routes(_config(ClusterWeight("a", 0)), _none)


@pytest.mark.parametrize(
    ("data", "digest"),
    [
        (b"", 0xEF46DB3751D8E999),
        (b"a", 0xD24EC4F1A98C6E5B),
        (b"Nobody inspects the spammish repetition", 0xFBCEA83C8A378BF1),
    ],
)
def test_hashes_are_xxhash64(data: bytes, digest: int) -> None:
    assert xxhash64(data) == digest
