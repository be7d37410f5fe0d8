"""Ask an application whether it is ready: HTTP, TCP or a command, as Kubernetes' readiness probes do.

Rule: a probe ends within its timeout, whatever the application does, and never takes the agent down. It connects to the
address that callers' traffic is delivered to, from a socket of the agent's own that is not captured.
Not for: what follows from a verdict (`workload`), running a command (`command`).
"""

from __future__ import annotations

import errno
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import h11
import trio

from agent.host.config import HttpGet, Probe
from agent.host.own_socket import connect_tcp
from agent.host.probes import command
from agent.host.probes.state import ProbeState
from agent.host.workers.worker_process import RunAs

_MAX_BODY = 10 * 1024
_LOOPBACK = "127.0.0.1"
Verdict = Callable[[bool, str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a workload is probed: `address` is the one that callers reach it at; `run_as` is the user of commands."""

    address: str = _LOOPBACK
    run_as: RunAs | None = None


async def run(probe: Probe, target: Callable[[], Target], report: Verdict) -> None:
    """Probe until cancelled; `report(ready, reason)` at the first verdict and at every change."""
    state = ProbeState(probe.success_threshold, probe.failure_threshold)
    await trio.sleep(probe.initial_delay_seconds)
    while True:
        started = trio.current_time()
        reason = await check(probe, target())
        following = state.after(reason is None)
        if following.ready is not None and following.ready is not state.ready:
            await report(following.ready, reason or "the probe passes")
        state = following
        await trio.sleep_until(started + probe.period_seconds)


async def check(probe: Probe, target: Target) -> str | None:
    """One try: None when it passed, else why not."""
    try:
        with trio.fail_after(probe.timeout_seconds):
            if probe.http_get is not None:
                return await _http(probe.http_get, target.address)
            if probe.tcp_socket is not None:
                stream = await _connect(probe.tcp_socket.host, target.address, probe.tcp_socket.port)
                await trio.aclose_forcefully(stream)
                return None
            assert probe.exec is not None
            return await command.run(probe.exec.command, target.run_as)
    except trio.TooSlowError:
        return f"no answer within {probe.timeout_seconds:g} s"
    except (OSError, trio.BrokenResourceError, h11.RemoteProtocolError, ssl.SSLError) as error:
        return str(error.__cause__ or error) or type(error).__name__


async def _connect(host: str | None, address: str, port: int) -> trio.SocketStream:
    """To the probe's own host, else to the workload's address; an error names what to do where only loopback listens."""
    try:
        return await connect_tcp(host or address, port)
    except ConnectionRefusedError:
        if host is None and address != _LOOPBACK and await _listens(_LOOPBACK, port):
            reason = (
                f"the application listens on {_LOOPBACK}:{port} only, but calls arrive at {address}:{port}: "
                "let it listen on all addresses"
            )
            raise OSError(errno.ECONNREFUSED, reason) from None
        raise


async def _listens(host: str, port: int) -> bool:
    try:
        await trio.aclose_forcefully(await connect_tcp(host, port))
    except OSError:
        return False
    return True


async def _http(action: HttpGet, address: str) -> str | None:
    host = action.host or address
    stream: trio.abc.Stream = await _connect(action.host, address, action.port)
    if action.scheme == "HTTPS":
        # As Kubernetes: the certificate is not verified, the question is whether it answers.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        stream = trio.SSLStream(stream, context, https_compatible=True)
    try:
        names = {header.name.lower() for header in action.http_headers}
        authority = f"[{host}]:{action.port}" if ":" in host else f"{host}:{action.port}"
        headers = [(header.name, header.value) for header in action.http_headers]
        defaults = [("Host", authority), ("User-Agent", "hostmesh-probe"), ("Connection", "close")]
        headers += [(name, value) for name, value in defaults if name.lower() not in names]
        connection = h11.Connection(h11.CLIENT)
        request = connection.send(h11.Request(method="GET", target=action.path, headers=headers))
        end = connection.send(h11.EndOfMessage())
        await stream.send_all((request or b"") + (end or b""))
        status = await _status(connection, stream)
    finally:
        await trio.aclose_forcefully(stream)
    return None if 200 <= status < 400 else f"HTTP status {status}"


async def _status(connection: h11.Connection, stream: trio.abc.Stream) -> int:
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            data = await stream.receive_some(_MAX_BODY)
            if not data:
                raise h11.RemoteProtocolError("the connection was closed before a response")
            connection.receive_data(bytes(data))
        elif isinstance(event, h11.Response):
            return event.status_code
