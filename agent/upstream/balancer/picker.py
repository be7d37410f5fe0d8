"""What a load balancer is at run time."""

from __future__ import annotations

from typing import Protocol

from agent.upstream.host import Host


class Picker(Protocol):
    """Chooses among a fixed set of hosts; a changed set gets a new picker."""

    def pick(self, random: int, key: int | None) -> Host:
        """A host. `random` is 64 random bits of the request, `key` its hash key where the route makes one."""
