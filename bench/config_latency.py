"""From `meshctl apply` to a new split in effect on three hosts, on a real mesh in network namespaces.

`python -m bench.config_latency [CHANGES]` prints JSON. Every change sets another response header and flips the
split; three plain clients, each on its own host, call every few milliseconds, and a change is in effect when the
last of them has seen it. Measured twice: with `meshctl` as a command of its own, and within one process that has
been started already (what the mesh itself takes, debounce included). Not for: comparison with Envoy, which has no
control plane.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.hosts.demo.observers import Sampler
from tests.hosts.lab.mesh import Mesh, wait_for
from tests.hosts.lab.namespaces import Lab, command_to_enter, environment_inside, inside, python

CLIENTS = ("client-a", "client-b", "client-c")
SERVERS = (("reviews-v1", "v1"), ("reviews-v2", "v2"))
GOAL_MS = 250.0
_PAUSE = 0.005
"""Seconds between a client's calls: three that never pause would take the processors from what is measured."""
_LOOP = Path(__file__).with_name("apply_loop.py").resolve()
_FOLDER = "HOSTMESH_BENCH_FOLDER"
_SPLIT = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews}}
spec:
  hosts: [reviews]
  http:
  - headers: {{response: {{set: {{x-split: {mark}}}}}}}
    route:
    - {{destination: {{host: reviews, subset: v1}}, weight: {first}}}
    - {{destination: {{host: reviews, subset: v2}}, weight: {second}}}
"""


def measure(changes: int = 20) -> dict[str, object]:
    """Run the whole thing in fresh namespaces. Raises RuntimeError with what the run printed."""
    folder = Path(tempfile.mkdtemp(prefix="hostmesh-bench-"))
    folder.chmod(0o755)
    environment = {**environment_inside(), _FOLDER: str(folder)}
    command = command_to_enter([sys.executable, "-m", "bench.config_latency", str(changes)])
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        if done.returncode != 0:
            raise RuntimeError(f"the config benchmark failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
        found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(changes: int) -> dict[str, object]:
    """Inside the namespaces: mesh up, changes, mesh down."""
    folder = Path(os.environ[_FOLDER])
    mesh = Mesh(Lab(folder))
    samplers: list[Sampler] = []
    try:
        for name, version in SERVERS:
            mesh.run_application(name, "reviews", version)
        for name in CLIENTS:
            mesh.run_application(name, "productpage", "v1")
        for name in mesh.workloads:
            mesh.enrol(name)
        for name in mesh.workloads:
            mesh.await_agent(name)
        wait_for("all workloads to be healthy", lambda: len(mesh.healthy()) == len(mesh.workloads))
        mesh.apply_sample("destination-rule-all.yaml")
        mesh.apply(_SPLIT.format(mark="start", first=50, second=50), "--wait")
        samplers += [Sampler(mesh, name, "reviews", pause=_PAUSE) for name in CLIENTS]
        as_command = _as_commands(mesh, samplers, folder, max(3, changes // 4))
        warm = _in_one_process(mesh, samplers, folder, changes)
        failed = sum(len(sampler.failures()) for sampler in samplers)
    finally:
        for sampler in samplers:
            sampler.close()
        mesh.close()
    return {
        "hosts": len(CLIENTS),
        "changes": changes,
        "median_ms": statistics.median(took for took, _ in warm),
        "max_ms": max(took for took, _ in warm),
        "median_of_apply_itself_ms": statistics.median(own for _, own in warm),
        "median_with_command_start_ms": statistics.median(as_command),
        "failed_calls": failed,
        "goal_ms": GOAL_MS,
    }


def _write(folder: Path, mark: str, number: int) -> Path:
    path = folder / f"{mark}.yaml"
    first = 90 if number % 2 else 10
    path.write_text(_SPLIT.format(mark=mark, first=first, second=100 - first))
    return path


def _in_effect(samplers: list[Sampler], since: int, mark: str) -> float:
    """Milliseconds until the last client saw it."""
    return max(sampler.first_after(since, split=mark) for sampler in samplers)


def _as_commands(mesh: Mesh, samplers: list[Sampler], folder: Path, changes: int) -> list[float]:
    found = []
    for number in range(changes):
        mark = f"command-{number}"
        path = _write(folder, mark, number)
        began = time.monotonic_ns()
        mesh.meshctl("apply", "-f", str(path))
        found.append(_in_effect(samplers, began, mark))
    return found


def _in_one_process(
    mesh: Mesh, samplers: list[Sampler], folder: Path, changes: int
) -> list[tuple[float, float]]:
    """(to effect, of that meshctl itself) in milliseconds."""
    command = mesh.istiod_host.command([python(), "-P", str(_LOOP), str(mesh.state / "admin-context.yaml")])
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        found: list[tuple[float, float]] = []
        for number in range(changes + 1):
            mark = f"warm-{number}"
            print(_write(folder, mark, number), file=process.stdin, flush=True)
            before, _, after = process.stdout.readline().partition(" ")
            if not before:
                raise RuntimeError("meshctl apply failed in the loop")
            took = _in_effect(samplers, int(before), mark)
            if number:  # the first one imports
                found.append((took, (int(after) - int(before)) / 1e6))
        process.stdin.close()
    return found


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    print(json.dumps(run(count) if inside() else measure(count)))
