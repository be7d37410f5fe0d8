"""Join tokens: single use for each identity, expiry, revocation, and what is never stored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio

from istiod.access.facts import Grant
from istiod.enrolment import Enrolment, TokenRefusedError, TokenRequestError
from registry.opening import SqliteSettings, open_registry
from wire.spiffe import SpiffeId

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
ROOT = "ab" * 32
REVIEWS = SpiffeId("cluster.local", "default", "reviews")
RATINGS = SpiffeId("cluster.local", "default", "ratings")


def with_enrolment(tmp_path: Path, body: Callable[[Enrolment], Awaitable[None]]) -> None:
    async def main() -> None:
        async with open_registry(SqliteSettings(tmp_path / "registry.db")) as registry:
            await body(Enrolment(registry.records, ROOT))

    trio.run(main)


def test_a_token_gives_each_of_its_identities_once(tmp_path: Path) -> None:
    async def body(enrolment: Enrolment) -> None:
        text, token = await enrolment.create("default", ["reviews", "ratings", "reviews"], HOUR, NOW)
        assert text.startswith(f"hm1.{token.id}.") and text.endswith("." + ROOT)
        assert token.status(NOW) == "active"
        first = await enrolment.use(text, REVIEWS, "key-1", NOW)
        assert (list(first.used), first.status(NOW)) == (["reviews"], "active")
        with pytest.raises(TokenRefusedError, match="was used already for default/reviews") as refusal:
            await enrolment.use(text, REVIEWS, "key-2", NOW)
        assert refusal.value.known
        second = await enrolment.use(text, RATINGS, "key-3", NOW)
        assert second.status(NOW) == "used"
        assert [t.used for t in await enrolment.list()] == [{"reviews": ("key-1",), "ratings": ("key-3",)}]

    with_enrolment(tmp_path, body)


def test_the_same_key_may_ask_again_when_the_answer_was_lost(tmp_path: Path) -> None:
    async def body(enrolment: Enrolment) -> None:
        text, _ = await enrolment.create("default", ["reviews"], HOUR, NOW)
        await enrolment.use(text, REVIEWS, "key-1", NOW)
        await enrolment.use(text, REVIEWS, "key-1", NOW + HOUR / 2)
        with pytest.raises(TokenRefusedError, match="expired at 2026-11-22 13:00 UTC"):
            await enrolment.use(text, REVIEWS, "key-1", NOW + HOUR)

    with_enrolment(tmp_path, body)


@pytest.mark.parametrize(
    ("identity", "reason"),
    [
        (SpiffeId("cluster.local", "prod", "reviews"), "is for default/reviews only"),
        (SpiffeId("cluster.local", "default", "admin"), "is for default/reviews only"),
    ],
)
def test_another_identity_is_refused(tmp_path: Path, identity: SpiffeId, reason: str) -> None:
    async def body(enrolment: Enrolment) -> None:
        text, _ = await enrolment.create("default", ["reviews"], HOUR, NOW)
        with pytest.raises(TokenRefusedError, match=reason):
            await enrolment.use(text, identity, "key", NOW)
        assert [dict(token.used) for token in await enrolment.list()] == [{}]

    with_enrolment(tmp_path, body)


def test_expired_and_revoked_tokens_are_refused(tmp_path: Path) -> None:
    async def body(enrolment: Enrolment) -> None:
        text, token = await enrolment.create("default", ["reviews"], HOUR, NOW)
        with pytest.raises(TokenRefusedError, match="expired"):
            await enrolment.use(text, REVIEWS, "key", NOW + HOUR)
        assert await enrolment.revoke(token.id)
        with pytest.raises(TokenRefusedError, match="was revoked"):
            await enrolment.use(text, REVIEWS, "key", NOW)
        assert [t.status(NOW) for t in await enrolment.list()] == ["revoked"]
        assert not await enrolment.revoke("0" * 12)

    with_enrolment(tmp_path, body)


def test_a_wrong_secret_and_an_unknown_id_are_told_the_same(tmp_path: Path) -> None:
    async def body(enrolment: Enrolment) -> None:
        text, token = await enrolment.create("default", ["reviews"], HOUR, NOW)
        _, identifier, secret, root = text.split(".")
        wrong = [
            f"hm1.{identifier}.{'A' * 43}.{root}",
            f"hm1.{'0' * 12}.{secret}.{root}",
            "hm1.x.y.z",
            "",
            text + "\n",
        ]
        for attempt in wrong:
            with pytest.raises(TokenRefusedError) as refusal:
                await enrolment.use(attempt, REVIEWS, "key", NOW)
            assert not refusal.value.known
            assert secret not in str(refusal.value)
        with pytest.raises(TokenRefusedError, match="made for another root"):
            await enrolment.use(f"hm1.{identifier}.{secret}.{'cd' * 32}", REVIEWS, "key", NOW)
        assert token.status(NOW) == "active"

    with_enrolment(tmp_path, body)


def test_the_secret_is_not_in_the_registrys_file(tmp_path: Path) -> None:
    texts: list[str] = []

    async def body(enrolment: Enrolment) -> None:
        texts.append((await enrolment.create("default", ["reviews"], HOUR, NOW))[0])

    with_enrolment(tmp_path, body)
    _, identifier, secret, _ = texts[0].split(".")
    stored = (tmp_path / "registry.db").read_bytes()
    assert identifier.encode() in stored
    assert secret.encode() not in stored


@pytest.mark.parametrize(
    ("namespace", "accounts", "ttl", "field"),
    [
        ("default", [], HOUR, "serviceAccounts"),
        ("default", ["a/b"], HOUR, "serviceAccounts"),
        ("de fault", ["a"], HOUR, "namespace"),
        ("default", ["a"], timedelta(0), "ttlSeconds"),
        ("default", ["a"], timedelta(days=400), "ttlSeconds"),
        ("hostmesh-system", ["istiod"], HOUR, "serviceAccounts"),
    ],
)
def test_a_token_that_cannot_be_made_names_the_field(
    tmp_path: Path, namespace: str, accounts: list[str], ttl: timedelta, field: str
) -> None:
    async def body(enrolment: Enrolment) -> None:
        with pytest.raises(TokenRequestError) as refusal:
            await enrolment.create(namespace, accounts, ttl, NOW)
        assert refusal.value.field == field
        assert await enrolment.list() == ()

    with_enrolment(tmp_path, body)


def test_long_expired_tokens_disappear_when_a_new_one_is_made(tmp_path: Path) -> None:
    async def body(enrolment: Enrolment) -> None:
        await enrolment.create("default", ["old"], HOUR, NOW)
        await enrolment.create("default", ["new"], HOUR, NOW + timedelta(days=8))
        assert [token.service_accounts for token in await enrolment.list()] == [("new",)]

    with_enrolment(tmp_path, body)


def test_a_token_grants_its_bearer_what_it_names_and_nothing_without(tmp_path: Path) -> None:
    async def body(enrolment: Enrolment) -> None:
        await enrolment.create("default", ["caller"], HOUR, NOW)
        assert (await granted(enrolment)) == []
        _, token = await enrolment.create(
            "default",
            ["reviews", "ratings"],
            HOUR,
            NOW,
            services=["reviews/reviews", "ratings/ratings", "ratings/payments.example.com"],
            addresses=["10.1.2.3", "10.0.0.5/24"],
        )
        assert [(one.service, one.service_account) for one in await granted(enrolment)] == [
            ("payments.example.com", "ratings"),
            ("ratings", "ratings"),
            ("reviews", "reviews"),
        ]
        for one in await granted(enrolment):
            assert one.addresses == ("10.0.0.0/24", "10.1.2.3/32")
            assert one.source == f"join token {token.id}"
        await enrolment.revoke(token.id)
        assert (await granted(enrolment)) == [], "nobody used it"

    with_enrolment(tmp_path, body)


def test_a_second_token_widens_a_grant_and_the_revocation_of_a_used_one_leaves_it(tmp_path: Path) -> None:
    async def body(enrolment: Enrolment) -> None:
        text, first = await enrolment.create("default", ["reviews"], HOUR, NOW, services=["reviews"])
        await enrolment.create(
            "default", ["reviews"], HOUR, NOW, services=["reviews"], addresses=["fd00::/8"]
        )
        await enrolment.use(text, REVIEWS, "key-1", NOW)
        await enrolment.revoke(first.id)
        (grant,) = await granted(enrolment)
        assert grant.addresses == ("fd00::/8", "own")

    with_enrolment(tmp_path, body)


@pytest.mark.parametrize(
    ("services", "addresses", "field"),
    [
        (["reviews"], [], "services"),  # for which of the two accounts?
        (["other/reviews"], [], "services"),
        (["reviews/*.example.com"], [], "services"),
        (["reviews/Reviews"], [], "services"),
        (["reviews/reviews"], ["10.0.0.300"], "addresses"),
    ],
)
def test_a_grant_that_cannot_be_made_is_refused_with_its_field(
    tmp_path: Path, services: list[str], addresses: list[str], field: str
) -> None:
    async def body(enrolment: Enrolment) -> None:
        with pytest.raises(TokenRequestError) as refusal:
            await enrolment.create(
                "default", ["reviews", "ratings"], HOUR, NOW, services=services, addresses=addresses
            )
        assert refusal.value.field == field
        assert (await granted(enrolment), await enrolment.list()) == ([], ())

    with_enrolment(tmp_path, body)


def test_a_counted_token_lets_so_many_hosts_join(tmp_path: Path) -> None:
    async def body(enrolment: Enrolment) -> None:
        text, _ = await enrolment.create("default", ["reviews"], HOUR, NOW, uses=2)
        for key in ("key-1", "key-2", "key-1"):
            token = await enrolment.use(text, REVIEWS, key, NOW)
        assert (token.used, token.status(NOW)) == ({"reviews": ("key-1", "key-2")}, "used")
        with pytest.raises(TokenRefusedError, match="used already 2 times"):
            await enrolment.use(text, REVIEWS, "key-3", NOW)

    with_enrolment(tmp_path, body)


async def granted(enrolment: Enrolment) -> list[Grant]:
    return list((await enrolment._access.read()).access.grants)
