"""The agent's own listening sockets, and whether they can be had.

Rule: a port that is taken is reported with its number and purpose, before anything depends on it.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Iterable
from pathlib import Path

import trio

from agent.host.config import AgentConfig

_LISTENING = "0A"
"""TCP_LISTEN in /proc/net/tcp."""


class PortTaken(Exception):
    """A port of the agent is used by somebody else."""


def listen(port: int, purpose: str, *, everywhere: bool) -> list[trio.SocketListener]:
    """Listen on the port: on all addresses (v4 and v6), or on the loopback ones. PortTaken says which."""
    hosts = ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"))  # noqa: S104 (readiness, metrics)
    if not everywhere:
        hosts = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
    listeners: list[trio.SocketListener] = []
    for family, host in hosts:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((host, port))
            sock.listen(128)
        except OSError as error:
            sock.close()
            if family == socket.AF_INET6 and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue  # a host without IPv6
            for listener in listeners:
                listener.socket.close()
            raise PortTaken(f"port {port} ({purpose}): {error.strerror}") from error
        listeners.append(trio.SocketListener(trio.socket.from_stdlib_socket(sock)))
    return listeners


def taken(config: AgentConfig) -> list[str]:
    """The agent's ports that somebody else listens on, each with its purpose."""
    found = []
    for number, purpose in _all_ports(config):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", number))
            except OSError as error:
                found.append(f"{number} ({purpose}): {error.strerror}")
    return found


def unserved(ports: Iterable[int], users: Collection[int]) -> list[str]:
    """The ports without a listener, or with a listener of another user than these (uids), each with what is wrong."""
    owners: dict[int, set[int]] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue  # a host without IPv6
        for words in map(str.split, lines):
            if words[3] == _LISTENING:
                owners.setdefault(int(words[1].rpartition(":")[2], 16), set()).add(int(words[7]))
    found = []
    for port in sorted(ports):
        foreign = sorted(owners.get(port, set()) - set(users))
        if port not in owners:
            found.append(f"nothing listens on port {port}")
        elif foreign:
            found.append(f"port {port} is listened on by user {foreign[0]}, who is not the proxy's")
    return found


def _all_ports(config: AgentConfig) -> list[tuple[int, str]]:
    ports = config.proxy.ports
    found = [(ports.admin, "admin"), (ports.metrics, "metrics"), (ports.readiness, "readiness")]
    if config.shares_dns:
        found.append((ports.dns_shared, "DNS of users without a workload"))
    for index, workload in enumerate(config.workloads):
        own = config.proxy_ports(index)
        found += [
            (own.outbound, f"outbound of {workload.key}"),
            (own.inbound, f"inbound of {workload.key}"),
            (own.dns, f"DNS of {workload.key}"),
        ]
    return found
