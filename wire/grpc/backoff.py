"""How long to wait before the next try of a connection. Pure: chance is an argument.

Source: gRPC connection back-off: exponential, with jitter so that a fleet does not come back all at once.
"""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """Grows with every `next_delay()` until `reset()`.

    `random` gives numbers from 0 to 1 (`random.random`); delays are seconds, within ±`jitter` of the
    exponential value and never above `maximum`.
    """

    def __init__(
        self,
        random: Callable[[], float],
        *,
        initial: float = 0.5,
        multiplier: float = 1.6,
        maximum: float = 15.0,
        jitter: float = 0.3,
    ) -> None:
        self._random = random
        self._initial = initial
        self._multiplier = multiplier
        self._maximum = maximum
        self._jitter = jitter
        self._delay = initial

    def next_delay(self) -> float:
        """Seconds to wait before the next try."""
        delay = self._delay
        self._delay = min(self._delay * self._multiplier, self._maximum)
        return min(delay * (1 + self._jitter * (2 * self._random() - 1)), self._maximum)

    def reset(self) -> None:
        """Begin anew, after a connection that worked."""
        self._delay = self._initial
