"""`hostmesh-agent capture up|down` by hand.

Rule: traffic is only brought to the proxy's own listeners, and somebody must hold the table. With the agent running it is the
agent, and the command returns; without
it the command itself holds the table until Ctrl-C, the end of its terminal, or `capture down` from elsewhere.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from agent.host import ports
from agent.host.admin import local_socket
from agent.host.admin.local_socket import NotRunning
from agent.host.capture.table import Capture, CaptureError, rules_for
from agent.host.config import AgentConfig
from agent.host.node import all_users
from agent.host.service import SOCKET_NAME
from agent.host.workers import privileges

HOLDER_NAME = "capture.sock"


async def up(config: AgentConfig, say: Callable[[str], None]) -> None:
    """Capture is up when this returns (the agent holds it), or was until it was ended (we held it)."""
    try:
        say(await local_socket.ask(config.run_dir / SOCKET_NAME, "capture-up"))
    except NotRunning:
        await _hold(config, say)


async def down(config: AgentConfig) -> str:
    """End the capture, whoever holds it; NotRunning when nobody does."""
    try:
        return str(await local_socket.ask(config.run_dir / SOCKET_NAME, "capture-down"))
    except NotRunning:
        return str(await local_socket.ask(config.run_dir / HOLDER_NAME, "capture-down"))


async def running(directory: Path) -> bool:
    """Whether an agent runs with this run directory."""
    try:
        await local_socket.ask(directory / SOCKET_NAME, "ping")
    except NotRunning:
        return False
    return True


async def _hold(config: AgentConfig, say: Callable[[str], None]) -> None:
    run_as = privileges.workers_run_as(config)
    own = (run_as.uid if run_as is not None else 0, privileges.own_uid())
    capture = Capture(rules_for(config, all_users(config), own))
    if problems := ports.unserved(capture.rules.proxy_ports, {*own, 0}):
        raise CaptureError(f"the host's traffic would go nowhere, or to a stranger: {'; '.join(problems)}")
    ended = trio.Event()

    async def end(question: dict[str, Any]) -> str:
        ended.set()
        await trio.lowlevel.checkpoint()
        return "capture is down"

    async def ping(question: dict[str, Any]) -> str:
        await trio.lowlevel.checkpoint()
        return "pong"

    async with trio.open_nursery() as nursery:
        commands = {"capture-down": end, "ping": ping}
        await nursery.start(local_socket.serve, config.run_dir / HOLDER_NAME, commands)
        capture.up()
        try:
            say("capture is up, held by this command: end it with Ctrl-C or `hostmesh-agent capture down`")
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
                nursery.start_soon(_first_signal, signals, ended)
                await ended.wait()
        finally:
            capture.down()
        nursery.cancel_scope.cancel()


async def _first_signal(signals: Any, ended: trio.Event) -> None:
    async for _ in signals:
        ended.set()
        return
