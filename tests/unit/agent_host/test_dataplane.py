"""Several real worker processes as one data plane: applying, refusing, replacing, draining."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from agent.host.workers import liveness
from agent.host.workers.dataplane import ChangeFailed, Dataplane
from agent.host.workers.worker_process import RunAs, WorkerProcess
from tests.hosts.lab.namespaces import command_to_enter, has_other_users

PROGRAM = (sys.executable, str(Path(__file__).with_name("worker_in_small.py")))
TYPE = "type.googleapis.com/x"


def with_dataplane(
    test: Callable[[Dataplane], Awaitable[None]],
    run_as: RunAs | None = None,
    program: tuple[str, ...] = PROGRAM,
) -> None:
    async def main() -> None:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                dataplane = Dataplane(2, run_as, lambda: 0.5, program)
                await nursery.start(dataplane.run)
                await test(dataplane)
                nursery.cancel_scope.cancel()

    trio.run(main)


async def eventually(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.01)


def test_a_configuration_is_in_force_when_every_worker_has_it() -> None:
    async def test(dataplane: Dataplane) -> None:
        await dataplane.change("default/a", {TYPE: {"one": b"1"}})
        assert dataplane.generation == 1
        assert [status.generation for status in dataplane.status()] == [1, 1]

    with_dataplane(test)


def test_a_refused_configuration_leaves_the_former_one_in_force() -> None:
    async def test(dataplane: Dataplane) -> None:
        await dataplane.change("default/a", {TYPE: {"one": b"1"}})
        with pytest.raises(ChangeFailed, match="bad"):
            await dataplane.change("default/a", {TYPE: {"bad": b""}})
        assert dataplane.resources("default/a") == {TYPE: {"one": b"1"}}
        await dataplane.change("default/b", {TYPE: {"two": b"2"}})
        assert set(dataplane.resources("default/a")[TYPE]) == {"one"}

    with_dataplane(test)


def test_a_dead_worker_is_replaced_and_told_what_is_in_force() -> None:
    async def test(dataplane: Dataplane) -> None:
        await dataplane.change("default/a", {TYPE: {"one": b"1"}})
        victim = dataplane.workers[0].process.pid
        os.kill(victim, signal.SIGKILL)
        await eventually(
            lambda: (
                len(dataplane.workers) == 2
                and dataplane.workers[0].process.pid != victim
                and dataplane.workers[0].generation == 1
            )
        )
        assert [status.restarts for status in dataplane.status()] == [1, 0]

    with_dataplane(test)


def test_a_worker_that_hangs_is_ended_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness.hung, "__defaults__", (0.05,))

    async def test(dataplane: Dataplane) -> None:
        await dataplane.change("default/a", {TYPE: {"one": b"1"}})
        hung, other = (worker.process.pid for worker in dataplane.workers)
        os.kill(hung, signal.SIGSTOP)
        await eventually(
            lambda: (
                [worker.process.pid for worker in dataplane.workers][:1] not in ([], [hung])
                and len(dataplane.workers) == 2
                and dataplane.workers[0].generation == 1
            )
        )
        assert dataplane.workers[1].process.pid == other, "the one that answers stays"
        assert not Path(f"/proc/{hung}").exists()

    with_dataplane(test)


def test_a_configuration_that_every_worker_dies_of_is_refused_and_the_former_one_stays() -> None:
    async def test(dataplane: Dataplane) -> None:
        await dataplane.change("default/a", {TYPE: {"one": b"1"}})
        with trio.fail_after(10), pytest.raises(ChangeFailed, match="every worker ended"):
            await dataplane.change("default/a", {TYPE: {"crash": b""}})
        assert dataplane.resources("default/a") == {TYPE: {"one": b"1"}}
        await eventually(lambda: [worker.generation > 0 for worker in dataplane.workers] == [True, True])

    with_dataplane(test)


def test_what_one_worker_cannot_use_is_named_and_none_uses_it() -> None:
    async def test(dataplane: Dataplane) -> None:
        await dataplane.change("default/a", {TYPE: {"one": b"1", "left": b"good"}})
        refused = await dataplane.change("default/a", {TYPE: {"one": b"2", "left": b"0", "new": b"0"}})
        assert [(one.name, one.reason) for one in refused] == [
            ("left", "of worker 0"),
            ("new", "of worker 0"),
        ]
        assert dataplane.resources("default/a") == {TYPE: {"one": b"2", "left": b"good"}}
        for worker in dataplane.workers:
            assert (await worker.query("stats"))["last"] == {"one": "2", "left": "good"}

    with_dataplane(test)


def test_questions_are_answered_by_the_worker_that_was_asked() -> None:
    async def test(dataplane: Dataplane) -> None:
        for worker in dataplane.workers:
            assert (await worker.query("stats"))["pid"] == worker.process.pid

    with_dataplane(test)


def test_the_statistics_region_comes_with_the_worker() -> None:
    seen: list[bytes] = []

    def take(descriptor: int) -> None:
        seen.append(os.pread(descriptor, 100, 0))
        os.close(descriptor)

    def watch(worker: WorkerProcess) -> None:
        worker.on_stats = take

    async def main() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                dataplane = Dataplane(1, None, lambda: 0.5, PROGRAM)
                dataplane.on_worker = watch
                await nursery.start(dataplane.run)
                await eventually(lambda: seen == [b"numbers"])
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_drained_workers_end_and_are_not_replaced() -> None:
    async def test(dataplane: Dataplane) -> None:
        processes = [worker.process for worker in dataplane.workers]
        await dataplane.drain(5)
        assert [process.returncode for process in processes] == [0, 0]
        await eventually(lambda: dataplane.workers == [])

    with_dataplane(test)


def test_workers_can_be_another_user() -> None:
    assert has_other_users(), (
        "becoming another user needs root, or uidmap and a range of ids in /etc/subuid and /etc/subgid"
    )
    if os.geteuid() != 0:
        again = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            f"{__file__}::{test_workers_can_be_another_user.__name__}",
        ]
        done = subprocess.run(command_to_enter(again), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        return

    async def test(dataplane: Dataplane) -> None:
        for worker in dataplane.workers:
            status = Path(f"/proc/{worker.process.pid}/status").read_text()
            assert "Uid:\t65534\t65534\t65534\t65534" in status
            assert "Groups:\t \n" in status
            assert "CapEff:\t0000000000000000" in status
            assert "CapPrm:\t0000000000000000" in status

    with_dataplane(test, RunAs(65534, 65534), ("sleep",))


def test_a_worker_inherits_no_descriptor_but_its_own() -> None:
    async def test(dataplane: Dataplane) -> None:
        with open(__file__, "rb") as secret:  # noqa: PTH123
            os.set_inheritable(secret.fileno(), True)
            victim = dataplane.workers[0].process.pid
            os.kill(victim, signal.SIGKILL)
            await eventually(
                lambda: len(dataplane.workers) == 2 and dataplane.workers[0].process.pid != victim
            )
            held = [
                str(path.readlink())
                for path in Path(f"/proc/{dataplane.workers[0].process.pid}/fd").iterdir()
            ]
            assert not any(__file__ in target for target in held)

    with_dataplane(test)


def test_workers_serve_only_while_they_listen_on_every_required_port() -> None:
    async def test(dataplane: Dataplane) -> None:
        said: list[bool] = []
        dataplane.on_serving = said.append
        dataplane.required = frozenset({15001, 15006})
        await dataplane.change("default/a", {TYPE: {"port 15001": b""}})
        assert not dataplane.serving, "half of a configuration is not a reason to bring traffic"
        await dataplane.change("default/a", {TYPE: {"port 15001": b"", "port 15006": b""}})
        assert dataplane.serving
        await dataplane.change("default/a", {TYPE: {"port 15006": b""}})
        assert not dataplane.serving
        assert said == [True, False]

    with_dataplane(test)


def test_every_worker_keeps_what_it_is_given_to_keep() -> None:
    async def test(dataplane: Dataplane) -> None:
        with open(__file__, "rb") as kept:  # noqa: PTH123
            dataplane.kept = (kept.fileno(),)
            victim = dataplane.workers[0].process.pid
            os.kill(victim, signal.SIGKILL)
            await eventually(
                lambda: len(dataplane.workers) == 2 and dataplane.workers[0].process.pid != victim
            )
            descriptors = Path(f"/proc/{dataplane.workers[0].process.pid}/fd")
            await eventually(lambda: any(str(path.readlink()) == __file__ for path in descriptors.iterdir()))

    with_dataplane(test)


def test_workers_know_how_long_to_drain_without_us() -> None:
    async def test(dataplane: Dataplane) -> None:
        dataplane.drain_seconds = 7.0
        await dataplane.change("default/a", {TYPE: {"one": b"1"}})
        for worker in dataplane.workers:
            assert (await worker.query("stats"))["settings"]["drainSeconds"] == 7.0

    with_dataplane(test)
