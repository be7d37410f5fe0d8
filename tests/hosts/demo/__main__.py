"""`make demo`: a mesh on four hosts, shown at work and measured.

KEEP=1 leaves it running; REGISTRY=consul keeps its services in a real Consul.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.hosts.demo.board import Board
from tests.hosts.demo.observers import machine_fingerprint
from tests.hosts.demo.story import Story
from tests.hosts.lab.mesh import BIN, Mesh
from tests.hosts.lab.namespaces import command_to_enter, environment_inside, inside

_FOLDER = "HOSTMESH_DEMO_FOLDER"
_KEPT = Path(tempfile.gettempdir()) / f"hostmesh-demo-{os.getuid()}.pid"
_READY, _FAILED = "ready", "failed"


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
    if registry == "consul" and shutil.which("consul") is None:
        status = subprocess.run([".ci/install-consul"], check=False).returncode
        if status:
            return status
    if keep and _KEPT.exists() and _alive(int(_KEPT.read_text())):
        print("make demo: one is running already; `make demo-down` ends it", file=sys.stderr)
        return 1
    before = machine_fingerprint()
    folder = Path(tempfile.mkdtemp(prefix="hostmesh-demo-"))
    folder.chmod(0o755)
    environment = {**environment_inside(), _FOLDER: str(folder)}
    command = command_to_enter([sys.executable, "-m", "tests.hosts.demo"])
    process = subprocess.Popen(command, env=environment, start_new_session=keep)
    try:
        if keep:
            while process.poll() is None and not (folder / _READY).exists():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
            if process.poll() is None:
                _KEPT.write_text(str(process.pid))
                return 1 if (folder / _FAILED).exists() else 0
        status = process.wait()
    except KeyboardInterrupt:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        if process.poll() is None:
            process.kill()
            process.wait()
        status = 130
    shutil.rmtree(folder, ignore_errors=True)
    if machine_fingerprint() != before:
        print("make demo: the machine's own interfaces, routes or rules are not as before", file=sys.stderr)
        return 1
    return 130 if status in (-signal.SIGINT, 130) else status


def tell(registry: str, keep: bool) -> int:
    """The demo itself, inside."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
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
    if keep and story.mesh is not None and status != 130:
        linger(board, folder, story.mesh, failed=bool(failed))
    if story.mesh is not None:
        story.mesh.close()
    if status == 0:
        board.console.print("[bold green]All of it works.[/]")
    return status


def linger(board: Board, folder: Path, mesh: Mesh, *, failed: bool) -> None:
    """Print how to look around, then wait for `make demo-down`."""
    enter = folder / "on"
    enter.write_text(
        "#!/bin/sh\n# on HOST COMMAND…: run a command on one of the demo's hosts\n"
        f'first=$(ps -o pid= --ppid "$(cat {_KEPT})" | tr -d " ")\n'
        f'pid=$(cat {folder}/"$1".pid) || exit 2; shift\n'
        'user=""; [ "$(id -u)" = 0 ] || user="-U --preserve-credentials"\n'
        'exec nsenter -t "$first" $user -m -p -n -u -- nsenter -t "$pid" -n -m -u -- "$@"\n'
    )
    enter.chmod(0o755)
    for name, host in mesh.lab.hosts.items():
        (folder / f"{name}.pid").write_text(str(host.holder))
    meshctl = f"{enter} istiod {BIN / 'meshctl'} --context {mesh.state / 'admin-context.yaml'}"
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
    if not _KEPT.exists():
        print("make demo-down: no demo is running")
        return 0
    pid = int(_KEPT.read_text())
    if _alive(pid):
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        folder = next(
            item.decode().partition("=")[2] for item in environ if item.startswith(_FOLDER.encode())
        )
        os.kill(pid, signal.SIGKILL)
        while _alive(pid):
            time.sleep(0.05)
        shutil.rmtree(folder, ignore_errors=True)
    _KEPT.unlink()
    print("make demo-down: ended")
    return 0


def _alive(pid: int) -> bool:
    try:
        return b"tests.hosts.demo" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
