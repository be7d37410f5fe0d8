"""What istiod tells systemd: ready, reloading, still alive, stopping.

Job: sd_notify(3) datagrams to NOTIFY_SOCKET, and the watchdog's heartbeat at half of WATCHDOG_USEC.
Rule: without NOTIFY_SOCKET nothing is sent; a failed send is logged once and never stops the service.
Not for: health as seen from outside (`istiod.monitoring`).
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Mapping

import trio

log = logging.getLogger("istiod.notify")


class ServiceNotifier:
    """The connection to the service manager."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # A leading @ means the abstract namespace, spelled with a NUL byte by the kernel.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog = int(environ.get("WATCHDOG_USEC", "0") or 0) / 1_000_000
        self._failed = False

    def ready(self, status: str) -> None:
        """Start-up is done."""
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """A reload has begun (systemd wants the monotonic time with it, Type=notify-reload)."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Shutdown has begun."""
        self._send("STOPPING=1")

    async def watchdog(self) -> None:
        """Send the heartbeat for as long as trio's loop turns; returns at once when systemd wants none."""
        if not self._address or not self._watchdog:
            return
        while True:
            self._send("WATCHDOG=1")
            await trio.sleep(self._watchdog / 2)

    def _send(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto(text.encode(), self._address)
        except OSError as error:
            if not self._failed:
                log.warning("cannot notify the service manager: %s", error)
            self._failed = True
