"""Random choice (Envoy RANDOM): uniform, weights are not looked at."""

from __future__ import annotations

from agent.upstream.balancer.picker import Picker
from agent.upstream.host import Host


class RandomChoice(Picker):
    """See Picker."""

    __slots__ = ("_hosts",)

    def __init__(self, hosts: list[Host]) -> None:
        self._hosts = hosts

    def pick(self, random: int, key: int | None) -> Host:
        """See Picker."""
        hosts = self._hosts
        return hosts[(random >> 13) % len(hosts)]
