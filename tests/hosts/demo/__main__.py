"""`make demo`: a mesh on four hosts, shown at work and measured.

KEEP=1 leaves it running; REGISTRY=consul keeps its services in a real Consul.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.hosts.demo.board import Board
from tests.hosts.demo.observers import machine_fingerprint
from tests.hosts.demo.story import Story
from tests.hosts.lab.mesh import BIN, Mesh
from tests.hosts.lab.namespaces import command_to_enter, end, environment_inside, has_other_users, inside

_FOLDER = "HOSTMESH_DEMO_FOLDER"
_KEPT = Path(tempfile.gettempdir()) / f"hostmesh-demo-{os.getuid()}"
"""A link to the folder of the demo that KEEP=1 left running."""
_PID, _READY, _FAILED = "pid", "ready", "failed"
_TOOLS = (
    "ip", "nft", "tcpdump", "curl", "dig", "openssl", "unshare", "nsenter", "setpriv", "mount", "hostname",
)  # fmt: skip
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main() -> int:
    """Exit status 0: every line met its expectation. 1: one did not. 130: interrupted."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--down", action="store_true", help="end a demo that was left running")
    arguments = parser.parse_args()
    if arguments.down:
        return down()
    registry = os.environ.get("REGISTRY") or "sqlite"
    if registry not in ("sqlite", "consul"):
        print(f"make demo: REGISTRY={registry}: must be sqlite or consul", file=sys.stderr)
        return 2
    keep = os.environ.get("KEEP") == "1"
    return tell(registry, keep) if inside() else launch(registry, keep)


def launch(registry: str, keep: bool) -> int:
    """Start the demo inside its namespaces; see afterwards that nothing of it is left."""
    obstacle = _obstacle()
    if obstacle:
        print(f"make demo: {obstacle}", file=sys.stderr)
        return 1
    if registry == "consul" and shutil.which("consul") is None:
        status = subprocess.run([".ci/install-consul"], check=False).returncode
        if status:
            return status
    _interruptible()
    before = machine_fingerprint()
    folder = Path(tempfile.mkdtemp(prefix="hostmesh-demo-"))
    process: subprocess.Popen[bytes] | None = None
    try:
        folder.chmod(0o755)
        if keep and not _claim(folder):
            print("make demo: one is running already; `make demo-down` ends it", file=sys.stderr)
            folder.rmdir()
            return 1
        environment = {**environment_inside(), _FOLDER: str(folder)}
        command = command_to_enter([sys.executable, "-m", "tests.hosts.demo"])
        process = subprocess.Popen(command, env=environment, start_new_session=keep)
        (folder / _PID).write_text(str(process.pid))
        if keep and _ready(process, folder):
            return 1 if (folder / _FAILED).exists() else 0
        status = process.wait()
    except KeyboardInterrupt:
        if process is not None:
            end(process.pid)
        status = 130
    _uninterruptible()
    _remove(folder)
    if machine_fingerprint() != before:
        print("make demo: the machine's own interfaces, routes or rules are not as before", file=sys.stderr)
        return 1
    return 130 if status in (-signal.SIGINT, 130) else status


