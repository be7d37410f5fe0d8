"""When a probe's results make an application ready, and when they stop doing so (pure).

Rule: as Kubernetes: `successThreshold` successes in a row make it ready, `failureThreshold` failures in a row
make it unready; before the first verdict it is not ready. Not for: running the probe (`probe`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class ProbeState:
    """The verdict so far. `ready` is None before the first one."""

    success_threshold: int
    failure_threshold: int
    ready: bool | None = None
    streak: int = 0
    """Equal results in a row: positive for successes, negative for failures."""

    def after(self, passed: bool) -> ProbeState:
        """The state after one more result."""
        if passed:
            streak = max(self.streak, 0) + 1
            ready = True if streak >= self.success_threshold else self.ready
        else:
            streak = min(self.streak, 0) - 1
            ready = False if -streak >= self.failure_threshold else self.ready
        return replace(self, ready=ready, streak=streak)
