"""Weighted destinations.

Rule: the request's random number modulo the total weight falls into one destination's share
(Envoy WeightedClusterUtil::pickCluster).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

from agent.http.matching import request_value
from agent.http.request import RequestContext
from agent.routing.hashing import HashKey
from agent.routing.plan import RoutePlan
from agent.table.matchers import decimal


class Split(NamedTuple):
    """Weights in order, the header that may carry the number (empty: none), and the hash policies' key."""

    weights: Sequence[int]
    header: bytes = b""
    hash_key: HashKey | None = None


def compile_split(
    split: Split, plans: Sequence[RoutePlan], *, by_hash: bool = False
) -> Callable[[RequestContext], RoutePlan]:
    """A function that picks one of the plans. Raises ValueError where the weights add up to nothing."""
    bounds = list(accumulate(split.weights))
    total = bounds[-1] if bounds else 0
    if total <= 0:
        raise ValueError("the weights of a split must add up to more than nothing")
    if not split.header and not (by_hash and split.hash_key is not None):
        return lambda ctx: plans[bisect_right(bounds, ctx.random % total)]
    value_of = request_value(split.header.lower())

    def pick(ctx: RequestContext) -> RoutePlan:
        number = ctx.random
        if split.header:
            given = decimal(value_of(ctx) or b"")
            number = given if given is not None and given >= 0 else number
        elif split.hash_key is not None:
            hashed = split.hash_key(ctx)
            number = hashed if hashed is not None else number
        return plans[bisect_right(bounds, number % total)]

    return pick