def _obstacle() -> str:
    """Why there can be no demo on this machine; empty when there can."""
    missing = [tool for tool in _TOOLS if shutil.which(tool, path=environment_inside()["PATH"]) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if not has_other_users():
        return "its hosts have several users: run it as root, or with uidmap and a range in /etc/subuid and /etc/subgid"
    done = subprocess.run(command_to_enter(["true"]), capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    return (
        f"no namespaces for user {os.geteuid()}: {done.stderr.strip()}\n"
        "run it as root, or allow unprivileged users to make namespaces; where AppArmor forbids it (Ubuntu):\n"
        "  sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    )


def _interruptible() -> None:
    """Ctrl-C, a closed terminal and SIGTERM end the demo alike."""
    for each in _ENDING:
        if each == signal.SIGTERM or signal.getsignal(each) != signal.SIG_IGN:
            signal.signal(each, _interrupt)


def _interrupt(_number: int, _frame: object) -> None:
    _uninterruptible()
    raise KeyboardInterrupt


def _uninterruptible() -> None:
    """What clears up is not interrupted."""
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)


def _ready(process: subprocess.Popen[bytes], folder: Path) -> bool:
    """Wait until the demo has been told and goes on running; False when it ended instead."""
    while process.poll() is None and not (folder / _READY).exists():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    return process.poll() is None


def _remove(folder: Path) -> None:
    """Remove a demo's files, also those of its hosts' users: in a user namespace, where the demo had one."""
    subprocess.run(command_to_enter(["rm", "-rf", str(folder)]), check=False)
    if _KEPT.is_symlink() and _KEPT.readlink() == folder:
        _KEPT.unlink()


def _claim(folder: Path) -> bool:
    """Make this demo the one that KEEP=1 left running; False when there is one. It is this process until it has begun."""
    if _kept() is None:
        _KEPT.unlink(missing_ok=True)
    (folder / _PID).write_text(str(os.getpid()))
    try:
        _KEPT.symlink_to(folder)
    except FileExistsError:
        (folder / _PID).unlink()
        return False
    return True


def _kept() -> tuple[Path, int] | None:
    """Folder and process of the demo that KEEP=1 left running."""
    try:
        if _KEPT.lstat().st_uid != os.getuid():
            return None
        pid = int((_KEPT / _PID).read_text())
        alive = b"tests.hosts.demo" in Path(f"/proc/{pid}/cmdline").read_bytes()
        return (_KEPT.readlink(), pid) if alive else None
    except (OSError, ValueError):
        return None


def tell(registry: str, keep: bool) -> int:
    """The demo itself, inside."""
    _interruptible()
    board = Board()
    folder = Path(os.environ[_FOLDER])
    story = Story(board, folder, registry)
    status = 0
    try:
        story.tell()
    except KeyboardInterrupt:
        status = 130
    except (RuntimeError, TimeoutError, StopIteration, KeyError, ValueError, AssertionError) as error:
        board.check("the step came to its end", "yes", f"{type(error).__name__}: {error}", good=False)
        if story.mesh is not None:
            for name in ["istiod", *story.mesh.workloads]:
                board.note(f"--- end of {name}.log\n{story.mesh.log(name, 1500)}")
    if status != 130:
        board.finish()
    failed = board.failed()
    for line in failed:
        board.console.print(
            f"[bold red]FAILED[/] {line.step}: {line.what}: expected {line.expected}, got {line.measured}"
        )
    if status == 0 and failed:
        status = 1
    if status == 0:
        board.console.print("[bold green]All of it works.[/]")
    if keep and story.mesh is not None and status != 130:
        linger(board, folder, story.mesh, failed=bool(failed))
    _uninterruptible()
    if story.mesh is not None:
        story.mesh.close()
    return status


def linger(board: Board, folder: Path, mesh: Mesh, *, failed: bool) -> None:
    """Print how to look around, then wait for `make demo-down`."""
    enter = folder / "on"
    enter.write_text(
        "#!/bin/sh\n# on HOST COMMAND…: run a command on one of the demo's hosts\n"
        f"demo=$(cat {folder}/{_PID})\n"
        f'host=$(cat {folder}/"$1".pid) || exit 2; shift\n'
        'user=""; [ "$(id -u)" = 0 ] || user="-U --preserve-credentials"\n'
        'exec nsenter -t "$demo" $user -m -n -u --pid="/proc/$demo/ns/pid_for_children" -- \\\n'
        '  nsenter -t "$host" -n -m -u -- "$@"\n'
    )
    enter.chmod(0o755)
    for name, host in mesh.lab.hosts.items():
        (folder / f"{name}.pid").write_text(str(host.holder))
    context = str(mesh.state / "admin-context.yaml")
    meshctl = shlex.join([str(enter), "istiod", str(BIN / "meshctl"), "--context", context])
    lines = [
        "The mesh goes on running. Look around:",
        f"  {meshctl} proxy-status",
        f"  {meshctl} get virtualservices",
        f"  {meshctl} workload list",
        f"  {meshctl} proxy-config clusters default/productpage-productpage",
        f"  {enter} productpage curl -s http://reviews:9080/",
        f"  logs: {folder}/*.log",
        "and end it with: make demo-down",
    ]
    board.console.print("\n".join(lines), soft_wrap=True)
    if failed:
        (folder / _FAILED).touch()
    (folder / _READY).touch()
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            signal.pause()


def down() -> int:
    """End the demo that KEEP=1 left running, and remove its files."""
    kept = _kept()
    if kept is None:
        print("make demo-down: no demo is running")
        return 0
    folder, pid = kept
    end(pid)
    _remove(folder)
    print("make demo-down: ended")
    return 0


if __name__ == "__main__":
    sys.exit(main())
