"""Change marks and tasks beside a body: what wakes, what merges, what errors look like from outside."""

from __future__ import annotations

import pytest
import trio

from registry.beside import beside
from registry.marks import Changes


def test_marks_that_nobody_waited_for_are_merged() -> None:
    async def main() -> None:
        changes = Changes()
        marks = changes.watch()
        await anext(marks)
        changes.mark()
        changes.mark()
        await anext(marks)
        with trio.move_on_after(0.05) as patience:
            await anext(marks)
        assert patience.cancelled_caught

    trio.run(main)


def test_every_watcher_is_woken_and_needs_no_closing() -> None:
    async def main() -> None:
        changes = Changes()
        woken: list[int] = []

        async def watch(number: int, task_status: trio.TaskStatus[None]) -> None:
            marks = changes.watch()
            await anext(marks)
            task_status.started()
            await anext(marks)
            woken.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(3):
                await nursery.start(watch, number)
            changes.mark()
        assert sorted(woken) == [0, 1, 2]

    trio.run(main)


def test_the_bodys_error_comes_out_as_it_is() -> None:
    async def main() -> None:
        async with beside(trio.sleep_forever):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        trio.run(main)


def test_a_crashed_task_ends_the_body() -> None:
    async def crash() -> None:
        raise ValueError("the task's")

    async def main() -> None:
        async with beside(crash):
            await trio.sleep_forever()

    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="the task's")):
        trio.run(main)
