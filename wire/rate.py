"""A token bucket: how often something may happen. Pure: time is an argument."""

from __future__ import annotations

from collections import OrderedDict


class RateLimit:
    """Allows `burst` events at once and `rate` a second in the long run."""

    def __init__(self, *, burst: float, rate: float) -> None:
        self._burst = burst
        self._rate = rate
        self._tokens = burst
        self._since: float | None = None

    def refund(self) -> None:
        """Take the last event back: it was not one of those that are limited."""
        self._tokens = min(self._burst, self._tokens + 1)

    def spend(self, now: float) -> bool:
        """Count one event at `now` (seconds of any monotonic clock); False when it is one too many."""
        if self._since is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._since) * self._rate)
        self._since = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class RateLimits:
    """A bucket for each key, the most recent `most` of them: who is forgotten has been quiet the longest."""

    def __init__(self, *, burst: float, rate: float, most: int = 10_000) -> None:
        self._burst, self._rate, self._most = burst, rate, most
        self._buckets: OrderedDict[str, RateLimit] = OrderedDict()

    def of(self, key: str) -> RateLimit:
        """The key's bucket."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = RateLimit(burst=self._burst, rate=self._rate)
            if len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(key)
        return bucket
