"""Local rate limiting (envoy.filters.http.local_ratelimit).

Rule (Envoy LocalRateLimiterImpl): buckets of matching descriptors are asked first, the slowest first, then the default
bucket; one refusal is enough. A configuration value owns its buckets, wherever it is used.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from agent.filters.chain import Placed, most_specific
from agent.filters.chance import ENABLED, ENFORCED, draw
from agent.filters.descriptors import Descriptors, compile_descriptors
from agent.filters.grpc import grpc_reply
from agent.filters.step import RequestStep, Steps
from agent.filters.token_bucket import ALONE, Bucket, BucketPlace, KeyedBucket
from agent.http.headers import Headers
from agent.http.mutation import compile_request_changes, prepare
from agent.http.request import LocalReply, RequestContext, ResponseHead
from agent.table.filter_config import LocalRateLimit, TokenBucket
from agent.table.route import HeaderChanges

DETAILS: Final = "local_rate_limited"
_CONNECTIONS: Final = 65536


class Limiter:
    """The buckets of one configuration value."""

    __slots__ = ("_always_default", "_config", "_default", "_dynamic", "_fixed", "_keyed")

    def __init__(self, config: LocalRateLimit, place: BucketPlace = ALONE) -> None:
        self._config = config
        self._default = None if config.bucket is None else place.bucket(config.bucket)
        self._always_default = config.always_consume_default
        self._fixed = {
            descriptor.entries: place.bucket(descriptor.bucket, repr(descriptor.entries))
            for descriptor in config.descriptors
            if all(value for _, value in descriptor.entries)
        }
        self._dynamic: OrderedDict[tuple[tuple[str, str], ...], Bucket] = OrderedDict()
        dynamic = len(self._fixed) < len(config.descriptors)
        self._keyed = place.keyed(config.max_dynamic_descriptors) if dynamic else None

    def ask(self, descriptors: Descriptors, now: float) -> tuple[bool, Bucket | None]:
        """(allowed, the bucket that the answer speaks of)."""
        matched = [bucket for entries in descriptors if (bucket := self._bucket(entries)) is not None]
        matched.sort(key=lambda bucket: bucket.rate)
        for bucket in matched:
            if not bucket.take(now):
                return False, bucket
        if (
            (not matched or self._always_default)
            and self._default is not None
            and not self._default.take(now)
        ):
            return False, self._default
        return True, matched[0] if matched else self._default

    def _bucket(self, entries: tuple[tuple[str, str], ...]) -> Bucket | None:
        fixed = self._fixed.get(entries)
        if fixed is not None:
            return fixed
        for descriptor in self._config.descriptors:
            wanted = descriptor.entries
            if len(wanted) != len(entries) or all(value for _, value in wanted):
                continue
            if all(
                k == key and v in {"", value} for (k, v), (key, value) in zip(wanted, entries, strict=True)
            ):
                bucket = self._dynamic.get(entries)
                if bucket is None:
                    bucket = self._dynamic[entries] = self._new(descriptor.bucket, entries)
                    if len(self._dynamic) > self._config.max_dynamic_descriptors:
                        self._dynamic.popitem(last=False)
                else:
                    self._dynamic.move_to_end(entries)
                return bucket
        return None

    def _new(self, config: TokenBucket, entries: tuple[tuple[str, str], ...]) -> Bucket:
        return (
            Bucket(config)
            if self._keyed is None
            else KeyedBucket(config, self._keyed, repr((config, entries)))
        )


class ConnectionLimiters:
    """One limiter for each downstream connection; the oldest are forgotten first."""

    __slots__ = ("_config", "_limiters")

    def __init__(self, config: LocalRateLimit) -> None:
        self._config = config
        self._limiters: OrderedDict[int, Limiter] = OrderedDict()

    def of(self, connection: int) -> Limiter:
        """The limiter of a connection's number."""
        limiter = self._limiters.get(connection)
        if limiter is None:
            limiter = self._limiters[connection] = Limiter(self._config)
            if len(self._limiters) > _CONNECTIONS:
                self._limiters.popitem(last=False)
        return limiter


def compile(placed: Placed) -> Steps | None:
    """Steps for a place in a chain; None where the filter is off or has no bucket."""
    config = most_specific(placed, LocalRateLimit)
    if config.enabled.numerator == 0 or (config.bucket is None and not config.descriptors):
        return None
    limiter_of = _limiter_source(placed, config)
    descriptors = compile_descriptors(config, placed.scope)
    request = _request(config, limiter_of, descriptors, placed)
    if not config.ratelimit_headers:
        return Steps((request,))
    return Steps((request,), (_describe,))


def _limiter_source(placed: Placed, config: LocalRateLimit) -> Callable[[RequestContext], Limiter]:
    if config.per_connection:
        limiters = placed.state.of(config, lambda: ConnectionLimiters(config))
        return lambda ctx: limiters.of(ctx.connection.id)
    limiter = placed.state.of(config, lambda: Limiter(config, placed.state.buckets(config)))
    return lambda ctx: limiter


def _request(
    config: LocalRateLimit,
    limiter_of: Callable[[RequestContext], Limiter],
    descriptors: Callable[[RequestContext], Descriptors],
    placed: Placed,
) -> RequestStep:
    asked, passed, limited, enforced = (
        placed.count(f"{config.stat_prefix}.http_local_rate_limit.{name}")
        for name in ("enabled", "ok", "rate_limited", "enforced")
    )
    mark = compile_request_changes([HeaderChanges(config.request_headers)])
    add = prepare(HeaderChanges(config.response_headers))
    grpc_status = 8 if config.resource_exhausted else 14

    def limit(ctx: RequestContext) -> LocalReply | None:
        if not config.enabled.takes(draw(ctx, ENABLED)):
            return None
        asked()
        allowed, bucket = limiter_of(ctx).ask(descriptors(ctx), ctx.started_at)
        if config.ratelimit_headers and bucket is not None:
            if ctx.filter_notes is None:
                ctx.filter_notes = {}
            ctx.filter_notes[DETAILS] = bucket
        if allowed:
            passed()
            return None
        limited()
        if not config.enforced.takes(draw(ctx, ENFORCED)):
            if mark is not None:
                mark(ctx)
            return None
        enforced()
        headers = Headers()
        if add is not None:
            add(headers, ctx, None)
        reply = LocalReply(
            config.status,
            b"local_rate_limited",
            tuple(headers.fields()),
            flags=("RL",),
            details=DETAILS,
        )
        return grpc_reply(ctx, reply, grpc_status)

    return limit


def _describe(ctx: RequestContext, head: ResponseHead) -> None:
    """x-ratelimit-* of the bucket that decided (draft-polli-ratelimit-headers-03)."""
    bucket = None if ctx.filter_notes is None else ctx.filter_notes.get(DETAILS)
    if isinstance(bucket, Bucket):
        now = ctx.started_at
        head.headers.set(b"x-ratelimit-limit", str(bucket.maximum).encode())
        head.headers.set(b"x-ratelimit-remaining", str(bucket.remaining(now)).encode())
        head.headers.set(b"x-ratelimit-reset", str(bucket.seconds_to_next(now)).encode())
