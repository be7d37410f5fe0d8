"""Hosts without virtual machines: network namespaces on one bridge, all inside namespaces of our own.

Rule: `enter` first. It starts the caller again inside fresh user (when not root), network, mount, host-name and process
namespaces, so that nothing here can touch the machine's own firewall, routes or ports, and the kernel ends every
process and removes every interface when the first one ends, however it ends.
Not for: what runs on the hosts (mesh.py) or what is shown of it (tests/hosts/demo).
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path

from tests.hosts.lab.access import open_the_way

_INSIDE = "HOSTMESH_LAB_INSIDE"
BRIDGE = "hmbr0"
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def inside() -> bool:
    """Whether this process runs in namespaces made by `enter`."""
    return os.environ.get(_INSIDE) == "1"


def command_to_enter(argv: Sequence[str]) -> list[str]:
    """The command that runs argv as the first process of fresh namespaces; all die with it."""
    flags = ["--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0:
        flags += user_namespace()
    return ["unshare", *flags, "--", *argv]


def user_namespace() -> list[str]:
    """What unshare needs to be told to make the caller root, with other users beside it where that can be."""
    return ["--user", "--map-root-user", *(["--map-auto"] if has_other_users() else [])]


def has_other_users() -> bool:
    """Whether this process can become other users, or can in a user namespace: subordinate ids and newuidmap."""
    return os.geteuid() == 0 or (shutil.which("newuidmap", path=_PATH) is not None and _has_subordinate_ids())


def end(entered: int, seconds: float = 10.0) -> None:
    """End what `command_to_enter` started: ask its first process, kill it when it takes longer than `seconds`. Returns
    when the kernel has ended everything inside. The first process of a namespace does not get a signal before it has a
    handler for it: it is asked until it has heard."""
    deadline = time.monotonic() + seconds
    with _descriptor(entered) as outer:
        while outer is not None and not _ended(outer, 0):
            with _descriptor(_child(entered) or entered) as first:
                while first is not None and not _ended(first, 0):
                    late = time.monotonic() > deadline
                    signal.pidfd_send_signal(first, signal.SIGKILL if late else signal.SIGTERM)
                    _ended(first, None if late else 0.1)


@contextmanager
def _descriptor(pid: int) -> Iterator[int | None]:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        with suppress(ProcessLookupError):  # it may end at any moment
            yield descriptor
    finally:
        os.close(descriptor)


def _ended(descriptor: int, seconds: float | None) -> bool:
    return bool(select.select([descriptor], [], [], seconds)[0])


def _child(parent: int) -> int | None:
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, father = file.read_text().rpartition(") ")[2].split()[:2]
            if father == str(parent) and state != "Z":
                return int(file.parent.name)
    return None


def environment_inside() -> dict[str, str]:
    """What the entered command needs in its environment."""
    return {**os.environ, _INSIDE: "1", "PATH": _PATH}


def _has_subordinate_ids() -> bool:
    user = Path("/proc/self/loginuid").read_text() if Path("/proc/self/loginuid").exists() else ""
    names = {str(os.geteuid()), os.environ.get("USER", ""), os.environ.get("LOGNAME", ""), user.strip()} - {
        ""
    }
    for table in ("/etc/subuid", "/etc/subgid"):
        path = Path(table)
        if not path.exists() or not any(
            line.split(":")[0] in names for line in path.read_text().splitlines()
        ):
            return False
    return True


@dataclass(frozen=True)
class Host:
    """One namespace with its addresses; `holder` is the process that keeps it."""

    name: str
    v4: str
    v6: str
    holder: int

    def command(self, argv: Sequence[str], uid: int | None = None) -> list[str]:
        """The command line that runs argv on this host, as another user when asked."""
        prefix = ["nsenter", "-t", str(self.holder), "--net", "--mount", "--uts", "--"]
        if uid is not None:
            prefix += ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"]
        return [*prefix, *argv]

    def run(
        self,
        *argv: str,
        uid: int | None = None,
        timeout: float = 60,
        check: bool = True,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run to its end; with `check`, a failure raises with what it printed."""
        done = subprocess.run(
            self.command(argv, uid), capture_output=True, text=True, timeout=timeout, input=stdin, check=False
        )
        if check and done.returncode != 0:
            raise RuntimeError(
                f"{self.name}: {' '.join(argv)} ended with {done.returncode}:\n{done.stderr}{done.stdout}"
            )
        return done

    def start(
        self, *argv: str, log: Path, uid: int | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a daemon whose output goes to a file."""
        with log.open("ab") as output:
            return subprocess.Popen(
                self.command(argv, uid), stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env={**os.environ, **(env or {})},
            )  # fmt: skip


class Lab:
    """A bridge with hosts on it: 10.77.0.N and fd77::N. Only inside `enter`."""

    def __init__(self, folder: Path) -> None:
        if not inside():
            raise RuntimeError("the lab runs only inside its own namespaces")
        self.folder = folder
        self.hosts: dict[str, Host] = {}
        open_the_way(folder / "mounts")
        _ip("link", "set", "lo", "up")
        # An address of its own: otherwise the bridge takes the lowest of its ports', which changes as hosts join, and
        # hosts that know the old one cannot reach it until they ask again.
        _ip("link", "add", BRIDGE, "address", "02:77:00:00:00:01", "type", "bridge")
        _ip("address", "add", "10.77.0.1/16", "dev", BRIDGE)
        _ip("address", "add", "fd77::1/64", "dev", BRIDGE, "nodad")
        _ip("link", "set", BRIDGE, "up")

    def add(self, name: str, uid_files: Mapping[str, str] | None = None) -> Host:
        """A new host with addresses on both families, a default route, its own resolv.conf, hosts and host name."""
        number = len(self.hosts) + 11
        v4, v6 = IPv4Interface(f"10.77.0.{number}/16"), IPv6Interface(f"fd77::{number:x}/64")
        holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--uts", "--propagation", "private", "sleep", "infinity"],
            stdin=subprocess.DEVNULL,
        )
        self._await_namespace(holder)
        _ip("link", "add", f"hm{number}", "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
        _ip("link", "set", f"hm{number}", "master", BRIDGE, "up")
        host = Host(name, str(v4.ip), str(v6.ip), holder.pid)
        self.hosts[name] = host
        self._write_etc(host, uid_files or {})
        script = (
            f"hostname {name}; ip link set lo up; ip address add {v4} dev eth0; ip address add {v6} dev eth0 nodad; "
            "ip link set eth0 up; ip route add default via 10.77.0.1; ip -6 route add default via fd77::1"
        )
        host.run("sh", "-ec", script)
        etc = self.folder / name / "etc"
        for file in etc.iterdir():
            host.run("mount", "--bind", str(file), f"/etc/{file.name}")
        return host

    def _write_etc(self, host: Host, files: Mapping[str, str]) -> None:
        etc = self.folder / host.name / "etc"
        etc.mkdir(parents=True)
        (etc / "resolv.conf").write_text("nameserver 10.77.0.1\noptions timeout:2 attempts:2\n")
        names = [f"{each.v4} {each.name}.lab" for each in self.hosts.values()]
        (etc / "hosts").write_text("\n".join(["127.0.0.1 localhost", "::1 localhost", *names, ""]))
        for name, text in files.items():
            (etc / name).write_text(text)

    @staticmethod
    def _await_namespace(holder: subprocess.Popen[bytes]) -> None:
        own = Path("/proc/self/ns/net").readlink()
        while holder.poll() is None:
            if Path(f"/proc/{holder.pid}/ns/net").readlink() != own and b"sleep" in Path(
                f"/proc/{holder.pid}/cmdline"
            ).read_bytes().split(b"\0"):
                first = Path(f"/proc/{holder.pid}/cmdline").read_bytes().split(b"\0")[0]
                if first.endswith(b"sleep"):
                    return
        raise RuntimeError("a host's namespace could not be made: are user namespaces allowed here?")


def _ip(*argv: str) -> None:
    done = subprocess.run(
        ["ip", *argv], capture_output=True, text=True, check=False, env={**os.environ, "PATH": _PATH}
    )
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(argv)}: {done.stderr.strip()}")


def python() -> str:
    """The interpreter of this environment."""
    return sys.executable
