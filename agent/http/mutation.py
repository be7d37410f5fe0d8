"""Header additions and removals, prepared once (Envoy's HeaderParser).

Rule: within one set of changes removals come first, then overwrites, then additions, and every value is made
from the headers as they were before. A value without %OPERATORS% is bytes that are ready.
Not for: deciding which set applies, which is routing's and the filters' part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from agent.http.headers import Headers
from agent.http.request import RequestContext, ResponseHead
from agent.http.single import SINGLE_IN_REQUESTS, SINGLE_IN_RESPONSES, add_field
from agent.http.substitution import ValueMaker, compile_value
from agent.table.route import HeaderChanges, HeaderOption

RequestChange: TypeAlias = Callable[[RequestContext], None]
ResponseChange: TypeAlias = Callable[[RequestContext, ResponseHead], None]


def compile_request_changes(levels: Sequence[HeaderChanges]) -> RequestChange | None:
    """Changes of several levels, in the order given; None where nothing changes."""
    prepared = [_Prepared(level.remove, level.add) for level in levels if level.add or level.remove]
    if not prepared:
        return None
    if len(prepared) == 1:
        only = prepared[0]
        return lambda ctx: only.apply(ctx.headers, ctx, None)

    def apply(ctx: RequestContext) -> None:
        for level in prepared:
            level.apply(ctx.headers, ctx, None)

    return apply


def compile_response_changes(levels: Sequence[HeaderChanges]) -> ResponseChange | None:
    """As compile_request_changes, for the response's head."""
    prepared = [_Prepared(level.remove, level.add) for level in levels if level.add or level.remove]
    if not prepared:
        return None
    if len(prepared) == 1:
        only = prepared[0]
        return lambda ctx, head: only.apply(head.headers, ctx, head)

    def apply(ctx: RequestContext, head: ResponseHead) -> None:
        for level in prepared:
            level.apply(head.headers, ctx, head)

    return apply


def prepare(changes: HeaderChanges) -> Callable[[Headers, RequestContext, ResponseHead | None], None] | None:
    """One set of changes over any header map, as filters apply them; None where nothing changes."""
    if not changes.add and not changes.remove:
        return None
    return _Prepared(changes.remove, changes.add).apply


class _Prepared:
    """One level. Fast where every value is constant and nothing overwrites."""

    __slots__ = ("_options", "_remove")

    def __init__(self, remove: Sequence[bytes], add: Sequence[HeaderOption]) -> None:
        self._remove = tuple(name.lower() for name in remove)
        self._options: tuple[tuple[bytes, bytes | ValueMaker, str, bool], ...] = tuple(
            (
                option.name.lower(),
                compile_value(option.value, omit_empty=True),
                option.action,
                option.keep_empty,
            )
            for option in add
        )

    def apply(self, headers: Headers, ctx: RequestContext, head: ResponseHead | None) -> None:
        for name in self._remove:
            if name in headers:
                headers.remove(name)
        if not self._options:
            return
        overwrites: list[tuple[bytes, bytes]] = []
        additions: list[tuple[bytes, bytes]] = []
        for name, maker, action, keep_empty in self._options:
            value = maker if isinstance(maker, bytes) else maker(ctx, head)
            if not value and not keep_empty:
                continue
            if action == "append" or (action == "add_if_absent" and name not in headers):
                additions.append((name, value))
            elif action == "overwrite" or (action == "overwrite_if_exists" and name in headers):
                overwrites.append((name, value))
        for name, value in overwrites:
            headers.set(name, value)
        single = SINGLE_IN_REQUESTS if head is None else SINGLE_IN_RESPONSES
        for name, value in additions:
            add_field(headers, name, value, single)
