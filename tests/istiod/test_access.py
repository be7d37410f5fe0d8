"""Who may serve what, against a real istiod: grants, clones, impostors, revocation, eviction."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from envoy.config.cluster.v3 import cluster_pb2
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2
from google.protobuf.any_pb2 import Any as AnyMessage

from tests.istiod.conftest import Istiod
from tests.istiod.observing import REVIEWS, endpoints, eventually, workloads
from tests.istiod.proxies import ISTIOD, Identity, Proxy, connected, enrol, node
from wire import tls
from wire.grpc import CREATE_CERTIFICATE, GrpcError, GrpcStatus, open_channel
from wire.proto import istio_ca_pb2
from wire.spiffe import SpiffeId
from wire.x509 import load_chain, make_csr, new_key
from wire.xds import CLUSTER

REVIEWS_ID = SpiffeId("cluster.local", "default", "reviews")


async def meshctl(istiod: Istiod, *arguments: str) -> str:
    return await trio.to_thread.run_sync(istiod.ok, *arguments)


async def host(istiod: Istiod, account: str, *options: str) -> Identity:
    """The identity of a new host, which joins with a token of these options."""
    token = (await meshctl(istiod, "token", "create", "-s", account, *options)).strip()
    return await enrol(istiod.address("xds"), token, SpiffeId("cluster.local", "default", account))


def accepted(proxy: Proxy, cluster: str = REVIEWS) -> set[str]:
    """The identities that a caller accepts of a cluster's servers."""
    message = cluster_pb2.Cluster()
    AnyMessage.FromString(proxy.client.held(CLUSTER)[cluster].body).Unpack(message)
    found: set[str] = set()
    for match in message.transport_socket_matches:
        context = tls_pb2.UpstreamTlsContext()
        if match.transport_socket.typed_config.Unpack(context):
            validation = context.common_tls_context.combined_validation_context.default_validation_context
            found |= {san.matcher.exact for san in validation.match_typed_subject_alt_names}
    return found


@asynccontextmanager
async def serving(istiod: Istiod, identity: Identity, name: str, **more: Any) -> AsyncIterator[Proxy]:
    """A host of `reviews` whose probe passes."""
    me = node(name, "reviews", service_account=identity.spiffe.service_account, **more)
    async with connected(istiod.address("xds"), me, identity) as agent:
        await agent.report(True)
        yield agent


async def ended(proxy: Proxy) -> GrpcStatus:
    """How istiod ends a stream that it ends soon."""
    with pytest.raises(GrpcError) as end:
        await proxy.until(lambda: False)
    return end.value.status


def test_a_host_cannot_register_as_a_service_that_it_was_not_granted(istiod: Istiod) -> None:
    async def story() -> None:
        reviews = await host(istiod, "reviews", "--service", "reviews")
        ratings = await host(istiod, "ratings", "--service", "ratings")
        caller = await host(istiod, "caller")
        async with (
            connected(istiod.address("xds"), node("caller-a", service_account="caller"), caller) as watcher,
            serving(istiod, reviews, "reviews-a", address="127.0.0.7"),
        ):
            await watcher.until(lambda: endpoints(watcher, REVIEWS) == {"127.0.0.7": 1})
            for name in ("reviews-b", "reviews-a"):  # beside the real one, and in its place
                async with serving(istiod, ratings, name, address="127.0.0.8") as impostor:
                    await impostor.until(lambda: impostor.updates > 0)
                    metadata = impostor.call.initial_metadata.get("hostmesh-not-registered") or ""
                    assert metadata.startswith("default/ratings may not serve default/reviews")
                    status = await trio.to_thread.run_sync(istiod.meshctl, "proxy-status")
                    assert "is not registered: default/ratings may not serve" in status.stderr
                    assert list(await workloads(istiod)) == ["reviews-a"]
                    await impostor.report(False, "leaving")
            assert endpoints(watcher, REVIEWS) == {"127.0.0.7": 1}
            assert accepted(watcher) == {str(REVIEWS_ID)}
            listed = await workloads(istiod)
            assert (listed["reviews-a"]["health"], listed["reviews-a"]["serviceAccount"]) == (
                "healthy",
                "reviews",
            )

    trio.run(story)


def test_a_grant_takes_effect_without_a_restart_and_ends_when_it_is_withdrawn(istiod: Istiod) -> None:
    async def story() -> None:
        ratings = await host(istiod, "ratings")
        caller = await host(istiod, "caller")
        async with connected(
            istiod.address("xds"), node("caller-a", service_account="caller"), caller
        ) as watcher:
            async with serving(istiod, ratings, "ratings-a") as agent:
                await agent.until(lambda: agent.updates > 0)
                shown = await meshctl(istiod, "service", "grants", "default/reviews", "--add", "ratings")
                assert "ratings" in shown and "meshctl" in shown
                assert await ended(agent) is GrpcStatus.UNAVAILABLE
            async with serving(istiod, ratings, "ratings-a") as agent:
                await watcher.until(lambda: endpoints(watcher, REVIEWS) == {"127.0.0.1": 1})
                assert accepted(watcher) == {"spiffe://cluster.local/ns/default/sa/ratings"}
                await meshctl(istiod, "service", "grants", "default/reviews", "--remove", "ratings")
                assert await ended(agent) is GrpcStatus.UNAVAILABLE
            await watcher.until(lambda: endpoints(watcher, REVIEWS) == {})

            async def gone() -> bool:
                return not await workloads(istiod)

            await eventually(gone)

    trio.run(story)


