"""The registry in a Consul that several istiods share: opening, layout and watching.

Rule: the facts are KV documents below the prefix, every write is one transaction on ModifyIndex, and each
instance is mirrored, in that same transaction, into Consul's own catalog. One blocking query each for the
catalog, the configuration and the records, whatever their size; all resume by themselves when Consul was
away. Not for HTTP (registry.consul_http).
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from registry.beside import beside
from registry.consul_catalog import ConsulCatalog
from registry.consul_http import ConsulClient, kv
from registry.consul_store import ConsulRecords, ConsulStore
from registry.damage import Damage
from registry.errors import NotARegistryError, RegistryError, SchemaTooNewError
from registry.marks import Changes
from registry.store import Registry

__all__ = ["open_consul"]

_log = logging.getLogger(__name__)

_FORMAT = 1
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0


@asynccontextmanager
async def open_consul(
    address: str, prefix: str, token: str | None, ca_file: Path | None, owner: str
) -> AsyncIterator[Registry]:
    """Reach Consul and check the prefix.

    Raises RegistryUnavailableError, RegistryDeniedError, NotARegistryError, SchemaTooNewError.
    """
    root = prefix.strip("/")
    client = ConsulClient(address, token, ca_file)
    try:
        await client.leader()
        await _check_format(client, f"{root}/format")
        folders = f"{root}/catalog/", f"{root}/config/", f"{root}/records/"
        catalog_changes, store_changes, record_changes = Changes(), Changes(), Changes()
        damage = Damage()
        async with beside(
            partial(_follow, client, folders[0], catalog_changes),
            partial(_follow, client, folders[1], store_changes),
            partial(_follow, client, folders[2], record_changes),
        ):
            yield Registry(
                ConsulCatalog(client, root, catalog_changes, owner, damage),
                ConsulStore(client, f"{root}/config/", store_changes, damage),
                ConsulRecords(client, f"{root}/records/", record_changes),
                owner,
                f"consul {address} ({root}/)",
                damage,
            )
    finally:
        with trio.CancelScope(shield=True):
            await client.close()


async def _check_format(client: ConsulClient, key: str) -> None:
    entry = await client.get(key)
    if entry is None:
        await client.transact([kv("cas", key, str(_FORMAT), index=0)])
        entry = await client.get(key)
    text = entry.value if entry else ""
    if not text.isdecimal():
        raise NotARegistryError(f"Consul's key {key} holds {text!r}: the prefix is some other program's")
    if int(text) > _FORMAT:
        raise SchemaTooNewError(
            f"Consul's key {key} says format {text}, this hostmesh knows up to {_FORMAT}: "
            "a newer version uses this prefix"
        )


async def _follow(client: ConsulClient, folder: str, changes: Changes) -> None:
    """Mark `changes` after each change below `folder`, until cancelled."""
    index = 0
    pause = _FIRST_PAUSE
    while True:
        try:
            if index == 0:
                await client.make_folder(folder)
            seen = await client.changed(folder, index)
        except RegistryError as error:
            level = logging.WARNING if pause == _FIRST_PAUSE else logging.DEBUG  # once for each absence
            _log.log(level, "not watching %s for now: %s", folder, error)
            # Chance keeps the istiods of a mesh from coming back all at once.
            await trio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311
            pause = min(pause * 2, _LONGEST_PAUSE)
            index = 0
            continue
        if pause > _FIRST_PAUSE:
            _log.info("watching %s again", folder)
            pause = _FIRST_PAUSE
        if seen != index:
            changes.mark()
        # After a restore the index goes backwards; then the next query must not wait for the old one.
        index = seen if seen >= index else 0
