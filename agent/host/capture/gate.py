"""Whether, and for which workloads, the host's traffic is captured now.

Rule: traffic is brought to the proxy only while the proxy can serve it. Capture is down for the whole host while no worker
serves, and for one workload while its certificate has expired; that workload's traffic is not given to a neighbour's
identity meanwhile. Connections in progress are not touched. What could not be loaded is tried again (`settle`).
Not for: the rules (`rules`), holding the table (`table`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from agent.host.capture.rules import Rules
from agent.host.capture.table import Capture, CaptureError

log = logging.getLogger("hostmesh.capture")
WORKERS = "workers"
"""The cause that stands for the whole data plane; every other cause is a workload's key."""


class Gate:
    """Invariant: after `open` and until `close`, the kernel has the rules that `reasons` leave, or `error` says why not."""

    def __init__(self, capture: Capture, keys: Sequence[str], *, enabled: bool) -> None:
        """`keys`: the workloads, in the order of the capture's rules. Not `enabled`: nothing is ever captured."""
        self.reasons: dict[str, str] = {}
        """By cause, why traffic is not captured, for people."""
        self.error = ""
        """Why the rules could not be loaded at the last try; empty when they could."""
        self.opened = False
        self._capture, self._keys, self._enabled = capture, tuple(keys), enabled
        self._taken_down = False

    @property
    def ready(self) -> bool:
        """Whether every workload's traffic may come."""
        return self.opened and not self.reasons and not self.error

    def against(self, key: str) -> str:
        """Why the workload's traffic may not come; empty when it may."""
        if not self.opened:
            return "the agent is starting"
        return self.reasons.get(WORKERS) or self.reasons.get(key) or self.error

    def open(self) -> None:
        """The start is over: let traffic in. Raises CaptureError when the rules cannot be loaded."""
        self.opened = True
        self._load()

    def close(self) -> None:
        """The agent stops."""
        self.opened = False
        self._capture.down()

    def hold(self, cause: str, reason: str) -> None:
        """Something stands against capturing, for a workload or for all."""
        if self.reasons.get(cause) == reason:
            return
        known = cause in self.reasons
        self.reasons[cause] = reason
        if self.opened and not known:
            log.error("not captured until this ends: %s", reason)
        self.settle()

    def release(self, cause: str) -> None:
        """It stands against it no more."""
        reason = self.reasons.pop(cause, None)
        if reason is None:
            return
        if self.opened:
            log.info("captured again, after: %s", reason)
        self.settle()

    def take_down(self) -> None:
        """By an operator's wish, until `put_up`."""
        self._taken_down = True
        self.settle()

    def put_up(self) -> None:
        """By an operator's wish. Raises CaptureError."""
        self._taken_down = False
        self._load()

    def settle(self) -> None:
        """Bring the kernel's rules to what they should be; cheap when they are, safe to call again after an error."""
        before = self.error
        try:
            self._load()
        except CaptureError as error:
            if str(error) != before:
                log.error("capture cannot be brought up and is tried again: %s", error)  # noqa: TRY400 (one line)

    def _load(self) -> None:
        rules = self._wanted()
        self.error = ""
        if rules is None:
            self._capture.down()
            return
        try:
            self._capture.up(rules)
        except CaptureError as error:
            self.error = str(error)
            raise

    def _wanted(self) -> Rules | None:
        """The rules for the workloads that can be served now; None when there are none."""
        if not (self._enabled and self.opened) or self._taken_down or WORKERS in self.reasons:
            return None
        left_out = frozenset(index for index, key in enumerate(self._keys) if key in self.reasons)
        return None if len(left_out) == len(self._keys) else without(self._capture.rules, left_out)


def without(rules: Rules, left_out: frozenset[int]) -> Rules:
    """The rules for all workloads but these (by index), whose traffic passes as if there were no agent."""
    gone = [work for index, work in enumerate(rules.workloads) if index in left_out]
    ports = [port for work in gone for port in work.ports]
    proxies = [port for work in gone for port in (work.outbound, work.inbound, work.dns)]
    return replace(
        rules,
        workloads=tuple(work for index, work in enumerate(rules.workloads) if index not in left_out),
        agent_ports=(*rules.agent_ports, *proxies),
        exclude_inbound_ports=(*rules.exclude_inbound_ports, *ports),
        exclude_outbound_uids=(
            *rules.exclude_outbound_uids,
            *(work.uid for work in gone if work.uid is not None),
        ),
    )
