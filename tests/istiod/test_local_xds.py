"""xDS in plain text on a Unix socket: whom the file's mode lets connect gets configuration, and nothing else."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import trio
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from istiod import server
from istiod.config import parse
from tests.istiod.conftest import Istiod
from tests.istiod.proxies import node
from wire.xds import CLUSTER, LISTENER


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "xds.sock"


@pytest.fixture
def istiod(tmp_path: Path, socket_path: Path) -> Iterator[Istiod]:
    process = Istiod(
        tmp_path, plaintext=f"unix://{socket_path}", extra="limits: {streamsPerPeer: 2}\n"
    ).start()
    try:
        yield process
    finally:
        process.stop()


def clusters(path: Path) -> set[str]:
    """The names of the clusters that a client of grpcio is given at the socket."""
    with grpc.insecure_channel(f"unix:{path}") as channel:
        stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
        asked = discovery_pb2.DeltaDiscoveryRequest(node=node("envoy-a", "reviews"), type_url=CLUSTER)
        answer = next(stub.DeltaAggregatedResources(iter([asked]), timeout=20))
        return {resource.name for resource in answer.resources}


def refused(directory: Path, plaintext: str) -> str:
    """Why an istiod beside the first does not start."""
    config = parse(
        f'stateDir: {directory}/second\nlisten: {{xds: "127.0.0.1:0", admin: "127.0.0.1:0", '
        f'monitoring: "127.0.0.1:0", xdsPlaintext: "{plaintext}"}}\n',
        "second.yaml",
    )

    async def start() -> None:
        with trio.fail_after(20):
            await server.run(config, {})

    mask = os.umask(0o077)
    try:
        with pytest.raises(server.StartError) as failure:
            trio.run(start)
    finally:
        os.umask(mask)
    return str(failure.value)


def test_grpcio_gets_configuration_at_a_unix_socket_and_registers_nothing(
    istiod: Istiod, socket_path: Path
) -> None:
    assert istiod.about["listen"]["xdsPlaintext"] == f"unix://{socket_path}"
    assert socket_path.stat().st_mode & 0o777 == 0o600
    with grpc.insecure_channel(f"unix:{socket_path}") as channel:
        stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)

        finished = threading.Event()

        def requests() -> Iterator[discovery_pb2.DiscoveryRequest]:
            yield discovery_pb2.DiscoveryRequest(node=node("envoy-a", "reviews"), type_url=LISTENER)
            finished.wait(20)

        def stream() -> grpc.Call:
            return stub.StreamAggregatedResources(requests(), timeout=20)

        first, other = stream(), stream()
        assert len(next(first).resources) >= 2
        assert len(next(other).resources) >= 2
        shown = istiod.json("proxy-status", "default/envoy-a")
        assert (shown["identity"], shown["address"]) == ("", f"unix uid {os.getuid()}")
        assert istiod.api("/api/v1/workloads")["items"] == []
        with pytest.raises(grpc.RpcError) as excess:
            next(stream())
        assert excess.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert f"anonymous at unix uid {os.getuid()}" in excess.value.details()
        finished.set()
    assert istiod.stop() == 0
    assert not socket_path.exists()


def test_a_socket_that_cannot_be_had_is_named_with_its_field_and_that_of_a_killed_istiod_is_replaced(
    istiod: Istiod, socket_path: Path, tmp_path: Path
) -> None:
    file = tmp_path / "precious"
    file.write_text("stays")
    for path, reason in (
        (socket_path, "another process listens there"),
        (file, "a file that is not a socket is there"),
        (tmp_path / "nowhere" / "xds.sock", f"there is no folder {tmp_path}/nowhere; make it first"),
    ):
        why = f"listen.xdsPlaintext: cannot listen at {path}: {reason}"
        assert refused(tmp_path, f"unix://{path}") == why
    assert file.read_text() == "stays"
    assert "PassthroughCluster" in clusters(socket_path)
    istiod.kill()
    assert socket_path.is_socket()
    istiod.start()
    assert "PassthroughCluster" in clusters(socket_path)
