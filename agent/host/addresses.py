"""Wait for the host's addresses to change.

Rule: the kernel says when (rtnetlink), nobody polls; what the addresses are then is found out elsewhere (`node`).
Source: rtnetlink(7), RTMGRP_IPV4_IFADDR and the like.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import AsyncIterator

import trio

log = logging.getLogger("hostmesh.agent")
_GROUPS = 0x10 | 0x40 | 0x100 | 0x400
"""Addresses and routes, IPv4 and IPv6: a new default route means another source address."""
_SETTLE_SECONDS = 1.0
"""DHCP and IPv6 change several things in a row."""


async def changes() -> AsyncIterator[None]:
    """One item for each burst of changes, after it has settled; ends at once where the kernel cannot be listened to."""
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    except OSError as error:
        log.warning("changes of this host's addresses are not seen: %s", error)
        return
    with trio.socket.from_stdlib_socket(sock) as events:
        sock.bind((0, _GROUPS))
        while True:
            await _event(events)
            while True:
                with trio.move_on_after(_SETTLE_SECONDS) as quiet:
                    await _event(events)
                if quiet.cancelled_caught:
                    break
            yield


async def _event(events: trio.socket.SocketType) -> None:
    try:
        await events.recv(65536)
    except OSError as error:
        if error.errno != errno.ENOBUFS:  # more than the socket holds: something changed
            raise
