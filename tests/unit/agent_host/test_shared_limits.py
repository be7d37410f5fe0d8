"""The real workers of `run` keep one limit together, and what a killed one held is free again."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from functools import partial
from typing import Any

import trio
import yaml
from envoy.config.bootstrap.v3 import bootstrap_pb2
from google.protobuf import any_pb2

from agent.host.workers.dataplane import Bodies, Dataplane
from agent.table.decode.text import parse

_TYPE = "type.googleapis.com/envoy.extensions.filters."
_CALLS = 24
_REQUESTS, _TOKENS = 7, 9


def resources(port: int, limited: int, upstream: int) -> Bodies:
    """A listener in front of a cluster that takes so many requests, and one that answers by rate."""
    router = {"name": "router", "typed_config": {"@type": _TYPE + "http.router.v3.Router"}}
    always = {"default_value": {"numerator": 100}}
    bucket = {"max_tokens": _TOKENS, "tokens_per_fill": 1, "fill_interval": "3600s"}
    rate = {
        "@type": _TYPE + "http.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "x", "token_bucket": bucket, "filter_enabled": always, "filter_enforced": always,
    }  # fmt: skip

    def listener(at: int, action: dict[str, Any], *filters: dict[str, Any]) -> dict[str, Any]:
        route = {"match": {"prefix": "/"}, **action}
        manager = {
            "@type": _TYPE + "network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "x", "codec_type": "HTTP1", "http_filters": [*filters, router],
            "route_config": {"virtual_hosts": [{"name": "x", "domains": ["*"], "routes": [route]}]},
        }  # fmt: skip
        return {
            "name": str(at),
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": at}},
            "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}],
        }

    endpoint = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": upstream}}}
    static = {
        "listeners": [
            listener(port, {"route": {"cluster": "a", "timeout": "0s"}}),
            listener(limited, {"direct_response": {"status": 200}}, {"name": "rl", "typed_config": rate}),
        ],
        "clusters": [
            {
                "name": "a",
                "type": "STATIC",
                "circuit_breakers": {"thresholds": [{"max_requests": _REQUESTS}]},
                "load_assignment": {
                    "cluster_name": "a",
                    "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
                },
            }
        ],
    }
    text = yaml.safe_dump({"static_resources": static})
    message = parse(text, bootstrap_pb2.Bootstrap, "test")
    found: dict[str, dict[str, bytes]] = {}
    for resource in (*message.static_resources.listeners, *message.static_resources.clusters):
        packed = any_pb2.Any()
        packed.Pack(resource)
        found.setdefault(packed.type_url, {})[resource.name] = packed.SerializeToString()
    return found


class Loopback:
    """The upstream, which never answers, and clients."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._told, self._news = trio.open_memory_channel[bytes](1000)

    async def upstream(self, stream: trio.SocketStream) -> None:
        if await stream.receive_some(65536):
            await self._told.send(b"asked")
            await trio.sleep_forever()

    async def _client(self, port: int) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            with suppress(trio.BrokenResourceError):
                if data := await stream.receive_some(65536):
                    await self._told.send(data)
                    await trio.sleep_forever()

    async def call(self, port: int) -> bytes:
        """A new client's request: `asked` if it came through to the upstream, else the status of its answer."""
        self._nursery.start_soon(self._client, port)
        return (await self._news.receive()).removeprefix(b"HTTP/1.1 ")[:5].strip()

    async def calls(self, port: int) -> list[bytes]:
        return [await self.call(port) for _ in range(_CALLS)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


async def held(dataplane: Dataplane) -> list[int]:
    """Requests in flight, by worker."""
    found = []
    for worker in dataplane.workers:
        (cluster,) = await worker.query("clusters")
        (endpoint,) = cluster["host_statuses"]
        found += [int(each["value"]) for each in endpoint["stats"] if each["name"] == "rq_active"]
    return found


def test_two_workers_keep_one_limit_and_a_killed_one_gives_back_what_it_held() -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                dataplane = Dataplane(2, None, lambda: 0.5)
                await nursery.start(dataplane.run)
                loopback = Loopback(nursery)
                (server,) = await nursery.start(
                    partial(trio.serve_tcp, loopback.upstream, 0, host="127.0.0.1")
                )
                port, limited = free_port(), free_port()
                upstream = server.socket.getsockname()[1]
                await dataplane.change("default/a", resources(port, limited, upstream))

                answers = await loopback.calls(port)
                assert answers.count(b"asked") == _REQUESTS
                assert answers.count(b"503 S") == _CALLS - _REQUESTS
                assert (await loopback.calls(limited)).count(b"200 O") == _TOKENS

                before = await held(dataplane)
                assert sum(before) == _REQUESTS
                victim = dataplane.workers[before.index(max(before))]
                os.kill(victim.process.pid, signal.SIGKILL)
                while victim in dataplane.workers or [each.generation for each in dataplane.workers] != [
                    1,
                    1,
                ]:
                    await trio.sleep(0.01)
                assert (await loopback.calls(port)).count(b"asked") == max(before)
                assert (await loopback.calls(limited)).count(b"200 O") == 0, (
                    "a bucket is not filled by a death"
                )
                nursery.cancel_scope.cancel()

    trio.run(main)
