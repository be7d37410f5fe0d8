"""Notice a worker that lives but no longer works: stopped, or in a loop without an end.

Rule: a worker may be silent while it works at a configuration, which has a limit of its own (`dataplane.APPLY_SECONDS`), as
long as it uses the processor. Its silence is counted in turns of this process's own clock, so that a host that was suspended,
or a host process that was stopped, does not treat its workers as dead when it resumes.
Not for: what follows (`dataplane` ends and replaces the worker).
"""

from __future__ import annotations

from pathlib import Path

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
            if worker.generation == 0:
                continue  # it starts
            answered = trio.Event()
            nursery.start_soon(_ask, worker, answered)
            silent, used = 0, _processor_time(worker.process.pid)
            while silent < PATIENCE and not answered.is_set():
                with trio.move_on_after(turn):
                    await answered.wait()
                before, used = used, _processor_time(worker.process.pid)
                silent += not (worker.applying and (used is None or used != before))
            if not answered.is_set():
                nursery.cancel_scope.cancel()
                return


def _processor_time(pid: int) -> int | None:
    """Clock ticks that the process has used (proc(5), utime and stime); None where /proc does not show it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
    except OSError:
        return None
    return int(fields[11]) + int(fields[12])


async def _ask(worker: WorkerProcess, answered: trio.Event) -> None:
    try:
        await worker.query(PING)
    except WorkerGone:
        return  # the conversation has ended: `WorkerProcess.run` reports it
    answered.set()
