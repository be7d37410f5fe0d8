"""Hash policies: which upstream endpoint requests that belong together stick to.

Rule (Envoy HashPolicyImpl): each policy that finds its value contributes xxHash64 of it; contributions are combined
by a rotation and an exclusive or; a terminal policy that contributed ends the list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from agent.http.matching import query_parameters
from agent.http.request import RequestContext
from agent.routing.substitution import compile_substitution
from agent.table.route import HashPolicy

HashKey: TypeAlias = Callable[[RequestContext], int | None]

_MASK: Final = (1 << 64) - 1
_P1, _P2, _P3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
_P4, _P5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5


def xxhash64(data: bytes, seed: int = 0) -> int:
    """xxHash64 (Collet), the hash that Envoy's ring and maglev use."""
    length, position = len(data), 0
    if length >= 32:
        lanes = [(seed + _P1 + _P2) & _MASK, (seed + _P2) & _MASK, seed, (seed - _P1) & _MASK]
        while position + 32 <= length:
            for lane in range(4):
                word = int.from_bytes(data[position : position + 8], "little")
                lanes[lane] = _round(lanes[lane], word)
                position += 8
        rotated = zip(lanes, (1, 7, 12, 18), strict=True)
        digest = sum(_rotate(value, by) for value, by in rotated) & _MASK
        for value in lanes:
            digest = ((digest ^ _round(0, value)) * _P1 + _P4) & _MASK
    else:
        digest = (seed + _P5) & _MASK
    digest = (digest + length) & _MASK
    while position + 8 <= length:
        word = int.from_bytes(data[position : position + 8], "little")
        digest = (_rotate(digest ^ _round(0, word), 27) * _P1 + _P4) & _MASK
        position += 8
    if position + 4 <= length:
        word = int.from_bytes(data[position : position + 4], "little")
        digest = (_rotate(digest ^ (word * _P1 & _MASK), 23) * _P2 + _P3) & _MASK
        position += 4
    for byte in data[position:]:
        digest = _rotate(digest ^ (byte * _P5 & _MASK), 11) * _P1 & _MASK
    digest = (digest ^ (digest >> 33)) * _P2 & _MASK
    digest = (digest ^ (digest >> 29)) * _P3 & _MASK
    return digest ^ (digest >> 32)


def _round(lane: int, word: int) -> int:
    return _rotate((lane + word * _P2) & _MASK, 31) * _P1 & _MASK


def _rotate(value: int, by: int) -> int:
    return ((value << by) | (value >> (64 - by))) & _MASK


def compile_hash(policies: tuple[HashPolicy, ...]) -> HashKey | None:
    """The key of a request, None where no policy found its value; None for no policies."""
    if not policies:
        return None
    sources = tuple((_source(policy), policy.terminal) for policy in policies)

    def key(ctx: RequestContext) -> int | None:
        combined: int | None = None
        for source, terminal in sources:
            value = source(ctx)
            if value is not None:
                found = xxhash64(value)
                combined = found if combined is None else _rotate(combined, 1) ^ found
                if terminal:
                    break
        return combined

    return key


def _source(policy: HashPolicy) -> Callable[[RequestContext], bytes | None]:
    name = policy.name.encode()
    if policy.kind == "source_ip":
        return lambda ctx: ctx.connection.remote[0].encode()
    if policy.kind == "query":
        return lambda ctx: query_parameters(ctx.path).get(name)
    if policy.kind == "cookie":
        return lambda ctx: _cookie(ctx, name)
    lowered = name.lower()
    substitute = compile_substitution(policy.substitution) if policy.substitution is not None else None

    def header(ctx: RequestContext) -> bytes | None:
        if lowered in {b":authority", b"host"}:
            value: bytes | None = ctx.authority
        elif lowered == b":path":
            value = ctx.path
        else:
            values = sorted(ctx.headers.get_all(lowered))
            value = b"".join(values) if values else None
        return substitute(value) if substitute is not None and value is not None else value

    return header


def _cookie(ctx: RequestContext, name: bytes) -> bytes | None:
    for field in ctx.headers.get_all(b"cookie"):
        for item in field.split(b";"):
            key, _, value = item.strip().partition(b"=")
            if key == name:
                return value.strip(b'"')
    return None
