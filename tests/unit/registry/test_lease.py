"""Orphans: whose istiod died, for how long, and when the clock starts again."""

from __future__ import annotations

from registry.lease import Orphans
from registry.model import Instance


def instance(name: str, owner: str) -> Instance:
    return Instance(name, "reviews", "default", ("10.0.0.1",), (), owner=owner)


A, B, STATIC = instance("a", "dead"), instance("b", "alive"), instance("c", "")


def test_an_instance_leaves_after_the_grace_and_not_before() -> None:
    orphans = Orphans(30)
    assert orphans.observe([A, B, STATIC], {"alive"}, 100.0) == []
    assert orphans.observe([A, B, STATIC], {"alive"}, 129.9) == []
    assert orphans.observe([A, B, STATIC], {"alive"}, 130.0) == [("a", "dead")]


def test_an_owner_that_comes_back_gets_a_whole_grace_again() -> None:
    orphans = Orphans(30)
    orphans.observe([A], set(), 100.0)
    orphans.observe([A], {"dead"}, 120.0)
    assert orphans.observe([A], set(), 130.0) == []
    assert orphans.observe([A], set(), 160.0) == [("a", "dead")]


def test_after_the_registry_was_away_every_grace_begins_anew() -> None:
    orphans = Orphans(30)
    orphans.observe([A], set(), 100.0)
    orphans.forget()
    assert orphans.observe([A], set(), 131.0) == []


def test_without_grace_it_leaves_at_once() -> None:
    assert Orphans(0).observe([A], set(), 1.0) == [("a", "dead")]
