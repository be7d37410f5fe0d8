"""A worker whose host process is gone. The worker is real, this process is its host process."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from google.protobuf import json_format

from agent.table.decode.types import message_class
from tests.attack.remote_worker import RemoteWorker
from tests.ports import free_port
from wire.xds import CLUSTER, LISTENER

TCP = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
message_class(TCP)  # so that json_format finds it


def address(port: int) -> dict[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


@contextmanager
def orphan_with_a_connection(
    folder: Path, drain_seconds: float
) -> Iterator[tuple[RemoteWorker, socket.socket, socket.socket]]:
    """The worker after its host process has gone, and both ends of a connection through it."""
    with ExitStack() as stack:
        backend = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        endpoint = {"endpoint": {"address": address(backend.getsockname()[1])}}
        cluster = {
            "name": "c",
            "type": "STATIC",
            "load_assignment": {"cluster_name": "c", "endpoints": [{"lb_endpoints": [endpoint]}]},
        }
        port = free_port()
        tcp = {"@type": f"type.googleapis.com/{TCP}", "stat_prefix": "x", "cluster": "c"}
        chains = [{"filters": [{"name": "tcp", "typed_config": tcp}]}]
        listener = {"name": "l", "address": address(port), "filter_chains": chains}
        worker = RemoteWorker(folder / "worker.log", drainSeconds=drain_seconds)
        stack.callback(worker.close)
        worker.apply(
            {
                CLUSTER: {"c": json_format.ParseDict(cluster, cluster_pb2.Cluster())},
                LISTENER: {"l": json_format.ParseDict(listener, listener_pb2.Listener())},
            }
        )
        downstream = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        downstream.sendall(b"hello")
        upstream = stack.enter_context(backend.accept()[0])
        upstream.settimeout(10)
        assert upstream.recv(5) == b"hello"
        worker.abandon()
        yield worker, downstream, upstream


def test_connections_of_a_worker_without_its_host_process_end_after_the_configured_drain(
    tmp_path: Path,
) -> None:
    with orphan_with_a_connection(tmp_path, 0.2) as (worker, downstream, _):
        assert worker.process.wait(10) == 0
        assert downstream.recv(1) == b""


def test_connections_of_a_worker_without_its_host_process_go_on_during_the_drain_and_it_ends_with_the_last(
    tmp_path: Path,
) -> None:
    with orphan_with_a_connection(tmp_path, 3600) as (worker, downstream, upstream):
        with pytest.raises(subprocess.TimeoutExpired):
            worker.process.wait(0.3)
        upstream.sendall(b"answer")
        assert downstream.recv(6) == b"answer"
        downstream.close()
        upstream.close()
        assert worker.process.wait(10) == 0
