"""Agents against a real istiod: enrolment, registration, pushes, refusals, restarts."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import pytest
import trio

from tests.istiod.conftest import CASES, Istiod
from tests.istiod.observing import REVIEWS, endpoints, eventually, in_thread, joined, weights, workloads
from tests.istiod.proxies import ISTIOD, Identity, connected, enrol, node
from wire import tls
from wire.grpc import CREATE_CERTIFICATE, DEBUG_ATTACH, GrpcError, GrpcStatus, open_channel
from wire.proto import debug_pb2, istio_ca_pb2
from wire.spiffe import SpiffeId
from wire.x509 import load_chain, make_csr, new_key
from wire.xds import CLUSTER, LISTENER, NAME_TABLE, ROUTE

SAMPLES = CASES / "istio-samples"


def test_a_workload_comes_with_its_agent_follows_its_probe_and_leaves_with_it(istiod: Istiod) -> None:
    async def story() -> None:
        reviews, caller = await joined(istiod, "reviews", "caller")
        xds = istiod.address("xds")
        async with connected(xds, node("caller-a", service_account="caller"), caller) as watcher:
            me = node("reviews-a", "reviews", service_account="reviews", address="127.0.0.7")
            async with connected(xds, me, reviews) as agent:
                await watcher.until(lambda: REVIEWS in watcher.names(CLUSTER))
                assert (await workloads(istiod))["reviews-a"]["health"] == "unhealthy"
                await agent.report(True)
                await watcher.until(lambda: endpoints(watcher, REVIEWS).get("127.0.0.7") in (0, 1))
                await agent.report(False, "probe: connection refused")
                await watcher.until(lambda: endpoints(watcher, REVIEWS).get("127.0.0.7") not in (0, 1))
                listed = (await workloads(istiod))["reviews-a"]
                assert (listed["health"], listed["connected"]) == ("unhealthy", True)
                await agent.report(True)
                await watcher.until(lambda: endpoints(watcher, REVIEWS).get("127.0.0.7") in (0, 1))
                await agent.report(False, "leaving")
                await watcher.until(lambda: "127.0.0.7" not in endpoints(watcher, REVIEWS))
            assert "reviews-a" not in await workloads(istiod)

    trio.run(story)


def test_a_broken_connection_keeps_the_instance_for_the_grace_period(istiod: Istiod) -> None:
    async def story() -> None:
        (reviews,) = await joined(istiod, "reviews")
        me = node("reviews-a", "reviews", service_account="reviews")
        async with connected(istiod.address("xds"), me, reviews) as agent:
            await agent.report(True)

            async def healthy() -> bool:
                return (await workloads(istiod)).get("reviews-a", {}).get("health") == "healthy"

            await eventually(healthy)
        still = (await workloads(istiod))["reviews-a"]
        assert still["health"] == "healthy"

        async def gone() -> bool:
            return "reviews-a" not in await workloads(istiod)

        await eventually(gone)
        assert "connection broke" in istiod.log

    trio.run(story)


def test_apply_reaches_the_proxies_and_waits_for_their_answer(istiod: Istiod) -> None:
    async def story() -> None:
        reviews, caller = await joined(istiod, "reviews", "caller")
        xds = istiod.address("xds")
        async with (
            connected(xds, node("reviews-a", "reviews", service_account="reviews"), reviews) as agent,
            connected(xds, node("caller-a", service_account="caller"), caller) as watcher,
        ):
            await agent.report(True)
            await watcher.until(lambda: "9080" in watcher.names(ROUTE))
            first = await in_thread(
                istiod.ok,
                "apply",
                "--wait",
                "-f",
                SAMPLES / "destination-rule-reviews.yaml",
                "-f",
                SAMPLES / "virtual-service-reviews-90-10.yaml",
            )
            assert "in effect on 2 proxies after " in first
            assert weights(watcher) == [("v1", 90), ("v2", 10)]
            second = await in_thread(
                istiod.ok, "apply", "--wait", "-f", SAMPLES / "virtual-service-reviews-50-v3.yaml"
            )
            assert weights(watcher) == [("v1", 50), ("v3", 50)]
            milliseconds = int(second.rsplit("after ", 1)[1].split(" ms")[0])
            assert milliseconds < 2000
            table = await in_thread(istiod.ok, "proxy-status")
            line = next(row for row in table.splitlines() if row.startswith("default/caller-a"))
            assert line.count("SYNCED") == 5, table
            detail = await in_thread(istiod.json, "proxy-status", "default/caller-a")
            assert detail["identity"] == "spiffe://cluster.local/ns/default/sa/caller"
            assert detail["synced"] is True
            assert all(entry["lastPushSeconds"] is not None for entry in detail["types"])

    trio.run(story)


def test_a_slow_proxy_gets_the_newest_and_not_every_step(istiod: Istiod) -> None:
    async def story() -> None:
        (caller,) = await joined(istiod, "caller")
        me = node("caller-a", "reviews", service_account="caller")
        async with connected(istiod.address("xds"), me, caller) as proxy:
            await in_thread(istiod.ok, "apply", "-f", SAMPLES / "destination-rule-reviews.yaml")
            await in_thread(
                istiod.ok, "apply", "--wait", "-f", SAMPLES / "virtual-service-reviews-test-v2.yaml"
            )
            proxy.answering = trio.Event()
            proxy.received.clear()
            await in_thread(istiod.ok, "apply", "-f", SAMPLES / "virtual-service-reviews-90-10.yaml")

            async def first_step_came() -> bool:
                return ROUTE in proxy.received

            await eventually(first_step_came)
            for split in ("80-20", "v2-v3", "90-10", "80-20", "50-v3"):
                await in_thread(istiod.ok, "apply", "-f", SAMPLES / f"virtual-service-reviews-{split}.yaml")
            late = await in_thread(
                istiod.meshctl, "apply", "--wait=1", "-f", SAMPLES / "virtual-service-reviews-50-v3.yaml"
            )
            assert late.returncode == 1
            assert "waiting for: default/caller-a" in late.stderr
            assert "STALE" in await in_thread(istiod.ok, "proxy-status")
            proxy.answering.set()
            await proxy.until(lambda: weights(proxy) == [("v1", 50), ("v3", 50)])
            assert proxy.received.count(ROUTE) == 2, "the first step, and then the newest"

    trio.run(story)


def test_a_refusal_is_shown_with_its_reason_and_apply_wait_fails(istiod: Istiod) -> None:
    async def story() -> None:
        (caller,) = await joined(istiod, "caller")
        me = node("caller-a", "reviews", service_account="caller")
        async with connected(istiod.address("xds"), me, caller) as proxy:
            await proxy.until(lambda: "9080" in proxy.names(ROUTE))
            proxy.refuse[ROUTE] = "no such thing as a weight of 90"
            done = await in_thread(
                istiod.meshctl, "apply", "--wait=10", "-f", SAMPLES / "virtual-service-reviews-90-10.yaml"
            )
            assert done.returncode == 1
            assert "default/caller-a: RDS: refused the configuration: no such thing" in done.stderr
            status = await in_thread(istiod.meshctl, "proxy-status")
            assert "ERROR" in status.stdout
            assert "default/caller-a refused RDS: no such thing" in status.stderr
            assert 'pilot_total_xds_rejects_total{type="RDS"} 1.0' in istiod.monitoring("/metrics")[1]
            proxy.refuse.clear()
            await in_thread(istiod.ok, "delete", "--wait", "vs", "reviews")

    trio.run(story)


def test_a_document_that_another_version_stored_costs_itself_only(istiod: Istiod) -> None:
    """Its rows are written past all checks, as an older version's or another program's are."""
    body = {
        "kind": "VirtualService", "namespace": "default", "name": "bad", "apiVersion": "networking.istio.io/v1",
        "spec": {"hosts": ["reviews"], "http": [{"directResponse": {"status": 200, "body": {"bytes": "not base64!!"}}}]},
        "labels": {}, "annotations": {}, "generation": 1, "created": 1.0,
    }  # fmt: skip

    async def main() -> None:
        (caller,) = await joined(istiod, "caller")
        me = node("caller-a", "reviews", service_account="caller")
        async with connected(istiod.address("xds"), me, caller) as proxy:
            await proxy.until(lambda: "9080" in proxy.names(ROUTE))
            with sqlite3.connect(istiod.state / "registry.db") as rows:
                insert = "INSERT INTO resources VALUES ('VirtualService', 'default', ?, ?, ?)"
                rows.execute(insert, ("bad", 900, json.dumps(body)))
                rows.execute(insert, ("worse", 901, "{"))
            rows.close()

            async def named() -> bool:
                shown = await in_thread(istiod.meshctl, "proxy-status")
                return "default/bad" in shown.stderr and "default/worse" in shown.stderr

            await eventually(named)
            await in_thread(istiod.ok, "apply", "--wait=10", "-f", SAMPLES / "destination-rule-reviews.yaml")
            assert proxy.ended is None
            assert "hostmesh_istiod_unusable_documents 2.0" in istiod.monitoring("/metrics")[1]
            await in_thread(istiod.ok, "delete", "vs", "bad", "worse")

    trio.run(main)


def test_wait_calls_nothing_in_effect_while_no_proxy_is_connected(istiod: Istiod) -> None:
    done = istiod.meshctl("apply", "--wait=0.3", "-f", SAMPLES / "virtual-service-all-v1.yaml")
    assert done.returncode == 1
    assert "in effect on" not in done.stdout
    assert "no proxy is connected" in done.stderr


def test_wait_never_counts_a_proxy_that_refused_before(istiod: Istiod) -> None:
    async def main() -> None:
        (identity,) = await joined(istiod, "default")
        address = istiod.address("xds")
        sample = SAMPLES / "virtual-service-reviews-90-10.yaml"
        async with connected(address, node("reviews-1", "reviews"), identity) as proxy:
            await proxy.until(lambda: proxy.names(ROUTE))
            proxy.refuse = {ROUTE: "RouteConfiguration[9080].virtual_hosts[0]: no"}
            refused = await in_thread(istiod.meshctl, "apply", "--wait=10", "-f", sample)
            assert refused.returncode == 1, refused.stdout
            # The same again changes nothing: it is still not in effect there.
            again = await in_thread(istiod.meshctl, "apply", "--wait=10", "-f", sample)
            assert again.returncode == 1, again.stdout
            assert "reviews-1" in again.stderr
            # A change of the same resource is warned about, though it is not what is refused.
            touching = await in_thread(
                istiod.meshctl, "apply", "--dry-run", "-f", SAMPLES / "virtual-service-reviews-80-20.yaml"
            )
            assert "since before this change" in touching.stderr, touching.stdout + touching.stderr
            # What has nothing to do with it is in effect on those that took everything: nobody.
            other = await in_thread(
                istiod.meshctl, "apply", "--wait=10", "-f", SAMPLES / "destination-rule-reviews.yaml"
            )
            assert "in effect on 1" not in other.stdout
            shown = await in_thread(istiod.json, "proxy-status", "default/reviews-1")
            states = {entry["short"]: entry["status"] for entry in shown["types"]}
            assert states["RDS"] == "ERROR"

    trio.run(main)


def test_a_proxy_must_be_who_its_certificate_says(istiod: Istiod) -> None:
    async def refused(proxy_node: Any, identity: Identity | None, status: GrpcStatus) -> None:
        async with connected(istiod.address("xds"), proxy_node, identity) as proxy:
            with pytest.raises(GrpcError) as refusal:
                await proxy.until(lambda: proxy.updates > 0)
        assert refusal.value.status is status

    async def story() -> None:
        (caller,) = await joined(istiod, "caller")
        await refused(node("a", service_account="other"), caller, GrpcStatus.PERMISSION_DENIED)
        await refused(
            node("a", namespace="prod", service_account="caller"), caller, GrpcStatus.PERMISSION_DENIED
        )
        assert "ADS stream refused" in istiod.log
        assert "spiffe://cluster.local/ns/default/sa/caller" in istiod.log

    trio.run(story)


def test_without_a_certificate_there_is_no_configuration(istiod: Istiod) -> None:
    async def story() -> None:
        (caller,) = await joined(istiod, "caller")
        anonymous = tls.client_context(caller.root)

        async def connect() -> trio.abc.Stream:
            return await tls.connect(*istiod.address("xds"), anonymous, ISTIOD)

        async with open_channel(connect, "istiod") as channel:
            for path in (
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
                DEBUG_ATTACH,
            ):
                async with channel.stream(path) as call:
                    with pytest.raises(GrpcError) as refusal:
                        await call.receive()
                    assert refusal.value.status is GrpcStatus.UNAUTHENTICATED

    trio.run(story)


def test_a_token_gives_its_identities_once_and_no_others(istiod: Istiod) -> None:
    async def story() -> None:
        token = (await in_thread(istiod.ok, "token", "create", "-s", "reviews")).strip()
        reviews = SpiffeId("cluster.local", "default", "reviews")
        with pytest.raises(GrpcError) as other:
            await enrol(istiod.address("xds"), token, SpiffeId("cluster.local", "default", "ratings"))
        assert other.value.status is GrpcStatus.PERMISSION_DENIED
        identity = await enrol(istiod.address("xds"), token, reviews)
        assert SpiffeId.of_certificate(load_chain(identity.chain)[0]) == reviews
        with pytest.raises(GrpcError) as again:
            await enrol(istiod.address("xds"), token, reviews)
        assert again.value.status is GrpcStatus.PERMISSION_DENIED
        assert "certificate refused" in istiod.log

        async def connect() -> trio.abc.Stream:
            return await tls.connect(*istiod.address("xds"), identity.context(), ISTIOD)

        async with open_channel(connect, "istiod") as channel:
            renewal = istio_ca_pb2.IstioCertificateRequest(csr=make_csr(new_key(), reviews).decode())
            answer = await channel.unary(CREATE_CERTIFICATE, renewal.SerializeToString(), deadline=10)
            assert len(istio_ca_pb2.IstioCertificateResponse.FromString(answer).cert_chain) == 2
            stolen = SpiffeId("cluster.local", "default", "ratings")
            request = istio_ca_pb2.IstioCertificateRequest(csr=make_csr(new_key(), stolen).decode())
            with pytest.raises(GrpcError) as refusal:
                await channel.unary(CREATE_CERTIFICATE, request.SerializeToString(), deadline=10)
            assert refusal.value.status is GrpcStatus.PERMISSION_DENIED

    trio.run(story)


def test_the_plaintext_port_gives_configuration_and_registers_nothing(istiod: Istiod) -> None:
    async def story() -> None:
        me = node("reviews-a", "reviews")
        async with connected(istiod.address("xdsPlaintext"), me, None) as proxy:
            await proxy.until(lambda: {"virtualOutbound", "virtualInbound"} <= proxy.names(LISTENER))
            await proxy.report(True)
            shown = await in_thread(istiod.json, "proxy-status", "default/reviews-a")
            assert shown["identity"] == ""
            assert await workloads(istiod) == {}

    trio.run(story)


def test_an_istiod_that_was_killed_takes_up_where_it_was(istiod: Istiod) -> None:
    async def story() -> None:
        reviews, caller = await joined(istiod, "reviews", "caller")
        agent_node = node("reviews-a", "reviews", service_account="reviews")
        caller_node = node("caller-a", service_account="caller")
        async with connected(istiod.address("xds"), caller_node, caller) as watcher:
            async with connected(istiod.address("xds"), agent_node, reviews) as agent:
                await agent.report(True)
                await watcher.until(lambda: endpoints(watcher, REVIEWS).get("127.0.0.1") in (0, 1))
            held = watcher.client
            await in_thread(istiod.kill)
        await in_thread(istiod.start)
        async with (
            connected(istiod.address("xds"), agent_node, reviews),
            connected(istiod.address("xds"), caller_node, caller) as back,
        ):
            # What was held before is named with its versions, as an agent does.
            back.client = held
            await back.call.send(held.start()[0])

            async def registered() -> bool:
                return (await workloads(istiod)).get("reviews-a", {}).get("health") == "healthy"

            await eventually(registered)

    trio.run(story)


def test_meshctl_reaches_a_hosts_admin_pages_over_the_agents_own_stream(istiod: Istiod) -> None:
    async def story() -> None:
        reviews, other = await joined(istiod, "reviews", "other")
        me = node("reviews-a", "reviews", service_account="reviews")
        dump = {
            "configs": [
                {
                    "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump",
                    "dynamic_active_clusters": [
                        {"cluster": {"name": "outbound|9080||from.the.host", "type": "EDS"}}
                    ],
                }
            ]
        }
        async with connected(istiod.address("xds"), me, reviews) as agent:
            recorded = await in_thread(istiod.meshctl, "proxy-config", "clusters", "default/reviews-a")
            assert "is not attached to istiod" in recorded.stderr
            await agent.until(lambda: "PassthroughCluster" in agent.names(CLUSTER))
            async with agent.channel.stream(DEBUG_ATTACH, [("hostmesh-node", me.id)]) as call:

                async def answer() -> None:
                    while (message := await call.receive()) is not None:
                        request = debug_pb2.DebugRequest.FromString(message)
                        assert request.method == "GET"
                        assert request.path == "/config_dump?include_eds"
                        response = debug_pb2.DebugResponse(
                            id=request.id,
                            status=200,
                            content_type="application/json",
                            body=json.dumps(dump).encode(),
                        )
                        await call.send(response.SerializeToString())

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(answer)

                    async def attached() -> bool:
                        return bool(
                            (await in_thread(istiod.json, "proxy-status", "default/reviews-a"))["attached"]
                        )

                    await eventually(attached)
                    out = await in_thread(istiod.ok, "proxy-config", "clusters", "default/reviews-a")
                    assert "from.the.host" in out
                    # Another host that names this one as its own answers for itself only.
                    async with (
                        connected(
                            istiod.address("xds"), node("x", service_account="other"), other
                        ) as stranger,
                        stranger.channel.stream(DEBUG_ATTACH, [("hostmesh-node", me.id)]),
                    ):

                        async def stranger_attached() -> bool:
                            detail = await in_thread(istiod.json, "proxy-status", "default/x")
                            return bool(detail["attached"])

                        await eventually(stranger_attached)
                        again = await in_thread(istiod.ok, "proxy-config", "clusters", "default/reviews-a")
                        assert "from.the.host" in again
                    nursery.cancel_scope.cancel()

            async def detached() -> bool:
                return not (await in_thread(istiod.json, "proxy-status", "default/reviews-a"))["attached"]

            await eventually(detached)
            rows = await in_thread(istiod.ok, "proxy-config", "clusters", "default/reviews-a")
            assert "PassthroughCluster" in rows
            assert "virtualInbound" in str(
                await in_thread(istiod.json, "proxy-config", "listeners", "default/reviews-a")
            )
            assert "15001" in await in_thread(istiod.ok, "proxy-config", "listeners", "default/reviews-a")
            assert "9080" in await in_thread(istiod.ok, "proxy-config", "routes", "default/reviews-a")
            await agent.report(True)
            await agent.until(lambda: "127.0.0.1" in endpoints(agent, REVIEWS))
            rows = await in_thread(istiod.ok, "proxy-config", "endpoints", "default/reviews-a")
            assert "127.0.0.1:9080   HEALTHY" in rows
            assert "reviews" in await in_thread(istiod.ok, "proxy-config", "all", "default/reviews-a")

    trio.run(story)


def test_at_sigterm_streams_end_and_instances_stay(istiod: Istiod) -> None:
    async def story() -> None:
        (reviews,) = await joined(istiod, "reviews")
        me = node("reviews-a", "reviews", service_account="reviews")
        async with connected(istiod.address("xds"), me, reviews) as agent:
            await agent.report(True)

            async def healthy() -> bool:
                return (await workloads(istiod)).get("reviews-a", {}).get("health") == "healthy"

            await eventually(healthy)
            status = await in_thread(istiod.stop)
            assert status == 0
            assert agent.ended is not None
            assert agent.ended.status is GrpcStatus.UNAVAILABLE
        await in_thread(istiod.start)
        assert (await workloads(istiod))["reviews-a"]["health"] == "healthy"

    trio.run(story)


def test_names_reach_the_agents_name_table(istiod: Istiod) -> None:
    async def story() -> None:
        (reviews,) = await joined(istiod, "reviews")
        me = node("reviews-a", "reviews", service_account="reviews")
        async with connected(istiod.address("xds"), me, reviews) as agent:
            await agent.until(lambda: bool(agent.names(NAME_TABLE)))

            def resolved() -> bool:
                return any(
                    b"reviews.default.svc.cluster.local" in r.body
                    for r in agent.client.held(NAME_TABLE).values()
                )

            await agent.until(resolved)
            out = await in_thread(istiod.ok, "service", "list")
            assert "reviews.default.svc.cluster.local" in out
            assert "240.240." in out

    trio.run(story)
