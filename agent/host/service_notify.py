"""What the agent tells systemd: ready, stopping, still alive (sd_notify(3)).

Rule: without NOTIFY_SOCKET nothing is sent; a failed send is logged and never stops the service.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

import trio

log = logging.getLogger("hostmesh.notify")


class ServiceNotifier:
    """The service manager, if there is one."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the abstract namespace, which the kernel spells with a NUL byte.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog_seconds = int(environ.get("WATCHDOG_USEC") or 0) / 1_000_000

    def ready(self, status: str) -> None:
        """Start-up is done."""
        self._send(f"READY=1\nSTATUS={status}")

    def waiting(self, status: str, seconds: float) -> None:
        """Start-up goes on, for another so many seconds at least."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}\nSTATUS={status}")

    def stopping(self) -> None:
        """Shutdown has begun."""
        self._send("STOPPING=1\nSTATUS=draining")

    async def watchdog(self) -> None:
        """A heartbeat for as long as trio's loop turns; returns at once when systemd wants none."""
        while self._address and self._watchdog_seconds:
            self._send("WATCHDOG=1")
            await trio.sleep(self._watchdog_seconds / 2)

    def _send(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.sendto(text.encode(), self._address)
        except OSError as error:
            log.warning("the service manager cannot be told: %s", error)
