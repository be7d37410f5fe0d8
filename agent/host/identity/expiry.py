"""Notice identities that have expired, and those that are valid again.

Rule: the workload of an expired identity is unready and unhealthy, and its traffic is not captured, until the identity has
been renewed. Checked against the wall clock every second, because hosts can be suspended.
Not for: renewing (`keeper`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio

from agent.host.identity.keeper import IdentityKeeper

NAP_SECONDS = 1.0


async def watch(
    keepers: Mapping[str, IdentityKeeper],
    expired: Callable[[str, str], None],
    valid: Callable[[str], None],
    nap: float = NAP_SECONDS,
) -> None:
    """Until cancelled: report each workload's identity, as often as it is looked at."""
    while True:
        for key, keeper in keepers.items():
            if keeper.expired:
                expired(
                    key,
                    f"the certificate of {key} has expired: {keeper.last_error or 'renewal is under way'}",
                )
            else:
                valid(key)
        await trio.sleep(nap)
