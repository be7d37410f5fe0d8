"""Names of strict_dns and logical_dns clusters: one trio task a cluster, resolving again when the answer is old.

Rule: an answer replaces the hosts; no answer leaves them as they are (Envoy). The resolver is the host's own
(getaddrinfo in a thread), so that /etc/hosts and nsswitch hold here too.
Not for: the DNS that the agent serves (agent/host).
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import trio

from agent.table.cluster import Assignment, Cluster, Endpoint
from agent.upstream.cluster import ClusterRuntime
from agent.worker.reactor import Reactor

_log = logging.getLogger("hostmesh.worker")
_FAILED_AGAIN = 1.0


class Resolver:
    """The tasks of one worker."""

    def __init__(self, reactor: Reactor, nursery: trio.Nursery) -> None:
        self._reactor = reactor
        self._nursery = nursery
        self._tasks: dict[int, tuple[Cluster, trio.CancelScope]] = {}

    def resolve(self, runtime: ClusterRuntime) -> None:
        """Keep the hosts of this cluster resolved; does nothing if that is happening for the same configuration."""
        known = self._tasks.get(id(runtime))
        if known is not None:
            if known[0] is runtime.config:
                return
            known[1].cancel()
        scope = trio.CancelScope()
        self._tasks[id(runtime)] = (runtime.config, scope)
        self._nursery.start_soon(self._keep, runtime, scope)

    def forget(self, runtime: ClusterRuntime) -> None:
        """The cluster is no more."""
        known = self._tasks.pop(id(runtime), None)
        if known is not None:
            known[1].cancel()

    async def _keep(self, runtime: ClusterRuntime, scope: trio.CancelScope) -> None:
        config = runtime.config
        assignment = config.assignment
        if assignment is None:
            return
        with scope:
            while True:
                hosts = await _lookup(config, assignment)
                if hosts is not None:
                    self._reactor.call(partial(_update, runtime, hosts, assignment.overprovisioning))
                await trio.sleep(config.dns_refresh if hosts is not None else _FAILED_AGAIN)


def _update(runtime: ClusterRuntime, hosts: Sequence[Endpoint], overprovisioning: int) -> None:
    runtime.update_hosts(hosts, overprovisioning)


async def _lookup(config: Cluster, assignment: Assignment) -> Sequence[Endpoint] | None:
    """The endpoints by their addresses; None if any name could not be resolved."""
    found: list[Endpoint] = []
    for endpoint in assignment.endpoints:
        name = endpoint.address.host
        try:
            answers = await trio.socket.getaddrinfo(
                name, endpoint.address.port, _family(config.dns_family), socket.SOCK_STREAM
            )
        except OSError as error:
            _log.info("cluster %s: %s: %s", config.name, name, error)
            return None
        addresses = _preferred([str(answer[4][0]) for answer in answers], config.dns_family)
        if config.discovery == "logical_dns":
            addresses = addresses[:1]
        for address in addresses:
            where = replace(endpoint.address, host=address)
            found.append(replace(endpoint, address=where, hostname=endpoint.hostname or name))
    return found


def _family(wanted: str) -> int:
    return {"v4_only": socket.AF_INET, "v6_only": socket.AF_INET6}.get(wanted, socket.AF_UNSPEC)


def _preferred(addresses: list[str], family: str) -> list[str]:
    """`auto` takes IPv6 where there is any, `v4_preferred` IPv4, `all` both (Envoy DnsLookupFamily)."""
    unique = list(dict.fromkeys(addresses))
    v6 = [address for address in unique if ":" in address]
    v4 = [address for address in unique if ":" not in address]
    if family == "auto":
        return v6 or v4
    return v4 or v6 if family == "v4_preferred" else unique
