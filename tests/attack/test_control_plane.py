"""Hostile peers of istiod's xDS port: floods of connections, requests, streams, types and names, with bounded counts.

Each test holds the attack in place and asserts that another host, from an address of its own, is served as before.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
from envoy.service.discovery.v3 import discovery_pb2

from tests.istiod.conftest import Istiod
from tests.istiod.proxies import ISTIOD, Identity, Proxy, node
from wire import tls, x509
from wire.grpc import ADS_DELTA, CREATE_CERTIFICATE, Channel, GrpcError, GrpcStatus, open_channel
from wire.proto import istio_ca_pb2
from wire.spiffe import SpiffeId
from wire.xds import CLUSTER, DeltaClient

ATTACKER, HEALTHY = "127.0.0.66", "127.0.0.1"
PROMPT = 2.0
"""Seconds within which a healthy host gets its configuration while the attack goes on; without an attack about 0.1."""


@pytest.fixture(scope="module")
def istiod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Istiod]:
    process = Istiod(tmp_path_factory.mktemp("attacked"), extra="limits: {streamsPerPeer: 20}\n").start()
    try:
        yield process
    finally:
        process.stop()


async def identity(istiod: Istiod, account: str) -> Identity:
    from tests.istiod.proxies import enrol

    create = ("token", "create", "-s", account, "--service", account)
    token = (await trio.to_thread.run_sync(istiod.ok, *create)).strip()
    return await enrol(istiod.address("xds"), token, SpiffeId("cluster.local", "default", account))


async def dial(istiod: Istiod, source: str) -> trio.SocketStream:
    host, port = istiod.address("xds")
    return await trio.open_tcp_stream(host, port, local_address=source)


@asynccontextmanager
async def channel(istiod: Istiod, source: str, who: Identity | None, root: bytes) -> AsyncIterator[Channel]:
    context = who.context() if who is not None else tls.client_context(root)

    async def connect() -> trio.abc.Stream:
        return await tls.handshake(await dial(istiod, source), context, ISTIOD, "istiod")

    async with open_channel(connect, "istiod") as opened:
        yield opened


async def is_served(istiod: Istiod, who: Identity, name: str = "healthy") -> float:
    """Seconds until a healthy host has its clusters on a new connection."""
    began = time.perf_counter()
    me = node(name, service_account=who.spiffe.service_account)
    async with channel(istiod, HEALTHY, who, b"") as opened, opened.stream(ADS_DELTA) as call:
        proxy = Proxy(call, opened, me)
        async with trio.open_nursery() as nursery:
            await nursery.start(proxy.run)
            await proxy.until(lambda: "PassthroughCluster" in proxy.names(CLUSTER))
            nursery.cancel_scope.cancel()
    return time.perf_counter() - began


def memory(istiod: Istiod) -> int:
    """Resident bytes of istiod."""
    assert istiod.process is not None
    status = Path(f"/proc/{istiod.process.pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def run(story: object) -> None:
    async def limited() -> None:
        with trio.fail_after(60):
            await story()  # type: ignore[operator]

    trio.run(limited)


def test_connections_that_never_shake_hands_keep_no_host_waiting(istiod: Istiod) -> None:
    async def story() -> None:
        healthy = await identity(istiod, "healthy")
        async with AsyncExitStack() as stack:
            for _ in range(400):
                stack.push_async_callback((await dial(istiod, ATTACKER)).aclose)
            assert await is_served(istiod, healthy) < PROMPT

    run(story)


def test_peers_without_a_certificate_have_a_budget_of_their_own(istiod: Istiod) -> None:
    async def story() -> None:
        healthy = await identity(istiod, "healthy")
        async with AsyncExitStack() as stack:
            refused = 0
            for _ in range(100):
                try:
                    opened = await stack.enter_async_context(channel(istiod, ATTACKER, None, healthy.root))
                    with pytest.raises(GrpcError) as refusal:
                        await opened.unary(CREATE_CERTIFICATE, b"", deadline=10)
                    refused += refusal.value.status is GrpcStatus.UNAVAILABLE
                except (trio.BrokenResourceError, OSError):
                    refused += 1
            assert 30 <= refused <= 40, "64 of one source may stay"
            assert await is_served(istiod, healthy) < PROMPT
            joined = await identity(istiod, "newcomer")
            assert joined.spiffe.service_account == "newcomer", "others may join meanwhile"

    run(story)


def test_guessed_tokens_and_broken_requests_are_refused_before_they_are_read(istiod: Istiod) -> None:
    async def story() -> None:
        healthy = await identity(istiod, "healthy")
        lines = istiod.log.count("certificate refused")
        csr = x509.make_csr(x509.new_key(), SpiffeId("cluster.local", "default", "healthy")).decode()
        request = istio_ca_pb2.IstioCertificateRequest(csr=csr).SerializeToString()
        guess = f"hm1.{'0' * 12}.{'A' * 43}.{x509.fingerprint(x509.load_chain(healthy.root)[0])}"
        statuses: list[GrpcStatus] = []

        async def attack(opened: Channel) -> None:
            for _ in range(50):
                with pytest.raises(GrpcError) as refusal:
                    await opened.unary(
                        CREATE_CERTIFICATE, request, [("authorization", f"Bearer {guess}")], deadline=20
                    )
                statuses.append(refusal.value.status)

        async with (
            channel(istiod, "127.0.0.67", None, healthy.root) as opened,
            trio.open_nursery() as nursery,
        ):
            for _ in range(8):
                nursery.start_soon(attack, opened)
            assert await is_served(istiod, healthy) < PROMPT
        assert (
            statuses.count(GrpcStatus.UNAUTHENTICATED) + statuses.count(GrpcStatus.RESOURCE_EXHAUSTED) == 400
        )
        assert statuses.count(GrpcStatus.UNAUTHENTICATED) < 250
        assert istiod.log.count("certificate refused") - lines < 250
        assert await is_served(istiod, healthy) < PROMPT

    run(story)


def test_one_identity_opens_a_bounded_number_of_streams(istiod: Istiod) -> None:
    async def story() -> None:
        healthy, greedy = await identity(istiod, "healthy"), await identity(istiod, "greedy")
        async with channel(istiod, ATTACKER, greedy, b"") as opened, AsyncExitStack() as stack:
            refused = 0
            for number in range(30):
                call = await stack.enter_async_context(opened.stream(ADS_DELTA))
                client = DeltaClient(node(f"greedy-{number}", service_account="greedy"), {CLUSTER: "*"})
                for message in client.start():
                    await call.send(message)
                try:
                    await call.receive()
                except GrpcError as error:
                    assert error.status is GrpcStatus.RESOURCE_EXHAUSTED
                    refused += 1
            assert refused == 10
            assert await is_served(istiod, healthy) < PROMPT

    run(story)


def test_types_that_are_not_served_leave_nothing_behind(istiod: Istiod) -> None:
    async def story() -> None:
        curious = await identity(istiod, "curious")
        me = node("curious", service_account="curious")
        async with channel(istiod, ATTACKER, curious, b"") as opened, opened.stream(ADS_DELTA) as call:
            proxy = Proxy(call, opened, me)
            async with trio.open_nursery() as nursery:
                await nursery.start(proxy.run)
                for number in range(500):
                    request = discovery_pb2.DeltaDiscoveryRequest(type_url=f"type.googleapis.com/x.T{number}")
                    await call.send(request.SerializeToString())
                await proxy.until(lambda: "PassthroughCluster" in proxy.names(CLUSTER))
                detail = await trio.to_thread.run_sync(istiod.json, "proxy-status", "default/curious")
                assert len(detail["types"]) <= 5
                assert "x.T1" not in istiod.monitoring("/metrics")[1]
                nursery.cancel_scope.cancel()

    run(story)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([f"outbound|80||{number:0>900}" for number in range(3000)], "bytes of names"),
        (["x" * 2000], "a name of more than"),
    ],
)
def test_names_without_end_end_their_own_stream(istiod: Istiod, names: list[str], reason: str) -> None:
    async def story() -> None:
        healthy, greedy = await identity(istiod, "healthy"), await identity(istiod, "greedy")
        before = memory(istiod)
        async with channel(istiod, ATTACKER, greedy, b"") as opened, opened.stream(ADS_DELTA) as call:
            for message in DeltaClient(node("greedy", service_account="greedy"), {CLUSTER: names}).start():
                await call.send(message)
            with pytest.raises(GrpcError, match=reason) as end:
                while await call.receive() is not None:
                    continue
            assert end.value.status is GrpcStatus.INVALID_ARGUMENT
        assert await is_served(istiod, healthy) < PROMPT
        assert memory(istiod) - before < 40 * 1024 * 1024

    run(story)


def test_requests_without_end_end_their_own_stream(istiod: Istiod) -> None:
    async def story() -> None:
        healthy, noisy = await identity(istiod, "healthy"), await identity(istiod, "noisy")
        async with channel(istiod, ATTACKER, noisy, b"") as opened, opened.stream(ADS_DELTA) as call:
            client = DeltaClient(node("noisy", service_account="noisy"), {CLUSTER: "*"})
            with pytest.raises(GrpcError, match="requests a second"):
                for message in client.start():
                    await call.send(message)
                again = discovery_pb2.DeltaDiscoveryRequest(type_url=CLUSTER).SerializeToString()
                for _ in range(20_000):
                    await call.send(again)
                while await call.receive() is not None:
                    continue
        assert await is_served(istiod, healthy) < PROMPT

    run(story)


def test_a_node_writes_no_line_of_the_log(istiod: Istiod) -> None:
    async def story() -> None:
        liar = await identity(istiod, "liar")
        forged = "2026-11-27T00:00:00.000Z error   istiod       all is lost"
        me = node("liar", service_account="liar", extra={"INSTANCE_IPS": f"1\n{forged}"})
        async with channel(istiod, ATTACKER, liar, b"") as opened, opened.stream(ADS_DELTA) as call:
            for message in DeltaClient(me, {CLUSTER: "*"}).start():
                await call.send(message)
            with pytest.raises(GrpcError):
                await call.receive()
        assert "all is lost" in istiod.log
        assert not any(line.startswith(forged[:40]) for line in istiod.log.splitlines())

    run(story)


def test_a_stream_is_ended_at_its_age_and_its_instance_stays(tmp_path: Path) -> None:
    young = Istiod(tmp_path, grace=30, extra="limits: {streamMaxAge: 1s}\n").start()
    try:

        async def story() -> None:
            reviews = await identity(young, "reviews")
            me = node("reviews-a", "reviews", service_account="reviews")
            for _ in range(2):
                async with channel(young, HEALTHY, reviews, b"") as opened, opened.stream(ADS_DELTA) as call:
                    proxy = Proxy(call, opened, me)
                    began = trio.current_time()
                    await call.send(b"".join(proxy.client.start()[:1]))
                    await proxy.report(True)
                    with pytest.raises(GrpcError, match="connect anew") as end:
                        while await call.receive() is not None:
                            continue
                    assert end.value.status is GrpcStatus.UNAVAILABLE
                    assert 0.8 < trio.current_time() - began < 3
                (listed,) = young.api("/api/v1/workloads")["items"]
                assert (listed["name"], listed["health"]) == ("reviews-a", "healthy")

        run(story)
    finally:
        young.stop()
