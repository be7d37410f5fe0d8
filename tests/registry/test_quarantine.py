"""How long a released address is kept from other names: a day, on both backends."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest
import trio

from registry.consul_catalog import _is_free
from registry.opening import SqliteSettings, open_registry
from registry.vips import candidates, virtual_ips

DAY = 86_400


@pytest.mark.parametrize(
    ("age", "name", "free"), [(DAY - 1, "other", False), (DAY, "other", True), (0, "reviews.default", True)]
)
def test_a_key_of_consuls_says_since_when_and_for_whom_a_slot_is_free(
    age: int, name: str, free: bool
) -> None:
    now = 1_800_000_000.0
    assert _is_free(f"released {now - age:.0f} reviews.default", name, now) is free
    assert not _is_free("service default/reviews", name, now)


@pytest.mark.parametrize(("age", "again"), [(DAY - 60, False), (DAY + 60, True)])
def test_after_a_day_another_name_gets_it(tmp_path: Path, age: float, again: bool) -> None:
    path = tmp_path / "registry.db"

    async def allocate(name: str) -> str:
        async with open_registry(SqliteSettings(path)) as registry:
            return (await registry.catalog.allocate(name)).v4

    async def release(name: str) -> None:
        async with open_registry(SqliteSettings(path)) as registry:
            assert await registry.catalog.release(name)

    wanted = next(candidates("rival.example"))
    assert trio.run(allocate, "first.example")
    trio.run(release, "first.example")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE vips SET slot = ?, released = ?", (wanted, time.time() - age))
    connection.close()
    assert (trio.run(allocate, "rival.example") == virtual_ips(wanted).v4) is again
