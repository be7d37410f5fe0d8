"""What a load balancer is at run time."""

from __future__ import annotations

from abc import abstractmethod

from mypy_extensions import trait

from agent.upstream.host import Host


@trait
class Picker:
    """Chooses among a fixed set of hosts; a changed set gets a new picker."""

    @abstractmethod
    def pick(self, random: int, key: int | None) -> Host:
        """A host. `random` are the random bits of the request, `key` its hash key where the route makes one."""
