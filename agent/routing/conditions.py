"""What a route asks of a request besides its path, as one predicate.

Rule: every condition must hold; their order does not matter because none has an effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agent.http.matching import RequestPredicate, compile_query, compile_request_header, every
from agent.http.request import RequestContext
from agent.table.matchers import FilterStateMatch, Fraction, MetadataMatch, compile_metadata, compile_string
from agent.table.route import RouteMatch


def compile_conditions(match: RouteMatch) -> RequestPredicate | None:
    """The conjunction of all conditions but the path; None for none."""
    tests: list[RequestPredicate] = []
    if match.kind == "connect":
        tests.append(_is_connect)
    elif match.kind == "regex" or not match.value:
        tests.append(_has_path)
    if match.fraction is not None:
        tests.append(_share(match.fraction))
    tests.extend(compile_request_header(header) for header in match.headers)
    if (query := compile_query(match.query)) is not None:
        tests.append(query)
    if match.grpc:
        tests.append(is_grpc)
    if match.tls_presented is not None:
        tests.append(_presented(match.tls_presented))
    if match.tls_validated is not None:
        tests.append(_validated(match.tls_validated))
    tests.extend(_metadata(condition) for condition in match.metadata)
    tests.extend(_filter_state(condition) for condition in match.filter_state)
    return every(tuple(tests))


def _is_connect(ctx: RequestContext) -> bool:
    return ctx.method == b"CONNECT"


def _has_path(ctx: RequestContext) -> bool:
    """A CONNECT without a path is for connect_matcher routes alone."""
    return ctx.method != b"CONNECT" or bool(ctx.path)


def is_grpc(ctx: RequestContext) -> bool:
    """Is this a gRPC request by its content type? (Envoy Grpc::Common::isGrpcRequestHeaders)"""
    kind = ctx.headers.get(b"content-type", b"")
    return kind == b"application/grpc" or kind.startswith(b"application/grpc+")


def _share(fraction: Fraction) -> RequestPredicate:
    return lambda ctx: fraction.takes(ctx.random)


def _presented(wanted: bool) -> RequestPredicate:
    return lambda ctx: (ctx.connection.peer is not None) == wanted


def _validated(wanted: bool) -> RequestPredicate:
    return lambda ctx: (ctx.connection.peer is not None and ctx.connection.peer.verified) == wanted


def _filter_state(match: FilterStateMatch) -> RequestPredicate:
    key, test = match.key, compile_string(match.value)
    return lambda ctx: key in ctx.connection.filter_state and test(ctx.connection.local[0].encode())


_NO_METADATA: Final[Mapping[str, Mapping[str, Any]]] = {}


def _metadata(match: MetadataMatch) -> RequestPredicate:
    test = compile_metadata(match)
    return lambda ctx: test(ctx.dynamic_metadata or _NO_METADATA)
