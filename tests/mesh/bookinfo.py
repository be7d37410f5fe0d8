"""Istio's bookinfo as its documentation deploys it: productpage, details, ratings, and reviews in three versions."""

from __future__ import annotations

from collections import Counter
from random import Random

from tests.mesh.simulation import Mesh

VERSIONS = {"productpage": ("v1",), "details": ("v1",), "ratings": ("v1",), "reviews": ("v1", "v2", "v3")}


def bookinfo(*samples: str, **mesh: object) -> Mesh:
    """The mesh with the given samples applied, on addresses 10.0.0.1 (productpage) to 10.0.0.6 (reviews-v3)."""
    result = Mesh(**mesh)
    for service, versions in VERSIONS.items():
        for version in versions:
            add(result, service, version)
    result.sample(*samples)
    return result


def add(mesh: Mesh, service: str, version: str) -> None:
    """One more version of a service."""
    mesh.add(
        f"{service}-{version}",
        service=service,
        labels={"app": service, "version": version},
        service_account=f"bookinfo-{service}",
    )


def shares(
    mesh: Mesh, to: str, from_: str = "productpage-v1", calls: int = 1000, seed: int = 7
) -> Counter[str]:
    """Which workloads answer how many of so many calls."""
    chance = Random(seed)
    return Counter(mesh.call(from_, to, random=chance.getrandbits(64)).workload for _ in range(calls))
