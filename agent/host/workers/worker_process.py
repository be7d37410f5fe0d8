"""One worker process and the conversation with it.

Rule: a worker has nothing from the host but its end of a socketpair, the memory of the limits that it shares with
other workers, and the keeper's socket, which it only keeps open: no capabilities, no other descriptor, no state
directory. What it answers is taken for an answer only if it fits a question.
Not for: how many there are, and what they are told (`dataplane`).
"""

from __future__ import annotations

import array
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio

from agent.table.build import Refused
from agent.worker import control

log = logging.getLogger("hostmesh.worker")
_READ = 256 * 1024
PROGRAM = (sys.executable, "-P", "-m", "agent.worker")
"""-P: what lies in the current directory must not be taken for our package."""
_FDS = 4


@dataclass(frozen=True, slots=True)
class RunAs:
    """Whom a process that the agent starts runs as; None instead of it keeps the agent's own user."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    """Supplementary groups."""


class Process(Protocol):
    """As much of trio.Process as is needed here."""

    pid: int

    @property
    def returncode(self) -> int | None: ...

    async def wait(self) -> int: ...

    def kill(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a configuration: `reason` why all of it was left, or `refused` what was left of it, by workload."""

    reason: str | None = None
    refused: Mapping[str, tuple[Refused, ...]] = field(default_factory=dict)


class WorkerGone(Exception):
    """The worker ended before it answered."""


