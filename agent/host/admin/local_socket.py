"""The socket in runDir through which people's commands reach the running agent: one JSON line there, one back.

Rule: the file system decides who may (the socket is 0600); a malformed question gets an answer, never an end.
Not for: other hosts (istiod asks over `debug_channel`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import trio

from wire.private_socket import private_socket

log = logging.getLogger("hostmesh.local")
_MAX_LINE = 1 << 20
_SECONDS = 5.0

Command = Callable[[dict[str, Any]], Awaitable[Any]]


class CommandError(Exception):
    """The agent could not do what it was asked; the text is for the person who asked."""


class NotRunning(Exception):
    """No agent listens on the socket."""


async def serve(
    path: Path, commands: Mapping[str, Command], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer commands until cancelled; CommandError when another agent serves the same path."""
    await _refuse_a_second(path)
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with private_socket(path) as sock:

        async def connection(stream: trio.SocketStream) -> None:
            async with stream:
                with trio.move_on_after(_SECONDS):
                    line = await _line(stream)
                    if line is None:
                        return
                    await _answer(stream, commands, line)

        async def guarded(stream: trio.SocketStream) -> None:
            try:
                await connection(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                log.debug("a local client left: %s", error)

        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        task_status.started()
        await trio.serve_listeners(guarded, [listener])


async def _refuse_a_second(path: Path) -> None:
    try:
        await ask(path, "ping")
    except NotRunning:
        return
    except CommandError as error:
        log.debug("ping: %s", error)
    raise CommandError(f"another agent is running, or holds the capture: it serves {path}")


async def _answer(stream: trio.SocketStream, commands: Mapping[str, Command], line: bytes) -> None:
    try:
        question = json.loads(line)
        if not isinstance(question, dict):
            raise CommandError("a JSON object is expected")
        command = commands.get(str(question.get("do")))
        if command is None:
            raise CommandError(f"unknown command {question.get('do')!r}")
        answer: dict[str, Any] = {"ok": True, "result": await command(question)}
    except (CommandError, json.JSONDecodeError) as error:
        answer = {"ok": False, "error": str(error)}
    await stream.send_all(json.dumps(answer).encode() + b"\n")


async def ask(path: Path, command: str, seconds: float = _SECONDS, **arguments: Any) -> Any:
    """Ask the agent at `path`: its result; NotRunning or CommandError."""
    with trio.move_on_after(seconds):
        try:
            stream = await trio.open_unix_socket(path)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotRunning(f"no agent is running: {path}: {error.strerror}") from error
        except PermissionError as error:
            raise CommandError(f"{path}: permission denied (run as root or as the agent's user)") from error
        async with stream:
            try:
                await stream.send_all(json.dumps({"do": command, **arguments}).encode() + b"\n")
                line = await _line(stream)
            except trio.BrokenResourceError as error:
                raise NotRunning(f"the agent at {path} went away") from error
        if line is None:
            raise NotRunning(f"the agent at {path} went away")
        answer = json.loads(line)
        if not answer["ok"]:
            raise CommandError(answer["error"])
        return answer["result"]
    raise CommandError(f"the agent at {path} did not answer within {seconds:g} s")


async def _line(stream: trio.SocketStream) -> bytes | None:
    buffer = bytearray()
    while b"\n" not in buffer:
        data = await stream.receive_some(65536)
        if not data or len(buffer) > _MAX_LINE:
            return None
        buffer += data
    return bytes(buffer.partition(b"\n")[0])
