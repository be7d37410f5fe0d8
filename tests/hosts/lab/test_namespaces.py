"""What was started in namespaces of its own ends whole."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.hosts.lab.namespaces import command_to_enter, end

ASKED = "trap 'exit 0' TERM"
DEAF = "trap '' TERM"


@pytest.mark.netns
@pytest.mark.parametrize(("habit", "seconds"), [(ASKED, 30.0), (DEAF, 0.1)], ids=["asked", "deaf"])
def test_no_process_inside_outlives_the_end(habit: str, seconds: float) -> None:
    script = f"{habit}; setsid sleep infinity & setsid sleep infinity & echo ready; wait"
    command = command_to_enter(["sh", "-c", script])
    with subprocess.Popen(command, stdout=subprocess.PIPE) as entered:
        assert entered.stdout is not None
        assert entered.stdout.readline() == b"ready\n"
        end(entered.pid, seconds)
        # The pipe ends when its last holder has ended: not a moment later than `end` returns.
        os.set_blocking(entered.stdout.fileno(), False)
        assert entered.stdout.read() == b""


def test_ending_what_has_ended_is_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        end(process.pid)
