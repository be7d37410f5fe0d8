"""What only the embedded registry promises: the file's privacy, its schema check, and surviving SIGKILL."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from registry.errors import NotARegistryError, RegistryUnavailableError, SchemaTooNewError
from registry.opening import SqliteSettings, open_registry


def open_and_close(path: Path) -> None:
    async def main() -> None:
        async with open_registry(SqliteSettings(path)):
            pass

    trio.run(main)


def test_the_file_and_its_companions_are_private(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"

    async def main() -> None:
        async with open_registry(SqliteSettings(path)) as registry:
            await registry.records.put("a", "b", "c")
            companions = tmp_path.iterdir  # three directory entries: nothing to leave the loop for
            modes = {each.name: each.stat().st_mode & 0o777 for each in companions()}
            assert modes == {"registry.db": 0o600, "registry.db-wal": 0o600, "registry.db-shm": 0o600}

    trio.run(main)


def test_a_file_that_is_not_sqlite_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("shopping list\n" * 100)
    with pytest.raises(NotARegistryError, match=r"notes\.txt is not a SQLite file"):
        open_and_close(path)
    assert path.read_text() == "shopping list\n" * 100


def test_another_programs_sqlite_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cookies.db"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE cookies (name TEXT)")
    other.commit()
    other.close()
    with pytest.raises(NotARegistryError, match="some other program's SQLite file"):
        open_and_close(path)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    open_and_close(path)
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version=99")
    newer.close()
    with pytest.raises(SchemaTooNewError, match="has schema 99"):
        open_and_close(path)


def test_a_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(RegistryUnavailableError, match=r"nowhere/registry\.db: No such file"):
        open_and_close(tmp_path / "nowhere" / "registry.db")


WRITER = """
import sys, trio
from pathlib import Path
from registry.opening import SqliteSettings, open_registry

async def main():
    async with open_registry(SqliteSettings(Path(sys.argv[1]))) as registry:
        number = 0
        while True:
            await registry.records.put("numbers", f"{number:06}", "x" * 500)
            print(number, flush=True)
            number += 1

trio.run(main)
"""


def test_nothing_acknowledged_is_lost_by_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) >= 30:
                writer.kill()
                break
        acknowledged = [int(line), *(int(rest) for rest in writer.stdout)]

    async def main() -> None:
        async with open_registry(SqliteSettings(path)) as registry:
            numbers = [int(record.key) for record in await registry.records.list("numbers")]
            assert numbers[: acknowledged[-1] + 1] == list(range(acknowledged[-1] + 1))

    trio.run(main)
