"""A host whose address changes is found at the new one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hosts.lab.namespaces import command_to_enter, environment_inside

STORY = str(Path(__file__).with_name("moving.py"))


@pytest.mark.netns
def test_a_host_with_a_new_address_registers_under_it(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)  # the host's users run what lies there
    done = subprocess.run(
        command_to_enter([sys.executable, STORY, str(tmp_path)]),
        env=environment_inside(), capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
