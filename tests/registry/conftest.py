"""Backends for the shared suite: every test in it runs once on SQLite and once on a real Consul."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from consul_process import ConsulProcess

from registry.opening import ConsulSettings, SqliteSettings

Settings = SqliteSettings | ConsulSettings


@pytest.fixture(scope="session")
def shared_consul(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulProcess]:
    """One Consul for all tests that do not stop it; each test has a prefix of its own."""
    consul = ConsulProcess(tmp_path_factory.mktemp("consul"))
    try:
        consul.start()
        yield consul
    finally:
        consul.stop()


@pytest.fixture
def own_consul(tmp_path: Path) -> Iterator[ConsulProcess]:
    """A Consul, not yet started, that the test may stop and start."""
    consul = ConsulProcess(tmp_path / "consul")
    try:
        yield consul
    finally:
        consul.stop()


@pytest.fixture(params=["sqlite", pytest.param("consul", marks=pytest.mark.consul)])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Where an empty registry is; opening it twice gives two istiods that share it."""
    if request.param == "sqlite":
        return SqliteSettings(tmp_path / "registry.db")
    consul: ConsulProcess = request.getfixturevalue("shared_consul")
    return ConsulSettings(consul.address, prefix=f"mesh-{uuid.uuid4().hex[:8]}")
