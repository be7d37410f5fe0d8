"""A join token between racing agents, at two istiods, on every backend."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import trio

from istiod.enrolment import Enrolment, TokenRefusedError
from registry.opening import ConsulSettings, SqliteSettings, open_registry
from wire.spiffe import SpiffeId


def test_of_racing_agents_exactly_one_gets_the_identity(settings: SqliteSettings | ConsulSettings) -> None:
    now = datetime.now(UTC)
    identity = SpiffeId("cluster.local", "default", "reviews")
    won: list[int] = []

    async def main() -> None:
        async with open_registry(settings) as first, open_registry(settings) as second:
            istiods = [Enrolment(registry.records, "ab" * 32) for registry in (first, second)]
            text, _ = await istiods[0].create("default", ["reviews"], timedelta(hours=1), now)

            async def enrol(agent: int) -> None:
                try:
                    await istiods[agent % 2].use(text, identity, f"key of {agent}", now)
                except TokenRefusedError:
                    return
                won.append(agent)

            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    for agent in range(8):
                        nursery.start_soon(enrol, agent)
            (token,) = await istiods[1].list()
            assert len(won) == 1
            assert token.used == {"reviews": (f"key of {won[0]}",)}

    trio.run(main)
