"""Hash policies: which upstream endpoint requests that belong together stick to.

Rule (Envoy HashPolicyImpl): each policy that finds its value contributes xxHash64 of it; contributions are combined
by a rotation and an exclusive or; a terminal policy that contributed ends the list.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final, TypeAlias

from agent.http.cookies import cookie
from agent.http.matching import query_parameters
from agent.http.regex_substitution import compile_substitution
from agent.http.request import RequestContext, ResponseHead
from agent.http.xxhash import rotate, xxhash64
from agent.table.route import HashPolicy

HashKey: TypeAlias = Callable[[RequestContext], int | None]


def compile_hash(policies: tuple[HashPolicy, ...]) -> HashKey | None:
    """The key of a request, None where no policy found its value; None for no policies."""
    if not policies:
        return None
    sources = tuple((_source(policy), policy.terminal) for policy in policies)

    def key(ctx: RequestContext) -> int | None:
        combined: int | None = None
        for source, terminal in sources:
            found = source(ctx)
            if found is not None:
                combined = found if combined is None else rotate(combined, 1) ^ found
                if terminal:
                    break
        return combined

    return key


def _source(policy: HashPolicy) -> Callable[[RequestContext], int | None]:
    if policy.kind == "header":
        return _header(policy)
    if policy.kind == "source_ip":
        return lambda ctx: _of_text(ctx.connection.remote[0])
    name = policy.name.encode()
    if policy.kind == "cookie" and policy.cookie is not None:
        return lambda ctx: xxhash64(cookie(ctx.headers, name) or _made(ctx, name))
    of_cookie = policy.kind == "cookie"

    def value(ctx: RequestContext) -> int | None:
        found = cookie(ctx.headers, name) if of_cookie else query_parameters(ctx.path).get(name)
        return None if found is None else xxhash64(found)

    return value


def _header(policy: HashPolicy) -> Callable[[RequestContext], int | None]:
    """Several values are hashed in turn, in sorted order, each with the hash before it as its seed."""
    lowered = policy.name.lower().encode()
    substitute = compile_substitution(policy.substitution) if policy.substitution is not None else None

    def header(ctx: RequestContext) -> int | None:
        if lowered in {b":authority", b"host"}:
            values = [ctx.authority]
        elif lowered == b":path":
            values = [ctx.path]
        else:
            values = ctx.headers.get_all(lowered)
            if not values:
                return None
        if substitute is not None:
            values = [substitute(value) for value in values]
        digest = 0
        for value in sorted(values):
            digest = xxhash64(value, digest)
        return digest

    return header


_NOTE: Final = "hash cookies"


def _made(ctx: RequestContext, name: bytes) -> bytes:
    """The value of a cookie that the client is to get: one for all requests of its connection."""
    connection = ctx.connection
    value = b"%016x" % _of_text(_text(connection.remote) + _text(connection.local))
    if ctx.filter_notes is None:
        ctx.filter_notes = {}
    ctx.filter_notes.setdefault(_NOTE, {})[name] = value
    return value


@lru_cache(maxsize=4096)
def _of_text(text: str) -> int:
    """Of addresses, which all requests of a connection share."""
    return xxhash64(text.encode())


def _text(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def compile_cookies(
    policies: tuple[HashPolicy, ...],
) -> Callable[[RequestContext, ResponseHead], None] | None:
    """What adds the cookies that a request was hashed by and did not have; None where none are made."""
    suffixes = {
        policy.name.encode(): policy.cookie.encode() for policy in policies if policy.cookie is not None
    }
    if not suffixes:
        return None

    def add(ctx: RequestContext, head: ResponseHead) -> None:
        notes = ctx.filter_notes
        if notes is not None and _NOTE in notes:
            for name, value in notes[_NOTE].items():
                head.headers.add(b"set-cookie", b'%s="%s"%s' % (name, value, suffixes.get(name, b"")))

    return add