def test_an_instance_is_where_its_connection_comes_from_or_where_it_was_granted(istiod: Istiod) -> None:
    async def story() -> None:
        own = await host(istiod, "reviews", "--service", "reviews")
        async with serving(istiod, own, "reviews-a", address="192.0.2.7") as agent:
            await agent.until(lambda: agent.updates > 0)
            reason = agent.call.initial_metadata.get("hostmesh-not-registered") or ""
            assert "at its own address (127.0.0.1), not at 192.0.2.7" in reason
            await meshctl(
                istiod,
                "service",
                "grants",
                "default/reviews",
                "--add",
                "reviews",
                "--address",
                "192.0.2.0/24",
            )
            assert await ended(agent) is GrpcStatus.UNAVAILABLE
        two = {"INSTANCE_IPS": "192.0.2.7,198.51.100.1"}
        async with serving(istiod, own, "reviews-a", address="192.0.2.7", extra=two):

            async def there() -> bool:
                return "reviews-a" in await workloads(istiod)

            await eventually(there)
            assert (await workloads(istiod))["reviews-a"]["addresses"] == ["192.0.2.7"]
            assert "addresses are not registered" in istiod.log

    trio.run(story)


def test_two_hosts_with_one_name_both_serve_and_one_that_leaves_ends_itself_only(istiod: Istiod) -> None:
    async def story() -> None:
        identity = await host(istiod, "reviews", "--service", "reviews")
        caller = await host(istiod, "caller")
        async with (
            connected(istiod.address("xds"), node("caller-a", service_account="caller"), caller) as watcher,
            serving(istiod, identity, "reviews-debian", address="127.0.0.2"),
        ):
            async with serving(istiod, identity, "reviews-debian", address="127.0.0.3") as clone:
                await watcher.until(lambda: endpoints(watcher, REVIEWS) == {"127.0.0.2": 1, "127.0.0.3": 1})
                names = set(await workloads(istiod))
                assert len(names) == 2 and "reviews-debian" in names
                table = await meshctl(istiod, "proxy-status")
                assert all(f"default/{name} " in table for name in names)
                await clone.report(False, "leaving")
                await watcher.until(lambda: endpoints(watcher, REVIEWS) == {"127.0.0.2": 1})
            await trio.sleep(2 * istiod.grace)
            assert endpoints(watcher, REVIEWS) == {"127.0.0.2": 1}

    trio.run(story)


def test_a_workload_group_lets_its_hosts_serve(istiod: Istiod) -> None:
    group = """
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: reviews-vms, namespace: default}
spec:
  metadata: {labels: {app: reviews, tier: backend}}
  template: {serviceAccount: reviews, ports: {http: 8080}}
"""

    async def story() -> None:
        identity = await host(istiod, "reviews")
        await trio.to_thread.run_sync(lambda: istiod.ok("apply", "-f", "-", stdin=group))

        async def granted() -> bool:
            return "WorkloadGroup reviews-vms" in await meshctl(
                istiod, "service", "grants", "default/reviews"
            )

        await eventually(granted)
        async with serving(istiod, identity, "reviews-a", labels={"tier": "mine", "version": "v1"}):

            async def there() -> bool:
                return "reviews-a" in await workloads(istiod)

            await eventually(there)
            listed = (await workloads(istiod))["reviews-a"]
            assert listed["labels"] == {"app": "reviews", "tier": "backend", "version": "v1"}
            assert listed["ports"] == [{"name": "http", "port": 9080, "targetPort": 8080}]
        kept = await trio.to_thread.run_sync(
            istiod.meshctl, "service", "grants", "default/reviews", "--remove", "reviews"
        )
        assert kept.returncode == 1 and "WorkloadGroup reviews-vms grants" in kept.stderr

    trio.run(story)


async def renew(istiod: Istiod, identity: Identity) -> None:
    async def connect() -> trio.abc.Stream:
        return await tls.connect(*istiod.address("xds"), identity.context(), ISTIOD)

    request = istio_ca_pb2.IstioCertificateRequest(csr=make_csr(new_key(), identity.spiffe).decode())
    async with open_channel(connect, "istiod") as channel:
        await channel.unary(CREATE_CERTIFICATE, request.SerializeToString(), deadline=10)


