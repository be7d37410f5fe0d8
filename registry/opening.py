"""Opens the registry that the settings name.

Rule: the only place that knows all backends; everybody else holds a Registry. Not for reading files of
settings (istiod.config).
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from registry.store import Registry

__all__ = ["ConsulSettings", "SqliteSettings", "open_registry"]


@dataclass(frozen=True, slots=True)
class SqliteSettings:
    """The embedded registry: one file (made when missing, mode 0600)."""

    path: Path


@dataclass(frozen=True, slots=True)
class ConsulSettings:
    """A Consul by the address of its HTTP API ("http://127.0.0.1:8500", "https://…", "unix:///…").

    `prefix` keeps several meshes in one Consul apart. `token` is an ACL token's secret (never logged).
    """

    address: str
    prefix: str = "hostmesh"
    token: str | None = field(default=None, repr=False)
    ca_file: Path | None = None


@asynccontextmanager
async def open_registry(settings: SqliteSettings | ConsulSettings) -> AsyncIterator[Registry]:
    """Open it and keep it open inside the `async with`.

    Raises NotARegistryError, SchemaTooNewError (SQLite) and RegistryUnavailableError (no Consul answers).
    """
    owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    if isinstance(settings, SqliteSettings):
        from registry.sqlite import open_sqlite

        async with open_sqlite(settings.path, owner) as registry:
            yield registry
    else:
        from registry.consul import open_consul

        async with open_consul(
            settings.address, settings.prefix, settings.token, settings.ca_file, owner
        ) as registry:
            yield registry
