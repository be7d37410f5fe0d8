"""Bursts of changes become one, and none is lost."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from istiod.debounce import Debounce


def _on_virtual_clock(story) -> None:  # type: ignore[no-untyped-def]
    trio.run(story, clock=MockClock(autojump_threshold=0))


def test_a_single_change_is_acted_on_after_the_quiet_time() -> None:
    async def story() -> None:
        debounce = Debounce(quiet=0.1, longest=1.0)
        start = trio.current_time()
        debounce.poke()
        await debounce.settled()
        assert trio.current_time() - start == 0.1

    _on_virtual_clock(story)


def test_a_burst_is_acted_on_once_after_it_ends() -> None:
    async def story() -> None:
        debounce = Debounce(quiet=0.1, longest=1.0)
        start = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def burst() -> None:
                for _ in range(5):
                    debounce.poke()
                    await trio.sleep(0.05)

            nursery.start_soon(burst)
            first = await debounce.settled()
        assert first == start
        assert round(trio.current_time() - start, 3) == 0.3
        assert debounce.merged == 5

    _on_virtual_clock(story)


def test_an_endless_burst_is_acted_on_after_the_longest_time() -> None:
    async def story() -> None:
        debounce = Debounce(quiet=0.1, longest=1.0)
        start = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def burst() -> None:
                while True:
                    debounce.poke()
                    await trio.sleep(0.03)

            nursery.start_soon(burst)
            await debounce.settled()
            assert 1.0 <= trio.current_time() - start <= 1.04
            nursery.cancel_scope.cancel()

    _on_virtual_clock(story)


def test_a_change_during_the_work_starts_the_next_burst() -> None:
    async def story() -> None:
        debounce = Debounce(quiet=0.1, longest=1.0)
        debounce.poke()
        await debounce.settled()
        debounce.poke()
        await trio.sleep(5)
        with trio.fail_after(0.01):
            await debounce.settled()

    _on_virtual_clock(story)
