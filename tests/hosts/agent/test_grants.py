"""What a host may serve, from its own side: agents as real processes, one istiod."""

from __future__ import annotations

from typing import Any

from tests.hosts.agent.conftest import eventually

REVIEWS: dict[str, Any] = {
    "service": "reviews",
    "serviceAccount": "reviews",
    "ports": [{"name": "http", "port": 9080}],
}


def names(mesh: Any) -> set[tuple[str, str]]:
    return {(one["serviceAccount"], one["addresses"][0]) for one in mesh.workloads()}


def test_two_hosts_with_one_name_both_serve_and_the_end_of_one_is_its_own(mesh: Any) -> None:
    mesh.agent("first", REVIEWS, addresses=["127.0.0.2"]).start().ready()
    clone = mesh.agent("clone", REVIEWS, addresses=["127.0.0.3"]).start().ready()
    both = {("reviews", "127.0.0.2"), ("reviews", "127.0.0.3")}
    eventually("both are registered", lambda: names(mesh) == both)
    assert len({one["name"] for one in mesh.workloads()}) == 2
    assert clone.process.terminate() == 0
    eventually("one has left", lambda: names(mesh) == {("reviews", "127.0.0.2")})


def test_a_host_that_takes_anothers_service_and_name_is_told_why_it_is_not_registered(mesh: Any) -> None:
    mesh.agent("real", REVIEWS).start().ready()
    eventually("it is registered", lambda: names(mesh) == {("reviews", "127.0.0.1")})
    ratings = {**REVIEWS, "service": "ratings", "serviceAccount": "ratings"}
    impostor = mesh.agent("impostor", ratings)
    text = impostor.config.read_text().replace("service: ratings", "service: reviews")
    impostor.config.write_text(text)
    impostor.start().ready()
    told = eventually("it is told", lambda: impostor.status()["workloads"][0]["istiod"]["notRegistered"])
    assert told.startswith("default/ratings may not serve default/reviews (allow: meshctl service grants")
    assert names(mesh) == {("reviews", "127.0.0.1")}
    assert impostor.process.terminate() == 0
    assert names(mesh) == {("reviews", "127.0.0.1")}, "its goodbye ends nothing"
