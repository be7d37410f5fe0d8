"""The index over a virtual host's routes never changes which route is first."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.filters.step import NO_STEPS
from agent.http.headers import Headers
from agent.http.request import ConnectionInfo, RequestContext
from agent.routing.compile import Router, compile_routes
from agent.routing.order import INDEX_FROM
from agent.table.route import Forward, Route, RouteConfiguration, RouteMatch, VirtualHost

_SEGMENTS = st.sampled_from(["", "/", "/a", "/b", "/a/", "/a/b", "/a/b/c", "/B", "/a/bb", "/b/a/"])
_KINDS = st.sampled_from(["prefix", "path", "separated_prefix"])
_MATCHES = st.builds(RouteMatch, kind=_KINDS, value=_SEGMENTS, case_sensitive=st.booleans())


def _request(path: str) -> RequestContext:
    connection = ConnectionInfo(1, ("127.0.0.1", 1), ("127.0.0.1", 2))
    return RequestContext(b"GET", path.encode(), b"host", Headers(), connection)


def _routes(matches: list[RouteMatch]) -> list[Route]:
    return [Route(match, Forward(cluster=str(number))) for number, match in enumerate(matches)]


def _router(routes: list[Route]) -> Router:
    config = RouteConfiguration("r", (VirtualHost("v", ("*",), tuple(routes)),))
    return compile_routes(config, lambda scope: NO_STEPS)


def _choose(router: Router, path: str) -> str | None:
    plan = router.route(_request(path))
    return None if plan is None else plan.cluster


@settings(deadline=None)
@given(st.lists(_MATCHES, min_size=INDEX_FROM, max_size=20), st.lists(_SEGMENTS, min_size=1, max_size=5))
def test_many_routes_give_the_same_first_match_as_one_by_one(
    matches: list[RouteMatch], paths: list[str]
) -> None:
    routes = _routes(matches)
    together, apart = _router(routes), [_router([route]) for route in routes]
    for path in paths:
        one_by_one = next((found for router in apart if (found := _choose(router, path)) is not None), None)
        assert _choose(together, path) == one_by_one


def test_a_thousand_exact_paths_are_found_and_strangers_leave_no_trace() -> None:
    matches = [RouteMatch("path", f"/item/{number}") for number in range(1000)] + [RouteMatch("prefix", "/")]
    config = RouteConfiguration("r", (VirtualHost("v", ("*",), tuple(_routes(matches))),))
    router = compile_routes(config, lambda scope: NO_STEPS)
    for number in (0, 500, 999):
        plan = router.route(_request(f"/item/{number}?q=1"))
        assert plan is not None and plan.cluster == str(number)
    for number in range(5000):
        plan = router.route(_request(f"/stranger/{number}"))
        assert plan is not None and plan.cluster == "1000"
