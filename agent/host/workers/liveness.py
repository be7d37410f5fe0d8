"""Notice a worker that lives but no longer works: stopped, or in a loop without an end.

Rule: only a worker that serves is asked, and not while it applies a configuration, which has a limit of its own
(`dataplane.APPLY_SECONDS`). Its silence is counted in turns of this process's own clock, so that a host that was suspended,
or a host process that was stopped, does not take its workers for dead when it wakes.
Not for: what follows (`dataplane` ends and replaces the worker).
"""

from __future__ import annotations

import trio

from agent.host.workers.worker_process import WorkerGone, WorkerProcess

TURN_SECONDS = 1.0
PATIENCE = 8
"""Turns without an answer until a worker counts as hung."""
PING = "ping"


async def hung(worker: WorkerProcess, turn: float = TURN_SECONDS) -> None:
    """Return when the worker has not answered for `PATIENCE` turns of so many seconds."""
    async with trio.open_nursery() as nursery:
        while True:
            await trio.sleep(turn)
            if worker.generation == 0 or worker.applying:
                continue
            answered = trio.Event()
            nursery.start_soon(_ask, worker, answered)
            silent = 0
            while silent < PATIENCE and not answered.is_set():
                with trio.move_on_after(turn):
                    await answered.wait()
                silent += not worker.applying
            if not answered.is_set():
                nursery.cancel_scope.cancel()
                return


async def _ask(worker: WorkerProcess, answered: trio.Event) -> None:
    try:
        await worker.query(PING)
    except WorkerGone:
        return  # the conversation has ended: `WorkerProcess.run` reports it
    answered.set()
