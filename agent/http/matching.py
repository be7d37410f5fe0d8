"""Header and query matchers compiled against a request or a response.

Rule: the subject is fetched here, judged by agent/table/matchers; filters and routing share both. A header that came
more than once matches if one of its values does, as in Envoy.
Not for: paths of routes, which agent/routing orders and indexes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

from agent.http.headers import Headers
from agent.http.request import RequestContext, ResponseHead
from agent.http.single import SINGLE_IN_REQUESTS, SINGLE_IN_RESPONSES
from agent.table.matchers import HeaderMatch, QueryMatch, compile_header, compile_string

RequestPredicate: TypeAlias = Callable[[RequestContext], bool]
ResponsePredicate: TypeAlias = Callable[[ResponseHead], bool]
ValueOf: TypeAlias = Callable[[RequestContext], bytes | None]


PSEUDO: Final[Mapping[bytes, ValueOf]] = {
    b":method": lambda ctx: ctx.method,
    b":path": lambda ctx: ctx.path or None,
    b":authority": lambda ctx: ctx.authority or None,
    b"host": lambda ctx: ctx.authority or None,
    b":scheme": lambda ctx: ctx.scheme,
    b":protocol": lambda ctx: ctx.upgrade or None if ctx.method == b"CONNECT" else None,
}


def request_value(name: bytes) -> ValueOf:
    """How to read a header (its values joined by commas) or pseudo-header of a request; `host` is the authority."""
    if name in PSEUDO:
        return PSEUDO[name]

    def value(ctx: RequestContext) -> bytes | None:
        headers = ctx.headers
        return headers.get(name) if headers.repeated is None else headers.joined(name)

    return value


def compile_request_header(match: HeaderMatch) -> RequestPredicate:
    """One HeaderMatcher over a request. Of a header that came more than once, one value has to match."""
    test = compile_header(match)
    name = match.name
    if name in PSEUDO:
        value = PSEUDO[name]
        return lambda ctx: test(value(ctx))
    if name in SINGLE_IN_REQUESTS:
        return lambda ctx: test(ctx.headers.joined(name))

    def matches(ctx: RequestContext) -> bool:
        headers = ctx.headers
        return test(
            headers.get(name) if headers.repeated is None else _values(headers, name, SINGLE_IN_REQUESTS)
        )

    return matches


def _values(headers: Headers, name: bytes, single: frozenset[bytes]) -> bytes | list[bytes] | None:
    """The one value of a header, all of them where there are several, None where there is none."""
    values = headers.get_all(name)
    if len(values) > 1:
        return b",".join(values) if name in single else values
    return values[0] if values else None


def compile_request_headers(matches: Sequence[HeaderMatch]) -> RequestPredicate | None:
    """All of these must match; None where there is nothing to match."""
    return every(tuple(compile_request_header(match) for match in matches))


def compile_response_headers(matches: Sequence[HeaderMatch]) -> ResponsePredicate | None:
    """Any of these matches (retriable_headers); None where there is nothing to match."""
    tests = tuple((match.name, compile_header(match)) for match in matches)
    if not tests:
        return None

    def matches_one(head: ResponseHead) -> bool:
        return any(
            test(
                str(head.status).encode()
                if name == b":status"
                else _values(head.headers, name, SINGLE_IN_RESPONSES)
            )
            for name, test in tests
        )

    return matches_one


def every(tests: tuple[RequestPredicate, ...]) -> RequestPredicate | None:
    """The conjunction of predicates; None for none, the predicate itself for one."""
    if not tests:
        return None
    if len(tests) == 1:
        return tests[0]
    if len(tests) == 2:
        first, second = tests
        return lambda ctx: first(ctx) and second(ctx)

    def all_of(ctx: RequestContext) -> bool:
        for test in tests:  # noqa: SIM110 - a loop is twice as fast as all() over a generator
            if not test(ctx):
                return False
        return True

    return all_of


def query_parameters(path: bytes) -> dict[bytes, bytes]:
    """First value of each parameter, neither decoded nor unescaped (Envoy QueryParamsMulti.parseQueryString)."""
    _, _, query = path.partition(b"?")
    query = query.partition(b"#")[0]
    parameters: dict[bytes, bytes] = {}
    if query:
        for item in query.split(b"&"):
            name, _, value = item.partition(b"=")
            parameters.setdefault(name, value)
    return parameters


def compile_query(matches: Sequence[QueryMatch]) -> RequestPredicate | None:
    """All of these parameters must match; None where there is nothing to match."""
    tests = tuple(
        (match.name.encode(), match.present, compile_string(match.string) if match.string else None)
        for match in matches
    )
    if not tests:
        return None

    def matches_all(ctx: RequestContext) -> bool:
        parameters = query_parameters(ctx.path)
        for name, present, test in tests:
            value = parameters.get(name)
            if test is None:
                if (value is not None) != present:
                    return False
            elif value is None or not test(value):
                return False
        return True

    return matches_all