class WorkerProcess:
    """A started worker. Invariant: every question is answered, or fails with `WorkerGone`."""

    def __init__(self, index: int, process: Process, sock: trio.socket.SocketType) -> None:
        self.index, self.process = index, process
        self.generation = 0
        """What it has applied."""
        self.listening: frozenset[int] = frozenset()
        """The ports that it serves."""
        self.waiting: dict[str, str] = {}
        """The addresses that it cannot listen on at present, with the reason; it tries again by itself."""
        self.on_listening: Callable[[], None] = lambda: None
        """Called when these changed without a new configuration."""
        self.on_stats: Callable[[int], None] | None = None
        """Gets the descriptor of the worker's statistics region; the receiver owns it."""
        self._socket = sock
        self._sending = trio.Lock()
        self._reader = control.FrameReader()
        self._verdicts: dict[int, trio.MemorySendChannel[Verdict]] = {}
        self._answers: dict[int, trio.MemorySendChannel[Any]] = {}
        self._last_query = 0

    @property
    def applying(self) -> bool:
        """Whether a configuration was sent and has no verdict yet."""
        return bool(self._verdicts)

    @classmethod
    async def start(
        cls, index: int, run_as: RunAs | None, program: Sequence[str] = PROGRAM, limits: int | None = None,
        kept: Sequence[int] = (),
    ) -> WorkerProcess:  # fmt: skip
        """Spawn the program with the number of its descriptor; OSError when that is not possible.

        `limits`: the descriptor of the region that it shares with others (agent.limits.region).
        `kept`: descriptors that it only keeps open (agent.host.capture.keeper)."""
        ours, theirs = socket.socketpair()
        with theirs:
            options: dict[str, Any] = {"pass_fds": [theirs.fileno(), *kept]}
            more: list[str] = []
            if limits is not None:
                options["pass_fds"].append(limits)
                more = [str(limits), str(index)]
            if run_as is not None:
                options |= {"user": run_as.uid, "group": run_as.gid, "extra_groups": list(run_as.groups)}
            try:
                process = await trio.lowlevel.open_process(
                    [*program, str(theirs.fileno()), *more],
                    stdin=subprocess.DEVNULL,
                    **options,
                )
            except BaseException:
                ours.close()
                raise
        return cls(index, process, trio.socket.from_stdlib_socket(ours))

    async def configure(self, generation: int, payload: bytes) -> Verdict:
        """Send a configuration. May raise WorkerGone."""
        send, receive = trio.open_memory_channel[Verdict](1)
        self._verdicts[generation] = send
        try:
            await self._send(control.encode(control.CONFIG, payload))
            return await receive.receive()
        except trio.EndOfChannel:
            raise WorkerGone from None
        finally:
            self._verdicts.pop(generation, None)

    async def query(self, what: str, **arguments: Any) -> Any:
        """Ask for `stats`, `clusters`, `config` or `connections`. May raise WorkerGone."""
        self._last_query += 1
        number = self._last_query
        send, receive = trio.open_memory_channel[Any](1)
        self._answers[number] = send
        try:
            await self._send(control.encode_json(control.QUERY, id=number, what=what, **arguments))
            return await receive.receive()
        except trio.EndOfChannel:
            raise WorkerGone from None
        finally:
            self._answers.pop(number, None)

    async def drain(self, seconds: float) -> None:
        """Tell it to finish what is in progress, for so long at most, and to end."""
        await self._send(control.encode_json(control.DRAIN, seconds=seconds))

    async def reopen_logs(self) -> None:
        """Tell it to open its log files anew."""
        await self._send(control.encode(control.REOPEN))

    def keep_conversation(self) -> int:
        """A descriptor of the conversation that outlives this object and an exec: until it is closed, the worker goes on."""
        descriptor = os.dup(self._socket.fileno())
        os.set_inheritable(descriptor, True)
        return descriptor

    async def run(self) -> int:
        """Listen to it until it ends; its exit status."""
        try:
            await self._listen()
        except (OSError, control.FrameError) as error:
            log.warning("worker %d: the conversation broke: %s", self.index, error)
        finally:
            self._socket.close()
            for verdict in self._verdicts.values():
                verdict.close()
            for answer in self._answers.values():
                answer.close()
        return await self.process.wait()

    async def end(self) -> None:
        """Make sure that it has ended, also when we are being cancelled."""
        if self.process.returncode is None:
            self.process.kill()
        with trio.CancelScope(shield=True):
            await self.process.wait()

    async def _send(self, frame: bytes) -> None:
        async with self._sending:
            view = memoryview(frame)
            try:
                while view:
                    view = view[await self._socket.send(view) :]
            except (OSError, trio.ClosedResourceError) as error:
                raise WorkerGone from error

    async def _listen(self) -> None:
        size = socket.CMSG_SPACE(_FDS * array.array("i").itemsize)
        while True:
            data, ancillary, _, _ = await self._socket.recvmsg(_READ, size)
            for level, kind, payload in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    self._take(payload)
            if not data:
                return
            for frame_kind, frame in self._reader.feed(data):
                self._handle(frame_kind, frame)

    def _take(self, payload: bytes) -> None:
        descriptors = array.array("i")
        descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
        for descriptor in descriptors:
            if self.on_stats is not None:
                self.on_stats(descriptor)
            else:
                os.close(descriptor)

    def _handle(self, kind: bytes, payload: bytes) -> None:
        if kind in (control.APPLIED, control.REFUSED):
            values = control.decode_json(payload)
            generation = int(values["generation"])
            if kind == control.APPLIED:
                self.generation = generation
                self._update_listening(values)
            verdict = self._verdicts.pop(generation, None)
            if verdict is not None:
                verdict.send_nowait(_verdict(kind, values))
        elif kind == control.LISTENING:
            self._update_listening(control.decode_json(payload))
            self.on_listening()
        elif kind == control.ANSWER:
            values = control.decode_json(payload)
            answer = self._answers.pop(int(values["id"]), None)
            if answer is not None:
                answer.send_nowait(values.get("answer"))
        elif kind == control.LOG:
            values = control.decode_json(payload)
            level = logging.getLevelNamesMapping().get(str(values.get("level", "info")).upper(), logging.INFO)
            logger = logging.getLogger(str(values.get("logger", "hostmesh.worker")))
            logger.log(level, "%s", values.get("message", ""))
        elif kind != control.STATS:
            raise control.FrameError(f"a frame of unknown kind {kind!r}")

    def _update_listening(self, values: dict[str, Any]) -> None:
        self.listening = frozenset(int(port) for port in values.get("listening", ()))
        self.waiting = {str(where): str(reason) for where, reason in values.get("waiting", {}).items()}


def _verdict(kind: bytes, values: Mapping[str, Any]) -> Verdict:
    if kind == control.APPLIED:
        return Verdict(refused=control.refusals_of_json(values.get("refused", {})))
    return Verdict(str(values.get("reason", "refused")))
