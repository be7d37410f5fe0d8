"""Independent draws from a request's one random number.

Rule: the splits of routing take the number as it is; filters take mixtures of it, so that a delayed half of the
requests is not also the half that went to one side of a split.
"""

from __future__ import annotations

from typing import Final

from agent.http.request import RequestContext

_MASK: Final = (1 << 64) - 1

DELAY, ABORT, ENABLED, ENFORCED, SHADOW = range(1, 6)


def draw(ctx: RequestContext, purpose: int) -> int:
    """A 64-bit number for one purpose (the finaliser of splitmix64)."""
    value = (ctx.random + purpose * 0x9E3779B97F4A7C15) & _MASK
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)
