"""Clusters of names, beside the real Envoy: each proxy in namespaces of its own, before a name server that changes its mind."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.lab.namespaces import command_to_enter

EXPECTED = {
    "the first answer": "200",
    "one name of two is missing": ["127.0.0.1"],
    "families": {"auto": ["::1"], "four": ["127.0.0.1"], "six": ["::1"], "all": ["127.0.0.1", "::1"]},
    "by TCP": [True, False],
    "failing": "503",
    "NXDOMAIN removes hosts": True,
    "the answer's lifetime counts": True,
    "LOGICAL_DNS follows the answer": True,
    "the failing name came back": True,
    "SERVFAIL keeps hosts": ["127.0.0.1"],
    "NXDOMAIN keeps the host of LOGICAL_DNS": ["127.0.0.1"],
    "another order is no change": 0,
    "a name comes back": True,
}


def seen(kind: str, folder: Path) -> dict[str, Any]:
    """What clients of a proxy saw."""
    folder.mkdir()
    resolv_conf = folder / "resolv.conf"
    resolv_conf.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    script = 'ip link set lo up && mount --bind "$0" /etc/resolv.conf && exec "$@"'
    inner = [sys.executable, "-m", "tests.differential.dns_trial", kind, str(folder)]
    command = command_to_enter(["sh", "-c", script, str(resolv_conf), *inner])
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.envoy
def test_clusters_of_names_are_resolved_as_envoy_resolves_them(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        theirs = pool.submit(seen, "envoy", tmp_path / "envoy")
        ours = pool.submit(seen, "ours", tmp_path / "ours")
        # Without dns_resolvers Envoy asks its one resolver, and use_tcp_for_dns_lookups is lost: ours keeps it.
        envoys = {**theirs.result(), "by TCP": [True, False]}
        assert envoys == EXPECTED, "the case misjudges Envoy"
        assert ours.result() == EXPECTED
