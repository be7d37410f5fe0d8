"""Load balancers: given the hosts that are in rotation, which one takes this request."""

from __future__ import annotations

from agent.table.cluster import Cluster
from agent.upstream.balancer.consistent import Maglev, RingHash
from agent.upstream.balancer.least_request import LeastRequest
from agent.upstream.balancer.picker import Picker
from agent.upstream.balancer.random_choice import RandomChoice
from agent.upstream.balancer.round_robin import RoundRobin
from agent.upstream.host import Host

__all__ = ["Picker", "make_picker"]


def make_picker(cluster: Cluster, hosts: list[Host], start: int) -> Picker:
    """The picker for a set of hosts (not empty). `start` is random, so that workers do not march in step."""
    policy = cluster.lb_policy
    if policy == "least_request":
        return LeastRequest(hosts, cluster.least_request_choices)
    if policy == "random":
        return RandomChoice(hosts)
    if policy == "ring_hash":
        minimum = int(cluster.lb_config.get("minimum_ring_size", 1024))
        maximum = int(cluster.lb_config.get("maximum_ring_size", 8 << 20))
        return RingHash(hosts, minimum, maximum, by_name=bool(cluster.lb_config.get("by_name")))
    if policy == "maglev":
        size = int(cluster.lb_config.get("table_size", 65537))
        return Maglev(hosts, size, by_name=bool(cluster.lb_config.get("by_name")))
    return RoundRobin(hosts, start)
