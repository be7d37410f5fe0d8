"""The tasks of the host process at this moment, counted by name (`/memory?tasks`).

Rule: what a client, a question or a probe starts is one of them and ends with it. Not for: what the workers hold
(agent.worker.holdings).
"""

from __future__ import annotations

from collections import Counter

import trio


def tasks() -> dict[str, int]:
    """By the name of the function that a task runs; the one that asks is among them."""
    found: Counter[str] = Counter()
    root = trio.lowlevel.current_root_task()
    waiting = [] if root is None else [root]
    while waiting:
        task = waiting.pop()
        found[task.name] += 1
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return dict(found)
