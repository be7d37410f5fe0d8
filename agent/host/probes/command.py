"""Exec probes: run a command as the workload's user and return why it did not pass.

Rule: the command gets nothing of the agent: not its rights, not its environment (credentials, notify socket), not its
descriptors. It is a session of its own, and whatever is left of its process group ends with the probe, however the probe
ends: it passed, it failed, or it was cancelled by its timeout.
Not for: thresholds (`state`), other kinds of probe (`probe`).
"""

from __future__ import annotations

import logging
import os
import pwd
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

import trio

from agent.host.workers.worker_process import RunAs

log = logging.getLogger("hostmesh.probe")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MAX_OUTPUT = 1024
"""Bytes of output that are kept for the reason; the rest is read and dropped."""
_LEFTOVER_SECONDS = 0.2


async def run(command: Sequence[str], run_as: RunAs | None) -> str | None:
    """None when it exits with 0, else the exit status and its first line of output. OSError when it cannot be started."""
    options: dict[str, Any] = {}
    if run_as is not None:
        options = {"user": run_as.uid, "group": run_as.gid, "extra_groups": list(run_as.groups)}
    process = await trio.lowlevel.open_process(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        cwd="/",
        env=_environment(run_as),
        **options,
    )
    output = bytearray()
    assert process.stdout is not None
    try:
        async with process.stdout, trio.open_nursery() as nursery:
            nursery.start_soon(_collect, process.stdout, output)
            await process.wait()
            _end_group(process.pid)
            # What is in the pipe is read to its end; only a process that left the group can hold it open.
            nursery.cancel_scope.deadline = trio.current_time() + _LEFTOVER_SECONDS
    finally:
        _end_group(process.pid)
        with trio.CancelScope(shield=True):
            await process.wait()
    if process.returncode == 0:
        return None
    first = bytes(output).decode("utf-8", "replace").strip().partition("\n")[0]
    return f"exit status {process.returncode}" + (f": {first}" if first else "")


async def _collect(stream: trio.abc.ReceiveStream, output: bytearray) -> None:
    # To the end: a command must not stop at a full pipe.
    async for data in stream:
        output += data[: _MAX_OUTPUT - len(output)]


def _end_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # the usual case: nothing is left
    except PermissionError as error:
        log.warning("processes of an exec probe cannot be ended (process group %d): %s", pid, error)


def _environment(run_as: RunAs | None) -> dict[str, str]:
    uid = os.geteuid() if run_as is None else run_as.uid
    values = {"PATH": _PATH, "LANG": "C.UTF-8"}
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return values
    return values | {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}
