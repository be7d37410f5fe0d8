"""The embedded registry: one SQLite file in WAL mode, opened, checked and brought to this version's schema.

Rule: one connection, used from one thread at a time off the event loop; a write is one short transaction and
is on the disk (synchronous=FULL) before it is acknowledged. Several processes may share the file: their
changes are noticed by SQLite's data_version. Not for what the tables mean (registry.sqlite_catalog, _store).
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from registry.beside import beside
from registry.damage import Damage
from registry.errors import (
    NotARegistryError,
    RegistryError,
    RegistryUnavailableError,
    SchemaTooNewError,
)
from registry.marks import Changes
from registry.sqlite_catalog import SqliteCatalog
from registry.sqlite_store import SqliteRecords, SqliteStore
from registry.store import Registry

__all__ = ["Database", "open_sqlite"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_APPLICATION_ID = 0x686D7267  # "hmrg" in SQLite's header
_BUSY_SECONDS = 5.0
_OTHERS_POLL_SECONDS = 0.5

_MIGRATIONS = (
    """
    CREATE TABLE revision (number INTEGER NOT NULL);
    INSERT INTO revision VALUES (0);
    CREATE TABLE instances (
        id TEXT PRIMARY KEY, namespace TEXT NOT NULL, service TEXT NOT NULL, body TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX instances_of_service ON instances (namespace, service);
    CREATE TABLE services (
        namespace TEXT NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (namespace, name)
    ) WITHOUT ROWID;
    CREATE TABLE vips (slot INTEGER PRIMARY KEY, host TEXT UNIQUE);
    CREATE TABLE leases (owner TEXT PRIMARY KEY, expires REAL NOT NULL) WITHOUT ROWID;
    CREATE TABLE resources (
        kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
        version INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY (kind, namespace, name)
    ) WITHOUT ROWID;
    CREATE TABLE records (
        area TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, value TEXT NOT NULL,
        PRIMARY KEY (area, key)
    ) WITHOUT ROWID;
    """,
    """
    ALTER TABLE vips ADD COLUMN name TEXT;
    ALTER TABLE vips ADD COLUMN released REAL
    """,
)
"""Step n brings a file from schema n to n + 1; steps that were released are never changed."""


class Database:
    """The open connection. Reads and writes take turns; a cancelled caller's write still ends whole."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._turn = trio.CapacityLimiter(1)

    async def read(self, body: Callable[[sqlite3.Connection], T]) -> T:
        """Run `body` on the connection, in one snapshot."""
        result, _ = await self._run("BEGIN", body)
        return result

    async def write(self, body: Callable[[sqlite3.Connection], T], changes: Changes | None = None) -> T:
        """Run `body` in a transaction; when it raises, nothing is written. Marks `changes` when it wrote."""
        result, rows = await self._run("BEGIN IMMEDIATE", body)
        if changes is not None and rows:
            changes.mark()
        return result

    async def data_version(self) -> int:
        """A number that differs after another process has written."""

        def ask() -> int:
            with translated(self._path):
                return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

        return await trio.to_thread.run_sync(ask, limiter=self._turn)

    async def _run(self, begin: str, body: Callable[[sqlite3.Connection], T]) -> tuple[T, int]:
        """What `body` returned, and how many rows it changed."""

        def transaction() -> tuple[T, int]:
            with translated(self._path):
                before = self._connection.total_changes
                self._connection.execute(begin)
                try:
                    result = body(self._connection)
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
                return result, self._connection.total_changes - before

        return await trio.to_thread.run_sync(transaction, limiter=self._turn)

    async def close(self) -> None:
        """Close the file, once nobody uses it."""
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._connection.close, limiter=self._turn)


class translated:  # noqa: N801 - reads as a statement: with translated(path)
    """Inside it, sqlite3's exceptions become the registry's."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sqlite3.Error):
            raise _registry_error(error, self._path) from error


def _registry_error(error: sqlite3.Error, path: Path) -> RegistryError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_NOTADB:
        return NotARegistryError(f"{path} is not a SQLite file; move it away or name another file")
    if code == sqlite3.SQLITE_CORRUPT:
        return NotARegistryError(f"{path} is damaged ({error}); restore it from a backup")
    return RegistryUnavailableError(f"{path}: {error}")


def _open(path: Path) -> sqlite3.Connection:
    try:
        # SQLite gives -wal and -shm the file's own mode: making it first keeps all three private.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)
    except OSError as error:
        raise RegistryUnavailableError(f"{path}: {error.strerror}") from error
    with translated(path):
        connection = sqlite3.connect(
            path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        # One text that is no UTF-8 must not fail the whole read: its row is found damaged by itself.
        connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
        try:
            _prepare(connection, path)
        except BaseException:
            connection.close()
            raise
        return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    application, schema, tables = (
        connection.execute(statement).fetchone()[0]
        for statement in (
            "PRAGMA application_id",
            "PRAGMA user_version",
            "SELECT count(*) FROM sqlite_master",
        )
    )
    if application != _APPLICATION_ID and (application or schema or tables):
        raise NotARegistryError(f"{path} is some other program's SQLite file, not a hostmesh registry")
    if schema > len(_MIGRATIONS):
        raise SchemaTooNewError(
            f"{path} has schema {schema}, this hostmesh knows up to {len(_MIGRATIONS)}: "
            "it was written by a newer version"
        )
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Read again under the lock: another istiod may have been first.
        schema = connection.execute("PRAGMA user_version").fetchone()[0]
        for step in _MIGRATIONS[schema:]:
            for statement in step.split(";"):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={max(schema, len(_MIGRATIONS))}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


async def _notice_others(database: Database, changes: tuple[Changes, ...]) -> None:
    seen: int | None = None
    while True:
        try:
            version = await database.data_version()
        except RegistryError as error:
            _log.warning("cannot see whether another process has changed the registry: %s", error)
        else:
            if seen is not None and version != seen:
                for change in changes:
                    change.mark()
            seen = version
        await trio.sleep(_OTHERS_POLL_SECONDS)


@asynccontextmanager
async def open_sqlite(path: Path, owner: str) -> AsyncIterator[Registry]:
    """Open (make) the file. Raises NotARegistryError, SchemaTooNewError, RegistryUnavailableError."""
    database = Database(await trio.to_thread.run_sync(_open, path), path)
    catalog_changes, store_changes, record_changes = Changes(), Changes(), Changes()
    everything = (catalog_changes, store_changes, record_changes)
    damage = Damage()
    try:
        async with beside(partial(_notice_others, database, everything)):
            yield Registry(
                SqliteCatalog(database, catalog_changes, owner, damage),
                SqliteStore(database, store_changes, damage),
                SqliteRecords(database, record_changes),
                owner,
                f"sqlite {path}",
                damage,
            )
    finally:
        await database.close()
