"""A token bucket that fills continuously (Envoy AtomicTokenBucketImpl).

Rule: time is an argument, in monotonic seconds, which are the same in all processes of a host; the bucket starts full.
Where a host has several workers, buckets of the same name are one (SharedBucket); a worker that is alone has the plain one.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from math import ceil
from typing import TYPE_CHECKING, Final

from agent.table.filter_config import TokenBucket

if TYPE_CHECKING:
    from agent.limits.region import Shares, State

_TOKENS_AT: Final = 2
"""Doubles of a bucket: tokens, and when they were counted (0: never, it is full)."""
_KEYED: Final = 4
"""Doubles of a bucket among others: key (0: free), time of its last use, tokens, time."""


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


class SharedBucket(Bucket):
    """A bucket that all workers of the host take from. Invariant: its numbers are the state's, inside `with` only."""

    __slots__ = ("_state",)

    def __init__(self, config: TokenBucket, state: State) -> None:
        super().__init__(config)
        self._state = state

    def take(self, now: float) -> bool:
        """See Bucket."""
        with self._state as numbers:
            at = self._load(numbers, now)
            taken = super().take(now)
            self._store(numbers, at)
        return taken

    def remaining(self, now: float) -> int:
        """See Bucket."""
        with self._state as numbers:
            self._load(numbers, now)
        return super().remaining(now)

    def seconds_to_next(self, now: float) -> int:
        """See Bucket."""
        with self._state as numbers:
            self._load(numbers, now)
        return super().seconds_to_next(now)

    def _find(self, numbers: memoryview[float], now: float) -> int:
        """Where this bucket's tokens are."""
        return 0

    def _load(self, numbers: memoryview[float], now: float) -> int:
        at = self._find(numbers, now)
        counted: float = numbers[at + 1]
        self._tokens = numbers[at] if counted else float(self.maximum)
        self._at = counted or now
        return at

    def _store(self, numbers: memoryview[float], at: int) -> None:
        numbers[at] = self._tokens
        numbers[at + 1] = self._at or 0.0


class KeyedBucket(SharedBucket):
    """One of a bounded number of buckets that are made when they are needed; the one unused for longest makes room."""

    __slots__ = ("_key",)

    def __init__(self, config: TokenBucket, state: State, key: str) -> None:
        super().__init__(config, state)
        self._key = float(
            int.from_bytes(blake2b(key.encode("utf-8", "surrogateescape"), digest_size=6).digest()) + 1
        )

    def _find(self, numbers: memoryview[float], now: float) -> int:
        keys: Sequence[float] = numbers[::_KEYED].tolist()
        if self._key in keys:
            at = keys.index(self._key) * _KEYED
        else:
            used: Sequence[float] = numbers[1::_KEYED].tolist()
            at = used.index(min(used)) * _KEYED
            numbers[at] = self._key
            numbers[at + 3] = 0.0
        numbers[at + 1] = now
        return at + 2


class BucketPlace:
    """Where the buckets of one configuration value are: in this worker, or with all of the host."""

    __slots__ = ("_name", "_shares")

    def __init__(self, shares: Shares | None = None, name: str = "") -> None:
        self._shares = shares
        self._name = name

    def bucket(self, config: TokenBucket, name: str = "") -> Bucket:
        """A bucket of this value; other contents make it another bucket, which is full."""
        if self._shares is not None:
            full = f"{self._name}|{name}|{config.max_tokens}/{config.tokens_per_fill}/{config.fill_interval}"
            state = self._shares.state(full, _TOKENS_AT)
            if state is not None:
                return SharedBucket(config, state)
        return Bucket(config)

    def keyed(self, many: int) -> State | None:
        """Room for so many `KeyedBucket`s; None where this worker keeps its own."""
        return None if self._shares is None else self._shares.state(f"{self._name}|keyed", many * _KEYED)


ALONE: Final = BucketPlace()
"""Of a worker that shares nothing."""
