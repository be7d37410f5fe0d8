"""Who the workers are, and what they may: as little as the host allows.

Rule: the host process keeps CAP_NET_ADMIN for nftables and socket marks; nothing that it starts inherits it.
As root, workers become `proxy.user`, else the package's user `hostmesh` where it exists. In a user namespace
that maps a single uid there is nobody to become: there the workers keep what marking their sockets needs.
Source: capabilities(7), prctl(2) PR_CAP_AMBIENT.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import resource
from pathlib import Path

from agent.host.config import AgentConfig, AgentConfigError
from agent.host.node import uid_of
from agent.host.workers.worker_process import RunAs

_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAP_NET_ADMIN = 12
_PACKAGE_USER = "hostmesh"
_ALL_UIDS = 4294967295


def keep_capabilities_to_ourselves() -> None:
    """Clear the ambient set: what systemd's AmbientCapabilities gave us does not pass to what we start."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_CAP_AMBIENT_CLEAR_ALL)")


def allow_many_descriptors() -> None:
    """Raise the soft limit of open files to the hard one, for us and for the workers (two a connection)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def may_administer_network() -> bool:
    """Whether this process has CAP_NET_ADMIN in effect."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_NET_ADMIN & 1)
    return False


def own_uid() -> int:
    """The user that this process runs as."""
    return os.geteuid()


def workers_run_as(config: AgentConfig) -> RunAs | None:
    """The user for the workers, None for the agent's own; AgentConfigError when it cannot be had."""
    user = config.proxy.user
    if os.geteuid() != 0:
        if user is not None and uid_of(user) != os.geteuid():
            raise AgentConfigError([f"proxy.user: only root can run workers as {user!r}"])
        return None
    if user is None:
        user = _package_user()
    if user is None:
        return None
    uid = uid_of(user)
    try:
        return RunAs(uid, pwd.getpwuid(uid).pw_gid)
    except KeyError:
        return RunAs(uid, uid)


def _package_user() -> str | None:
    fields = Path("/proc/self/uid_map").read_text(encoding="ascii").split()
    if len(fields) != 3 or int(fields[2]) != _ALL_UIDS:
        return None  # a user namespace: other users may not exist in it
    try:
        pwd.getpwnam(_PACKAGE_USER)
    except KeyError:
        return None
    return _PACKAGE_USER
