"""The host's own resolvers and search domains, from /etc/resolv.conf, read again whenever the file changes.

Rule: these servers are asked only where the server of a question is not known (`original`). Then never the stub of
systemd-resolved (127.0.0.53/54) when the real servers are known to it: its own questions are captured too, and would come
back to us for ever.
Source: resolv.conf(5), systemd-resolved.service(8).
"""

from __future__ import annotations

import socket
from ipaddress import ip_address
from pathlib import Path

_STUBS = frozenset({"127.0.0.53", "127.0.0.54"})
SYSTEM = Path("/etc/resolv.conf")
SYSTEMD = Path("/run/systemd/resolve/resolv.conf")


def nameservers(text: str) -> tuple[str, ...]:
    """The nameserver lines in order, without repetition; a v6 zone (`fe80::1%eth0`) is kept."""
    found: list[str] = []
    for line in text.splitlines():
        words = line.split("#", 1)[0].split(";", 1)[0].split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            ip_address(words[1].partition("%")[0])
        except ValueError:
            continue
        if words[1] not in found:
            found.append(words[1])
    return tuple(found)


def search_domains(text: str, host_name: str) -> tuple[str, ...]:
    """What the C library puts behind short names: the last `search` or `domain` line, else the host's own domain."""
    found = [host_name.partition(".")[2]]
    for line in text.splitlines():
        words = line.split("#", 1)[0].split(";", 1)[0].split()
        if len(words) > 1 and words[0] in ("search", "domain"):
            found = words[1:]
    return tuple(domain for each in found if (domain := each.strip(".").lower()))


class Resolvers:
    """The servers to ask, as of the files' present state."""

    def __init__(self, system: Path = SYSTEM, systemd: Path = SYSTEMD) -> None:
        self._system, self._systemd = system, systemd
        self._seen: tuple[tuple[int, int, int] | None, ...] | None = None
        self._servers: tuple[str, ...] = ()
        self._search: tuple[str, ...] = ()

    def current(self) -> tuple[str, ...]:
        """The present servers; reads the files only when one of them changed (two stat calls)."""
        self._refresh()
        return self._servers

    def search(self) -> tuple[str, ...]:
        """The present search domains, in lower case, without dots at the ends."""
        self._refresh()
        return self._search

    def _refresh(self) -> None:
        state = (_stamp(self._system), _stamp(self._systemd))
        if state != self._seen:
            self._seen = state
            text = _read(self._system)
            servers = nameservers(text)
            if servers and set(servers) <= _STUBS:
                servers = nameservers(_read(self._systemd)) or servers
            self._servers = servers
            self._search = search_domains(text, socket.gethostname())


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # no such file: no servers, and questions fail at once
