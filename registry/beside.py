"""Tasks that run beside the body of a `with`, as long as it does.

Rule: the body's own exception comes out as it is, not wrapped in a group, so that callers can catch it by
type; a task that crashes cancels the body. Not for tasks that may end before the body (use a nursery).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

__all__ = ["beside"]


@asynccontextmanager
async def beside(*tasks: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Run `tasks` until the body ends, then cancel them."""
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(task)
        try:
            yield
        except trio.Cancelled:
            raise
        except BaseException as error:
            if nursery.cancel_scope.cancel_called:
                raise  # a task crashed: its error belongs beside the body's
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
