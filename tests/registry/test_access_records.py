"""Grants, revocations and evictions as records, on both backends."""

from __future__ import annotations

import trio

from istiod.access.facts import Eviction, Grant, Revocation
from istiod.access.records import AccessRecords
from registry.opening import ConsulSettings, SqliteSettings, open_registry
from registry.store import Registry

GRANT = Grant("default", "reviews", "bookinfo-reviews", ("10.0.0.0/24", "own"), "meshctl", 1.0)
SUBJECT = "spiffe://cluster.local/ns/default/sa/bookinfo-ratings"


def test_what_one_istiod_grants_revokes_and_evicts_another_reads(
    settings: SqliteSettings | ConsulSettings,
) -> None:
    async def body(first: Registry, second: Registry) -> None:
        here, there = AccessRecords(first.records), AccessRecords(second.records)
        await here.grant(GRANT)
        await here.revoke(Revocation(SUBJECT, "stolen", 2.0))
        await here.revoke(Revocation("ab12", "", 3.0))
        await here.evict(Eviction("default/reviews-vm1", "disk", 4.0))
        access = (await there.read()).access
        assert access.grants == (GRANT,)
        assert access.revocations[SUBJECT] == Revocation(SUBJECT, "stolen", 2.0)
        assert set(access.revocations) == {SUBJECT, "ab12"}
        assert access.evictions["default/reviews-vm1"].reason == "disk"
        assert await there.withdraw("default", "reviews", "bookinfo-reviews")
        assert await there.restore(SUBJECT) and await there.restore("ab12")
        assert await there.readmit("default/reviews-vm1")
        stored = await here.read()
        assert (stored.access.grants, stored.access.revocations, stored.access.evictions) == ((), {}, {})

    _with_two(settings, body)


def test_a_damaged_record_is_named_and_the_others_count(settings: SqliteSettings | ConsulSettings) -> None:
    async def body(first: Registry, _: Registry) -> None:
        access = AccessRecords(first.records)
        await access.grant(GRANT)
        for key, value in (
            ("grant/default/ratings/x", "no json"),
            ("grant/default/ratings", "{}"),
            ("grant/default/details/x", '{"addresses": ["10.0.0.300"]}'),
            ("revoked/no identity", "{}"),
        ):
            await first.records.put("access", key, value)
        await first.records.put("access", f"revoked/{SUBJECT}", "damaged, and yet it says whom")
        stored = await access.read()
        assert stored.access.grants == (GRANT,)
        assert list(stored.access.revocations) == [SUBJECT]
        assert len(stored.problems) == 4
        assert all(problem.startswith("access record ") for problem in stored.problems)

    _with_two(settings, body)


def _with_two(settings: SqliteSettings | ConsulSettings, body: object) -> None:
    async def main() -> None:
        with trio.fail_after(30):
            async with open_registry(settings) as first, open_registry(settings) as second:
                await body(first, second)  # type: ignore[operator]

    trio.run(main)
