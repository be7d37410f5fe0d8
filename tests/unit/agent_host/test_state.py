"""The state directory: what is damaged is named and treated as absent, never half used, and never ends the agent."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from google.protobuf.any_pb2 import Any as AnyMessage

from agent.host.state import State
from wire.xds import CLUSTER, EncodedResource

KEY = "default/reviews"
CONFIG = "workloads/default.reviews/config.bin"


@pytest.fixture
def stored(tmp_path: Path) -> State:
    """A state directory with a configuration of two clusters."""
    state = State(tmp_path)
    state.prepare([KEY])
    held = {}
    for name in ("one", "two"):
        body = AnyMessage()
        body.Pack(cluster_pb2.Cluster(name=name))
        held[name] = EncodedResource(name, "1", body.SerializeToString(deterministic=True))
    state.save_resources(KEY, {CLUSTER: held})
    return state


def test_what_was_stored_comes_back(stored: State) -> None:
    found = stored.resources(KEY)
    assert found is not None
    assert sorted(found[CLUSTER]) == ["one", "two"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, 40),
        lambda path: os.truncate(path, 0),
        lambda path: path.write_bytes(b"hostmesh config 1\n" + bytes(range(256)) * 20),
        lambda path: path.write_bytes(b"hostmesh config 9\n"),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["truncated", "empty", "garbage", "another version", "a folder"],
)
def test_a_damaged_configuration_is_named_and_not_used(
    stored: State, tmp_path: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    damage(tmp_path / CONFIG)
    assert stored.resources(KEY) is None
    assert "config" in caplog.text


def test_a_file_that_a_crash_left_half_written_is_not_seen(stored: State, tmp_path: Path) -> None:
    (tmp_path / CONFIG).with_name(".config.bin.abc").write_bytes(b"half")
    assert stored.resources(KEY) is not None


def test_what_is_stored_is_the_owners_alone(stored: State, tmp_path: Path) -> None:
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0
