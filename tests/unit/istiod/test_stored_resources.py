"""What becomes of stored resources that today's checks refuse: used as they stand, closed, or left out, by name."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

from istiod.compile import ProxyInfo, compile_proxy
from istiod.compile.authorization import policies_of
from istiod.feed import Feed
from istiod.monitoring import Metrics
from istiod.resources.kinds import KINDS
from istiod.resources.mesh_config import MeshConfig
from istiod.resources.problem import Severity
from istiod.resources.stored import _without_bounds, stored
from istiod.snapshot import Snapshot, build
from registry.model import Health, Instance, Port, Resource, Service
from registry.opening import SqliteSettings, open_registry
from tests.unit.istiod.test_resources_istio_cases import documents
from tests.unit.istiod.test_resources_verdicts import REFUSED


def held(kind: str, spec: Any, name: str = "old", version: str = "1") -> Resource:
    return Resource(kind, "default", name, KINDS[kind].api_version, spec, version=version)


def mesh(*resources: Resource, previous: Snapshot | None = None) -> Snapshot:
    return build((), (), resources, MeshConfig(), previous)


@pytest.mark.parametrize(
    ("kind", "spec", "path"),
    [
        ("AuthorizationPolicy", {"action": "DENY"}, "spec.rules"),
        ("AuthorizationPolicy", {"action": "CUSTOM", "provider": {"name": "x"}}, "spec.action"),
        ("PeerAuthentication", {"portLevelMtls": {"80": {"mode": "STRICT"}}}, "spec.portLevelMtls"),
        ("RequestAuthentication", {}, "kind"),
        ("Sidecar", {}, "spec"),
        (
            "DestinationRule",
            {
                "host": "a",
                "trafficPolicy": {
                    "loadBalancer": {"consistentHash": {"maglev": {"tableSize": 10}, "useSourceIp": True}}
                },
            },
            "spec.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize",
        ),
        (
            "DestinationRule",
            {"host": "a", "trafficPolicy": {"outlierDetection": {"maxEjectionPercent": 101}}},
            "spec.trafficPolicy.outlierDetection.maxEjectionPercent",
        ),
        (
            "VirtualService",
            {"hosts": ["a"], "http": [{"route": [{"destination": {"host": ""}}]}]},
            "spec.http[0].route[0].destination.host",
        ),
    ],
)
def test_what_would_be_refused_today_is_used_and_named(kind: str, spec: dict[str, Any], path: str) -> None:
    snapshot = mesh(held(kind, spec))
    assert [one.resource.spec for one in snapshot.of(kind)] == [spec]
    assert path in [one.path for one in snapshot.problems]
    for one in snapshot.problems:
        assert one.severity is Severity.WARNING
        assert one.subject == f"{kind} default/old"
        assert "would be refused today and is used as it stands: " in one.message


def test_the_warning_lasts_as_long_as_the_document() -> None:
    first = mesh(held("Sidecar", {}))
    second = mesh(
        held("Sidecar", {}), held("Sidecar", {"egress": [{"hosts": ["*/*"]}]}, "new"), previous=first
    )
    assert second.problems == first.problems != ()
    assert (
        mesh(held("Sidecar", {"egress": [{"hosts": ["*/*"]}]}, version="2"), previous=second).problems == ()
    )


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("spec", [{"nothing like it": 1}, "text", 7, {"selector": []}, {"hosts": object()}])
def test_what_has_no_reading_is_left_out_or_closed_and_never_raises(kind: str, spec: Any) -> None:
    snapshot = mesh(held(kind, spec))
    assert any(
        one.severity is Severity.ERROR and f"{kind} default/old" in str(one) for one in snapshot.problems
    )
    assert len(snapshot.of(kind)) == (kind in ("AuthorizationPolicy", "PeerAuthentication"))


def test_every_kind_can_be_read_without_bounds() -> None:
    for kind in KINDS.values():
        assert _without_bounds(kind.model) is not None


def test_a_stand_in_selects_what_the_document_selected() -> None:
    spec = {"selector": {"matchLabels": {"app": "api"}}, "action": "deny"}
    snapshot = mesh(held("AuthorizationPolicy", spec))
    assert policies_of(snapshot, "default", {"app": "api"})
    assert not policies_of(snapshot, "default", {"app": "web"})
    said = [str(one) for one in snapshot.problems]
    assert said[0] == (
        "AuthorizationPolicy default/old: cannot be read: all calls are denied for workloads with app=api"
        " until it is mended or deleted"
    )
    assert said[1].startswith("AuthorizationPolicy default/old: spec.action: Unsupported value")


def test_a_policy_of_gateways_closes_no_workload() -> None:
    spec = {"targetRef": {"kind": "Service", "name": "web"}, "action": "deny"}
    assert not policies_of(mesh(held("AuthorizationPolicy", spec)), "default", {"app": "web"})


def test_an_unknown_kind_is_left_out() -> None:
    found = stored(Resource("Future", "default", "x", "networking.istio.io/v9", {}))
    assert found.document is None
    assert "unknown kind 'Future'" in str(found.problems[0])


def test_a_damaged_row_of_a_policy_closes_what_it_may_have_protected(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "registry.db"

    async def main() -> None:
        async with open_registry(SqliteSettings(path)):
            pass
        with sqlite3.connect(path) as rows:
            for kind in ("AuthorizationPolicy", "PeerAuthentication", "Sidecar"):
                rows.execute("INSERT INTO resources VALUES (?, 'default', 'lost', 7, '{')", (kind,))
        rows.close()
        async with open_registry(SqliteSettings(path)) as registry, trio.open_nursery() as nursery:
            metrics = Metrics()
            feed = Feed(registry, MeshConfig(), metrics)
            with trio.fail_after(5):
                await nursery.start(feed.run)
            snapshot = feed.snapshot
            assert [one.spec.action for one in policies_of(snapshot, "default", {})] == ["DENY"]
            assert [one.spec.mtls.mode for one in snapshot.of("PeerAuthentication")] == ["STRICT"]
            assert not snapshot.of("Sidecar")
            # A trial of what mends it sees the mended one.
            mended = held("AuthorizationPolicy", {"rules": [{}]}, "lost")
            assert [one.spec.action for one in feed.imagine([mended]).of("AuthorizationPolicy")] == ["ALLOW"]
            await registry.store.put(mended)
            with trio.fail_after(5):
                while len(policies_of(feed.snapshot, "default", {})) != 1 or any(
                    "AuthorizationPolicy" in problem for problem in feed.problems
                ):
                    await feed.newer_than(feed.number)
            assert [one.spec.action for one in feed.snapshot.of("AuthorizationPolicy")] == ["ALLOW"]
            nursery.cancel_scope.cancel()

    with caplog.at_level(logging.WARNING, "istiod.feed"):
        trio.run(main)
    assert (
        "AuthorizationPolicy default/lost: cannot be read: all calls are denied for all workloads"
        in caplog.text
    )
    assert (
        "PeerAuthentication default/lost: cannot be read: mutual TLS is STRICT for all workloads"
        in caplog.text
    )


def refused() -> list[Resource]:
    """All documents that the tables of verdicts refuse, hosts and selectors as in the mesh below where they are free."""
    texts = [f"kind: {kind}\nspec: {spec}" for kind, spec, _ in REFUSED]
    texts += [text for _, text, error in documents() if error is not None]
    found = []
    for number, text in enumerate(texts):
        value = yaml.safe_load(text)
        if isinstance(value.get("spec"), dict) and value.get("kind") in KINDS:
            found.append(held(value["kind"], value["spec"], f"old-{number}", str(number + 1)))
    return found


def test_a_stored_document_that_would_be_refused_costs_its_own_part_only() -> None:
    """Each alone: the snapshot is made, and a proxy that sees the document has everything but that part."""
    ports = (Port("http", 80), Port("tcp", 9000))
    service = Service("a", "default", ports, "240.240.0.1", "2001:2::1")
    one = Instance("default/a-1", "a", "default", ("10.0.0.1",), ports, {"app": "a"}, health=Health.HEALTHY)
    proxy = ProxyInfo("default", "default", {"app": "a"}, ("10.0.0.1",), "a", "a-1", ports)
    used = 0
    for resource in refused():
        snapshot = build((service,), (one,), (resource,), MeshConfig())
        assert snapshot.problems, resource
        used += bool(snapshot.of(resource.kind))
        made = compile_proxy(snapshot, proxy)
        assert not any(failure.everything for failure in made.failures), (resource, made.failures)
        if resource.kind in ("AuthorizationPolicy", "PeerAuthentication"):
            assert not made.failures, (resource, made.failures)
    assert used > 100, "most of them can be read"
