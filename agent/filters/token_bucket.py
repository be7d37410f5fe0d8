"""A token bucket that fills continuously (Envoy AtomicTokenBucketImpl).

Rule: time is an argument, in monotonic seconds; the bucket starts full. Not for: sharing between processes.
"""

from __future__ import annotations

from math import ceil

from agent.table.filter_config import TokenBucket


class Bucket:
    """Tokens of one configuration value."""

    __slots__ = ("_at", "_rate", "_tokens", "maximum")

    def __init__(self, config: TokenBucket) -> None:
        self.maximum = config.max_tokens
        self._rate = config.tokens_per_fill / config.fill_interval
        self._tokens = float(config.max_tokens)
        self._at: float | None = None

    def take(self, now: float) -> bool:
        """Take one token if there is one."""
        self._fill(now)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def remaining(self, now: float) -> int:
        """Whole tokens left."""
        self._fill(now)
        return int(self._tokens)

    def seconds_to_next(self, now: float) -> int:
        """Whole seconds, rounded up, until there is a token again; 0 where there is one."""
        self._fill(now)
        if self._tokens >= 1.0:
            return 0
        return ceil((1.0 - self._tokens) / self._rate - 1e-6)

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self._rate

    def _fill(self, now: float) -> None:
        if self._at is None:
            self._at = now
        elif now > self._at:
            self._tokens = min(float(self.maximum), self._tokens + (now - self._at) * self._rate)
            self._at = now
