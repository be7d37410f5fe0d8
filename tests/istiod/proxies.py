"""Hosts of the tests: they enrol as an agent does, and hold ADS streams over the wire's own client."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio
from envoy.config.core.v3 import base_pb2
from google.protobuf import json_format

from wire import tls, x509
from wire.grpc import ADS_DELTA, CREATE_CERTIFICATE, Channel, ClientCall, GrpcError, open_channel
from wire.proto import istio_ca_pb2
from wire.spiffe import SpiffeId
from wire.xds import (
    CLUSTER,
    ENDPOINT,
    LISTENER,
    NAME_TABLE,
    ROUTE,
    WILDCARD,
    DeltaClient,
    endpoint_names,
    health_request,
    route_names,
)

ISTIOD = SpiffeId("cluster.local", "hostmesh-system", "istiod")


@dataclass(frozen=True)
class Identity:
    """A workload's certificate with its key, and the root it trusts; PEM."""

    spiffe: SpiffeId
    chain: bytes
    key: bytes
    root: bytes

    def context(self) -> ssl.SSLContext:
        return tls.client_context(self.root, self.chain, self.key)


async def enrol(
    address: tuple[str, int], token: str, spiffe: SpiffeId, csr_for: SpiffeId | None = None
) -> Identity:
    """Join with a token: pin the root, verify istiod, ask for the certificate."""
    pin = token.rsplit(".", 1)[1]
    root = await tls.pinned_root(await trio.open_tcp_stream(*address), pin, "istiod")
    key = x509.new_key()

    async def connect() -> trio.abc.Stream:
        return await tls.connect(*address, tls.client_context(root), ISTIOD)

    request = istio_ca_pb2.IstioCertificateRequest(csr=x509.make_csr(key, csr_for or spiffe).decode())
    async with open_channel(connect, "istiod") as channel:
        answer = await channel.unary(
            CREATE_CERTIFICATE,
            request.SerializeToString(),
            [("authorization", f"Bearer {token}")],
            deadline=10,
        )
    chain = istio_ca_pb2.IstioCertificateResponse.FromString(answer).cert_chain
    return Identity(spiffe, "".join(chain).encode(), x509.key_to_pem(key), chain[-1].encode())


def node(
    name: str,
    service: str = "",
    *,
    namespace: str = "default",
    service_account: str = "default",
    labels: dict[str, str] | None = None,
    port: int = 9080,
    address: str = "127.0.0.1",
    extra: dict[str, Any] | None = None,
) -> base_pb2.Node:
    """A node as an agent describes itself."""
    message = base_pb2.Node(id=f"sidecar~{address}~{name}.{namespace}~{namespace}.svc.cluster.local")
    metadata: dict[str, Any] = {
        "NAMESPACE": namespace,
        "SERVICE_ACCOUNT": service_account,
        "LABELS": labels or {"app": service},
        "INSTANCE_IPS": address,
        "WORKLOAD_NAME": name,
        "NODE_NAME": "test-host",
        "ISTIO_VERSION": "0.1.0",
        **(extra or {}),
    }
    if service:
        metadata["HOSTMESH_WORKLOAD"] = {
            "service": service,
            "namespace": namespace,
            "ports": [{"name": "http", "port": port}],
        }
    json_format.ParseDict(metadata, message.metadata)
    return message


class Proxy:
    """One ADS stream as an agent holds it. `refuse`: types whose next responses are refused with a reason."""

    def __init__(self, call: ClientCall, channel: Channel, proxy_node: base_pb2.Node) -> None:
        self.call = call
        self.channel = channel
        self.client = DeltaClient(
            proxy_node, {CLUSTER: WILDCARD, LISTENER: WILDCARD, NAME_TABLE: WILDCARD, ENDPOINT: (), ROUTE: ()}
        )
        self.refuse: dict[str, str] = {}
        self.updates = 0
        self.received: list[str] = []
        self.answering = trio.Event()
        """Unset: responses are read, and not answered."""
        self.answering.set()
        self.ended: GrpcError | None = None
        self._changed = trio.Event()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        started = False
        try:
            # A stream that is refused may end before the last of these is sent.
            for request in self.client.start():
                await self.call.send(request)
            task_status.started()
            started = True
            await self._follow()
        except GrpcError as error:
            self.ended = error
            if not started:
                task_status.started()
        finally:
            self._changed.set()

    async def _follow(self) -> None:
        while (message := await self.call.receive()) is not None:
            update = self.client.receive(message)
            self.received.append(update.type_url)
            await self.answering.wait()
            if update.type_url in self.refuse:
                await self.call.send(self.client.nack(update, self.refuse[update.type_url]))
            else:
                await self.call.send(self.client.ack(update))
                await self._follow_references(update.type_url)
            self.updates += 1
            self._changed.set()
            self._changed = trio.Event()

    async def _follow_references(self, type_url: str) -> None:
        held = self.client.held(type_url).values()
        request = None
        if type_url == CLUSTER:
            request = self.client.subscribe(ENDPOINT, endpoint_names(held))
        elif type_url == LISTENER:
            request = self.client.subscribe(ROUTE, route_names(held))
        if request is not None:
            await self.call.send(request)

    async def report(self, healthy: bool, message: str = "") -> None:
        await self.call.send(health_request(healthy, message))

    async def until(self, condition: Any, seconds: float = 10.0) -> None:
        """Wait until `condition()` holds, looking after every update; raises what ended the stream."""
        with trio.fail_after(seconds):
            while not condition():
                if self.ended is not None:
                    raise self.ended
                await self._changed.wait()

    def names(self, type_url: str) -> set[str]:
        return set(self.client.held(type_url))


@asynccontextmanager
async def connected(
    address: tuple[str, int], proxy_node: base_pb2.Node, identity: Identity | None
) -> AsyncIterator[Proxy]:
    """An open ADS stream that acknowledges everything; leaving the block breaks the connection."""

    async def connect() -> trio.abc.Stream:
        if identity is None:
            return await trio.open_tcp_stream(*address)
        return await tls.connect(*address, identity.context(), ISTIOD)

    async with open_channel(connect, "istiod") as channel, channel.stream(ADS_DELTA) as call:
        proxy = Proxy(call, channel, proxy_node)
        async with trio.open_nursery() as nursery:
            await nursery.start(proxy.run)
            yield proxy
            nursery.cancel_scope.cancel()
