"""The interface of the service catalog: which instances serve which service, and who vouches for them.

Rule: a caller that holds nothing but this class sees the same behaviour from every backend (tests/registry is
the law). Not for configuration resources (registry.store).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping

import trio

from registry.model import Health, Instance, Service, VirtualIps

__all__ = ["Catalog"]


class Catalog(ABC):
    """Instances, services and leases.

    Every method may raise RegistryUnavailableError. What a method has acknowledged survives the death of
    this process. An `owner` argument makes a call conditional: when the instance now belongs to another
    istiod (its agent reconnected there), nothing happens and the answer is False.
    """

    @abstractmethod
    async def register(self, instance: Instance, *, takeover: bool = True) -> Service:
        """Write `instance` whole (new, or in the place of the one with its id) and return its service.

        With `takeover` false an instance of another holder (Instance.holder) keeps its id: HeldError.

        The service's VIPs are allocated at its first registration, or anew when its row cannot be read. Its
        ports, as returned here, are all that it ever had; `services` leaves out those that no instance serves
        any more.
        """

    @abstractmethod
    async def set_health(self, instance_id: str, health: Health, *, owner: str | None = None) -> bool:
        """Say whether the instance may be sent traffic. False: there is no such instance (of `owner`)."""

    @abstractmethod
    async def deregister(self, instance_id: str, *, owner: str | None = None) -> bool:
        """Remove the instance; its service stays. False: there is no such instance (of `owner`)."""

    @abstractmethod
    async def instances(self) -> tuple[Instance, ...]:
        """All instances, in order of id; rows that cannot be read are left out (Registry.damage)."""

    @abstractmethod
    async def services(self) -> tuple[Service, ...]:
        """All services, also those without instances, in order of namespace and name; as `instances`."""

    @abstractmethod
    async def forget_service(self, namespace: str, name: str) -> bool:
        """Remove a service that has no instances and free its VIPs.

        False: there is no such service. Raises ConflictError while it has instances.
        """

    @abstractmethod
    async def allocate(self, host: str) -> VirtualIps:
        """The VIPs of a host that is no service of the catalog (a ServiceEntry's); the same at every call."""

    @abstractmethod
    async def release(self, host: str) -> bool:
        """Free what `allocate` gave to `host`. False: nothing was."""

    @abstractmethod
    async def allocations(self) -> Mapping[str, VirtualIps]:
        """All that `allocate` has given and `release` has not freed, by host name."""

    @abstractmethod
    def watch(self) -> AsyncIterator[int]:
        """Marks that something above may have changed; the caller reads again.

        The first comes at once, then one after each burst of changes, by whichever istiod (marks that nobody
        waited for are merged). It never ends and raises nothing: while the backend is away it is silent, and
        when it is back there is a mark. Needs no closing.
        """

    @abstractmethod
    async def hold_lease(
        self,
        *,
        grace: float,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Vouch for this process (Registry.owner) until cancelled, and clean up after dead ones.

        Instances whose owner has had no lease for `grace` seconds are removed, by whichever istiod sees it
        first; so are, after a restart, those of the former process whose agents did not come back.
        `task_status.started()` is called when the lease is held. Outlasts the backend's absence.
        """

    @abstractmethod
    async def owners(self) -> frozenset[str]:
        """The istiod processes that hold a lease now."""
