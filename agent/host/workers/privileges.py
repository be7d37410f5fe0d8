"""Whom the processes that the agent starts run as, and with which rights: as few as the host allows.

Rule: the host process keeps CAP_NET_ADMIN for nftables and socket marks; nothing that it starts inherits it.
As root, workers become `proxy.user`, else the package's user `hostmesh`, else `nobody`; commands of probes become the
workload's user, else the workers'. In a user namespace that maps a single uid there is no other user to become: there
the workers keep what marking their sockets needs.
Source: capabilities(7), prctl(2) PR_CAP_AMBIENT.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import resource
import subprocess
import sys
from pathlib import Path

from agent.host.config import AgentConfig, AgentConfigError, Workload
from agent.host.node import uid_of
from agent.host.workers.worker_process import RunAs

_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAP_NET_ADMIN = 12
PACKAGE_USER = "hostmesh"
_NOBODY = 65534
"""The kernel's overflow uid: `nobody` on every Linux distribution (kernel.overflowuid)."""


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
    if user is not None:
        uid = uid_of(user)
        if uid == 0:
            raise AgentConfigError(["proxy.user: workers never run as root: name another user"])
        return _run_as(uid)
    return next((_run_as(uid) for uid in (*_package_user(), _NOBODY) if _mapped(uid)), None)


def why_not_started(run_as: RunAs | None, executable: str = sys.executable) -> str | None:
    """Why this user cannot run the workers' program, tried for real; None when it can. Takes some 30 ms."""
    if run_as is None:
        return None
    remedy = f"uid {run_as.uid} must be able to read the installation, or set proxy.user to a user who can"
    try:
        done = subprocess.run(
            [executable, "-P", "-c", "import agent.worker"],
            user=run_as.uid, group=run_as.gid, extra_groups=list(run_as.groups),
            stdin=subprocess.DEVNULL, capture_output=True, cwd="/", check=False,
        )  # fmt: skip
    except OSError as error:
        return f"workers cannot run as uid {run_as.uid}: {executable}: {error.strerror}; {remedy}"
    if done.returncode == 0:
        return None
    last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
    return f"workers cannot run as uid {run_as.uid}: {last}; {remedy}"


def fallback_user(config: AgentConfig, run_as: RunAs | None) -> str | None:
    """What is less than it should be about the workers' user, and what to do; None when all is well."""
    if os.geteuid() != 0 or config.proxy.user is not None:
        return None
    if run_as is None:
        return "workers run as root of this user namespace, which maps no other user"
    if run_as.uid == _NOBODY:
        return (
            f"there is no user {PACKAGE_USER!r}: workers run as nobody instead of root, and what other programs send as "
            f"nobody is not captured; create the user {PACKAGE_USER!r} or set proxy.user"
        )
    return None


def probes_run_as(config: AgentConfig, workload: Workload) -> RunAs | None:
    """The user for the commands of a workload's probe; None keeps the agent's own, which is not root's then."""
    if os.geteuid() != 0:
        return None
    return (
        workers_run_as(config) if workload.user is None else _run_as(uid_of(workload.user), with_groups=True)
    )


def _run_as(uid: int, *, with_groups: bool = False) -> RunAs:
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return RunAs(uid, uid)
    groups = os.getgrouplist(user.pw_name, user.pw_gid) if with_groups else []
    return RunAs(uid, user.pw_gid, tuple(groups))


def _package_user() -> tuple[int, ...]:
    try:
        return (pwd.getpwnam(PACKAGE_USER).pw_uid,)
    except KeyError:
        return ()


def _mapped(uid: int) -> bool:
    """Whether this user can be had here: a user namespace may not map it (user_namespaces(7))."""
    for line in Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines():
        first, _, count = map(int, line.split())
        if first <= uid < first + count:
            return True
    return False
