"""Dynamic metadata from headers and cookies (envoy.filters.http.header_to_metadata).

Rule: a rule of a header that is there takes its own value or the configured one; an empty value sets nothing. Rules run in
their order; what a rule removes is gone for the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite, nan
from typing import Any, TypeAlias

from agent.filters.chain import Placed, most_specific
from agent.filters.step import RequestStep, ResponseStep, Steps
from agent.http.cookies import cookie
from agent.http.headers import Headers
from agent.http.matching import request_value
from agent.http.regex_substitution import compile_substitution
from agent.http.request import RequestContext, ResponseHead
from agent.table.filter_config import HeaderToMetadata, MetadataRule, MetadataValue

_Apply: TypeAlias = Callable[[RequestContext, Headers], None]


def compile(placed: Placed) -> Steps | None:
    """Steps for a place in a chain; None without rules."""
    config = most_specific(placed, HeaderToMetadata)
    request = _rules(config.request)
    response = _rules(config.response)
    before: list[RequestStep] = []
    after: list[ResponseStep] = []
    if request:

        def of_request(ctx: RequestContext) -> None:
            for rule in request:
                rule(ctx, ctx.headers)

        before.append(of_request)
    if response:

        def of_response(ctx: RequestContext, head: ResponseHead) -> None:
            for rule in response:
                rule(ctx, head.headers)

        after.append(of_response)
    return Steps(tuple(before), tuple(after)) if before or after else None


def _rules(rules: Sequence[MetadataRule]) -> tuple[_Apply, ...]:
    return tuple(_rule(rule) for rule in rules)


def _rule(rule: MetadataRule) -> _Apply:
    header, named, remove = rule.header, rule.cookie, rule.remove
    present = None if rule.present is None else _setter(rule.present)
    missing = None if rule.missing is None else _setter(rule.missing)

    pseudo = request_value(header) if header[:1] == b":" else None

    def apply(ctx: RequestContext, headers: Headers) -> None:
        if named:
            value = cookie(headers, named)
        elif pseudo is not None:
            value = _first(pseudo(ctx))
        else:
            value = headers.joined(header)
        if value is None:
            if missing is not None:
                missing(ctx, b"")
            return
        if present is not None:
            present(ctx, value)
        if remove:
            headers.remove(header)

    return apply


def _setter(config: MetadataValue) -> Callable[[RequestContext, bytes], None]:
    namespace, key, fixed, number = config.namespace, config.key, config.value.encode(), config.number
    change = None if config.substitution is None else compile_substitution(config.substitution)

    def put(ctx: RequestContext, value: bytes) -> None:
        told = fixed or (value if change is None else change(value))
        if not told:
            return
        final: Any = told.decode("utf-8", "surrogateescape")
        if number:
            # float() also reads underscores, which absl::SimpleAtod does not.
            try:
                final = float(final) if "_" not in final else nan
            except ValueError:
                return
            if not isfinite(final):
                return
        ctx.note(namespace, {key: final})

    return put


def _first(value: bytes | list[bytes] | None) -> bytes | None:
    return value[0] if isinstance(value, list) else value
