"""Changes to the query string (Envoy KeyValueMutation on query parameters).

Rule: as Envoy does it, the parameters come out decoded and in the order of their names, new values encoded; unlike
Envoy, what cannot stand in a request line is encoded. The path before the `?` stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote, unquote

from agent.filters.step import RequestStep
from agent.http.request import RequestContext
from agent.http.substitution import ValueMaker, compile_value
from agent.table.filter_config import QueryMutation


def compile_query_mutations(mutations: Sequence[QueryMutation]) -> RequestStep | None:
    """One step for all mutations; None for none."""
    if not mutations:
        return None
    prepared: list[tuple[str, bytes | ValueMaker | None, str]] = [
        (mutation.name, None if mutation.value is None else compile_value(mutation.value), mutation.action)
        for mutation in mutations
    ]

    def mutate(ctx: RequestContext) -> None:
        bare, _, given = ctx.path.partition(b"?")
        parameters = _parse(given)
        for name, maker, action in prepared:
            if maker is None:
                parameters = [item for item in parameters if item[0] != name]
                continue
            made = maker if isinstance(maker, bytes) else maker(ctx, None)
            value = _encode(made.decode("utf-8", "surrogateescape"))
            present = any(item[0] == name for item in parameters)
            if action == "append" or (action == "add_if_absent" and not present):
                parameters.append((name, value))
            elif action == "overwrite" or (action == "overwrite_if_exists" and present):
                parameters = [item for item in parameters if item[0] != name]
                parameters.append((name, value))
        parameters.sort(key=lambda item: item[0])
        query = "&".join(f"{name}={value}" for name, value in parameters if name)
        ctx.path = bare + (
            b"?" + _UNSENDABLE.sub(_escape, query.encode("utf-8", "surrogateescape")) if query else b""
        )

    return mutate


_UNSENDABLE: Final = re.compile(rb"[^!-~]|#")


def _escape(found: re.Match[bytes]) -> bytes:
    return b"%%%02X" % found[0][0]


def _parse(query: bytes) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for item in query.decode("utf-8", "surrogateescape").split("&") if query else ():
        name, _, value = item.partition("=")
        found.append((unquote(name, errors="surrogateescape"), unquote(value, errors="surrogateescape")))
    return found


def _encode(text: str) -> str:
    return quote(text.encode("utf-8", "surrogateescape"), safe="-_.~")
