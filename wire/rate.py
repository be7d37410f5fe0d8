"""A token bucket: how often something may happen. Pure: time is an argument."""

from __future__ import annotations


class RateLimit:
    """Allows `burst` events at once and `rate` a second in the long run."""

    def __init__(self, *, burst: float, rate: float) -> None:
        self._burst = burst
        self._rate = rate
        self._tokens = burst
        self._since: float | None = None

    def spend(self, now: float) -> bool:
        """Count one event at `now` (seconds of any monotonic clock); False when it is one too many."""
        if self._since is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._since) * self._rate)
        self._since = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
