"""A registry of a version without grants: what its hosts serve, they serve after the upgrade, and nobody else."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import trio

from istiod.access.facts import NotGrantedError
from istiod.access.records import AccessRecords, upgrade
from registry.opening import SqliteSettings, open_registry

OLD = Path(__file__).parent / "registry_without_grants.sql"


def test_identities_that_exist_keep_what_they_serve(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(OLD.read_text())
    connection.close()

    async def main() -> None:
        async with open_registry(SqliteSettings(path)) as registry:
            assert await upgrade(registry, 1.0) == 3
            access = (await AccessRecords(registry.records).read()).access
            reviews, ratings = await registry.catalog.instances()
            granted = {(one.service, one.service_account, one.addresses) for one in access.grants}
            assert granted == {
                ("reviews", "bookinfo-reviews", ("10.77.0.3/32", "fd77::3/128", "own")),
                ("ratings", "bookinfo-ratings", ("10.77.0.4/32", "own")),
                ("ratings.example.com", "bookinfo-ratings", ("own",)),
            }
            assert access.may_serve(reviews) and access.may_serve(ratings)
            assert access.admit(reviews, "10.77.0.3", lambda _: False) == reviews
            assert access.may_join(ratings, "default", "ratings.example.com", {"app": "ratings"})
            assert access.servers("default", "reviews") == (("default", "bookinfo-reviews"),)
            assert not access.may_join(reviews, "default", "ratings.example.com", {"app": "reviews"})

    trio.run(main)


def test_the_upgrade_happens_once_so_that_what_is_withdrawn_stays_withdrawn(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(OLD.read_text())
    connection.close()

    async def main() -> None:
        for start in range(2):
            async with open_registry(SqliteSettings(path)) as registry:
                assert await upgrade(registry, 1.0) == (3 if start == 0 else 0)
                records = AccessRecords(registry.records)
                if start == 0:
                    assert await records.withdraw("default", "reviews", "bookinfo-reviews")
                (reviews, _) = await registry.catalog.instances()
                access = (await records.read()).access
                assert not access.may_serve(reviews)
                try:
                    access.admit(reviews, "10.77.0.3", lambda _: False)
                except NotGrantedError:
                    continue
                raise AssertionError("it was admitted")

    trio.run(main)