def test_a_revoked_identity_gets_nothing_and_is_accepted_by_nobody(istiod: Istiod) -> None:
    async def story() -> None:
        identity = await host(istiod, "reviews", "--service", "reviews")
        caller = await host(istiod, "caller")
        async with connected(
            istiod.address("xds"), node("caller-a", service_account="caller"), caller
        ) as watcher:
            async with serving(istiod, identity, "reviews-a") as agent:
                await watcher.until(lambda: endpoints(watcher, REVIEWS) == {"127.0.0.1": 1})
                await meshctl(istiod, "identity", "revoke", str(REVIEWS_ID), "--reason", "stolen")
                assert await ended(agent) is GrpcStatus.PERMISSION_DENIED
            await watcher.until(lambda: endpoints(watcher, REVIEWS) == {})
            assert str(REVIEWS_ID) not in accepted(watcher)
            async with serving(istiod, identity, "reviews-a") as again:
                assert await ended(again) is GrpcStatus.PERMISSION_DENIED
            with pytest.raises(GrpcError, match="was revoked"):
                await renew(istiod, identity)
            token = (
                await meshctl(istiod, "token", "create", "-s", "reviews", "--service", "reviews")
            ).strip()
            with pytest.raises(GrpcError, match="was revoked"):
                await enrol(istiod.address("xds"), token, REVIEWS_ID)
            assert "stolen" in await meshctl(istiod, "identity", "revocations")
            await meshctl(istiod, "identity", "restore", str(REVIEWS_ID))

            async def renewed() -> bool:
                try:
                    await renew(istiod, identity)
                except GrpcError:
                    return False
                return True

            await eventually(renewed)

    trio.run(story)


def test_a_revoked_certificate_ends_one_host_and_not_the_others_of_its_identity(istiod: Istiod) -> None:
    async def story() -> None:
        first, second = [await host(istiod, "reviews", "--service", "reviews") for _ in range(2)]
        serial = f"{load_chain(first.chain)[0].serial_number:x}"
        async with (
            serving(istiod, first, "reviews-a", address="127.0.0.2") as stolen,
            serving(istiod, second, "reviews-b", address="127.0.0.3") as honest,
        ):
            await honest.until(lambda: honest.updates > 0)
            await meshctl(istiod, "identity", "revoke", serial.upper())
            assert await ended(stolen) is GrpcStatus.PERMISSION_DENIED
            with pytest.raises(GrpcError, match=rf"the certificate {serial} .* was revoked"):
                await renew(istiod, first)
            await renew(istiod, second)
            assert honest.ended is None

            async def alone() -> bool:
                return list(await workloads(istiod)) == ["reviews-b"]

            await eventually(alone)

    trio.run(story)


def test_an_evicted_workload_is_out_until_it_is_readmitted(istiod: Istiod) -> None:
    async def story() -> None:
        identity = await host(istiod, "reviews", "--service", "reviews")
        async with serving(istiod, identity, "reviews-a") as agent:

            async def there() -> bool:
                return "reviews-a" in await workloads(istiod)

            await eventually(there)
            await meshctl(istiod, "workload", "evict", "default/reviews-a", "--reason", "its disk fails")
            assert await ended(agent) is GrpcStatus.UNAVAILABLE

        async def out() -> bool:
            return not await workloads(istiod)

        await eventually(out)
        async with serving(istiod, identity, "reviews-a") as agent:
            await agent.until(lambda: agent.updates > 0)
            reason = agent.call.initial_metadata.get("hostmesh-not-registered") or ""
            assert "was evicted: its disk fails" in reason
            assert not await workloads(istiod)
            await meshctl(istiod, "workload", "readmit", "default/reviews-a")
            assert await ended(agent) is GrpcStatus.UNAVAILABLE
        async with serving(istiod, identity, "reviews-a"):
            await eventually(there)

    trio.run(story)


def test_a_service_that_nobody_uses_is_deleted_with_its_grants(istiod: Istiod) -> None:
    async def story() -> None:
        identity = await host(istiod, "reviews", "--service", "reviews")
        async with serving(istiod, identity, "reviews-a") as agent:

            async def there() -> bool:
                return "reviews-a" in await workloads(istiod)

            await eventually(there)
            kept = await trio.to_thread.run_sync(istiod.meshctl, "service", "delete", "default/reviews")
            assert kept.returncode == 1 and "has instances" in kept.stderr
            await agent.report(False, "leaving")

        async def deleted() -> bool:
            done = await trio.to_thread.run_sync(istiod.meshctl, "service", "delete", "default/reviews")
            return done.returncode == 0

        await eventually(deleted)

        async def empty() -> bool:
            return "reviews" not in await meshctl(istiod, "service", "list")

        await eventually(empty)
        assert "reviews" not in (await meshctl(istiod, "service", "grants", "default/reviews"))

    trio.run(story)
