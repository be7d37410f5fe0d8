"""What a workload takes of a configuration, and when that is enough to be ready. A real worker process takes the rest."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import trio
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from google.protobuf import json_format

from agent.host.control.config_session import TYPES, Held
from agent.host.identity.identity import Identity
from agent.host.state import State
from agent.host.workers.dataplane import Dataplane
from agent.host.workload import HostWorkload
from agent.table.decode.types import message_class
from wire.proto import name_table_pb2
from wire.spiffe import SpiffeId
from wire.xds import CLUSTER, LISTENER, NAME_TABLE, EncodedResource, encode

PROGRAM = (sys.executable, str(Path(__file__).with_name("worker_in_small.py")))
TCP = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
message_class("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy")  # so that json_format finds it


def cluster(name: str, **more: Any) -> EncodedResource:
    tree = {"name": name, "type": "STATIC", **more}
    return encode(name, json_format.ParseDict(tree, cluster_pb2.Cluster()))


def listener(name: str, port: int, chains: int = 1) -> EncodedResource:
    """A listener with so many equal filter chains: one is right."""
    proxy = {"@type": TCP, "stat_prefix": "x", "cluster": "good"}
    chain = {"filters": [{"name": "tcp", "typed_config": proxy}]}
    where = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    tree = {"name": name, "address": where, "filter_chains": [chain] * chains}
    return encode(name, json_format.ParseDict(tree, listener_pb2.Listener()))


def configuration(**resources: list[EncodedResource]) -> Held:
    found: Held = {type_url: {} for type_url in TYPES}
    found[NAME_TABLE] = {"names": encode("names", name_table_pb2.NameTable())}
    for kind, type_url in (("clusters", CLUSTER), ("listeners", LISTENER)):
        found[type_url] = {one.name: one for one in resources.get(kind, ())}
    return found


class Reports:
    """What the workload says of its health."""

    last_rejection = ""

    def __init__(self) -> None:
        self.all: list[tuple[bool | None, str]] = []

    def report(self, healthy: bool | None, reason: str) -> None:
        self.all.append((healthy, reason))


def with_workload(folder: Path, test: Callable[[HostWorkload, State], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                dataplane = Dataplane(1, None, lambda: 0.5, PROGRAM)
                await nursery.start(dataplane.run)
                state = State(folder)
                state.prepare(["default/w"])
                workload = HostWorkload(dataplane, state, lambda: None)
                spiffe = SpiffeId.parse("spiffe://cluster.local/ns/default/sa/w")
                identity = Identity(spiffe, b"key", b"chain", 0.0, 1e12, "01")
                workload.parts = SimpleNamespace(  # type: ignore[assignment]
                    config=SimpleNamespace(key="default/w", namespace="default", probe=None),
                    domain="cluster.local",
                    identity=SimpleNamespace(current=identity, roots=b"roots"),
                    dns=SimpleNamespace(names=None),
                    required_ports=frozenset((15001, 15006)),
                    configured=trio.Event(),
                    xds=Reports(),
                    probed=None,
                    probe_reason="",
                )
                await test(workload, state)
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_refused_first_set_and_the_fragment_after_it_make_nobody_ready(tmp_path: Path) -> None:
    async def test(workload: HostWorkload, state: State) -> None:
        outbound = listener("virtualOutbound", 15001)
        broken = listener("virtualInbound", 15006, chains=2)
        first = configuration(clusters=[cluster("good")], listeners=[outbound, broken])
        applied = await workload.apply(first)
        assert [(one.name, one.path) for one in applied.refused] == [
            ("virtualInbound", "Listener[virtualInbound].filter_chains[1].filter_chain_match")
        ]
        assert set(applied.in_use[LISTENER]) == {"virtualOutbound"}
        assert workload.missing == ("a listener on port 15006",)
        assert not workload.parts.configured.is_set()
        await workload.apply(configuration(clusters=[cluster("good"), cluster("more")]))
        assert workload.missing == ("a listener on port 15001", "a listener on port 15006")
        assert not workload.parts.configured.is_set()
        whole = configuration(
            clusters=[cluster("good")], listeners=[outbound, listener("virtualInbound", 15006)]
        )
        assert (await workload.apply(whole)).refused == ()
        assert workload.missing == ()
        assert workload.parts.configured.is_set()

    with_workload(tmp_path, test)


def test_what_is_stored_is_what_is_in_use(tmp_path: Path) -> None:
    async def test(workload: HostWorkload, state: State) -> None:
        good, bad = cluster("good", connect_timeout="1s"), cluster("good", preconnect_policy={})
        await workload.apply(configuration(clusters=[good]))
        applied = await workload.apply(
            configuration(clusters=[bad, cluster("new"), cluster("never", preconnect_policy={})])
        )
        assert sorted(one.name for one in applied.refused) == ["good", "never"]
        assert applied.in_use[CLUSTER]["good"] == good
        stored = state.resources("default/w")
        assert stored is not None
        assert set(stored[CLUSTER]) == {"good", "new"}
        assert stored[CLUSTER]["good"].version == good.version

    with_workload(tmp_path, test)


def test_a_cluster_that_would_hang_every_worker_reaches_none(tmp_path: Path) -> None:
    async def test(workload: HostWorkload, state: State) -> None:
        maglev = cluster("slow", lb_policy="MAGLEV", maglev_lb_config={"table_size": 100})
        applied = await workload.apply(configuration(clusters=[maglev, cluster("good")]))
        assert [str(one) for one in applied.refused] == [
            "Cluster[slow].maglev_lb_config.table_size: must be a prime number, is 100"
        ]
        assert set(applied.in_use[CLUSTER]) == {"good"}

    with_workload(tmp_path, test)


def test_names_that_cannot_be_read_keep_the_former_ones_and_hold_up_nothing(tmp_path: Path) -> None:
    async def test(workload: HostWorkload, state: State) -> None:
        await workload.apply(configuration(clusters=[cluster("good")]))
        names = workload.parts.dns.names
        broken = configuration(clusters=[cluster("good"), cluster("more")])
        body = broken[NAME_TABLE]["names"].body
        broken[NAME_TABLE]["names"] = EncodedResource("names", "2", body + b"\x12\x02\x0a\xff")
        applied = await workload.apply(broken)
        assert [one.type_url for one in applied.refused] == [NAME_TABLE]
        assert workload.parts.dns.names is names
        assert set(applied.in_use[CLUSTER]) == {"good", "more"}

    with_workload(tmp_path, test)


def test_a_workload_whose_first_listeners_are_refused_is_unhealthy_with_the_reason_until_they_are_right(
    tmp_path: Path,
) -> None:
    async def test(workload: HostWorkload, state: State) -> None:
        reports: Any = workload.parts.xds
        workload.check_served("the agent is starting")
        broken = [listener("virtualOutbound", 15001), listener("virtualInbound", 15006, chains=2)]
        await workload.apply(configuration(clusters=[cluster("good")], listeners=broken))
        workload.check_served("the agent is starting")
        right = [listener("virtualOutbound", 15001), listener("virtualInbound", 15006)]
        await workload.apply(configuration(clusters=[cluster("good")], listeners=right))
        workload.check_served("the agent is starting")
        workload.check_served("")
        workload.check_served("")
        await workload.watch_health()
        without_configuration, refused, *rest = reports.all
        assert without_configuration == (False, "the proxy has not got a configuration")
        start = "the proxy has not got a listener on port 15006: Listener[virtualInbound].filter_chains[1]"
        assert refused[0] is False
        assert refused[1].startswith(start)
        assert rest == [(False, "the agent is starting"), (None, ""), (True, "no probe")]

    with_workload(tmp_path, test)


def test_a_probe_that_passes_does_not_hide_that_no_worker_serves(tmp_path: Path) -> None:
    async def test(workload: HostWorkload, state: State) -> None:
        both = [listener("virtualOutbound", 15001), listener("virtualInbound", 15006)]
        await workload.apply(configuration(clusters=[cluster("good")], listeners=both))
        workload.check_served("no worker serves")
        await workload.watch_health()
        assert workload.health == (False, "no worker serves")
        workload.check_served("")
        assert workload.health == (True, "no probe")
        reports: Any = workload.parts.xds
        assert [healthy for healthy, _ in reports.all] == [False, False, True]

    with_workload(tmp_path, test)
