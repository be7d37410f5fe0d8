"""Capture: hold the nftables table while the agent serves, and let go of it first when it stops.

Rule: the table lives exactly as long as this object's context; after `down`, or after any death of the
process, not a rule of it is left. A table of the same name that somebody else holds is never touched.
Not for: the rules' text (`rules`), preflight (`preflight`).
"""

from __future__ import annotations

from dataclasses import replace

from agent.host.capture.netfilter import Netfilter, NetfilterError
from agent.host.capture.rules import TABLE, Rules, WorkloadRules, render
from agent.host.config import AgentConfig


class CaptureError(Exception):
    """The rules could not be put in place; says what to do about it."""


def rules_for(config: AgentConfig, uid_of: dict[str | int, int], agent_uids: tuple[int, ...]) -> Rules:
    """The rules of a configuration. `uid_of` maps every user named in it to its uid."""
    workloads = []
    for index, workload in enumerate(config.workloads):
        ports = config.proxy_ports(index)
        workloads.append(
            WorkloadRules(
                outbound=ports.outbound,
                inbound=ports.inbound,
                dns=ports.dns,
                uid=None if workload.user is None else uid_of[workload.user],
                ports=tuple(port.target_port or port.port for port in workload.ports),
            )
        )
    capture, ports = config.capture, config.proxy.ports
    included: tuple[int, ...] | None
    if capture.include_inbound_ports == "declared":
        included = tuple(sorted(port for work in workloads for port in work.ports))
    elif capture.include_inbound_ports == "*":
        included = None
    else:
        included = tuple(int(port) for port in capture.include_inbound_ports)
    return Rules(
        workloads=tuple(workloads),
        agent_uids=tuple(sorted({uid for uid in agent_uids if uid != 0})),
        agent_ports=(ports.admin, ports.metrics, ports.readiness),
        include_inbound_ports=included,
        exclude_inbound_ports=capture.exclude_inbound_ports,
        include_outbound=capture.include_outbound_cidrs,
        exclude_outbound=capture.exclude_outbound_cidrs,
        exclude_outbound_ports=capture.exclude_outbound_ports,
        exclude_outbound_uids=tuple(uid_of[user] for user in capture.exclude_outbound_users),
        dns=capture.dns,
        dns_shared=ports.dns_shared if config.shares_dns else None,
    )


class Capture:
    """The table of this host. Invariant: `active` is true exactly while the kernel holds our table."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._netfilter: Netfilter | None = None
        self._loaded: Rules | None = None

    @property
    def active(self) -> bool:
        """Whether traffic is being redirected by this process."""
        return self._netfilter is not None

    def up(self, rules: Rules | None = None) -> None:
        """Have the kernel hold these rules, by default all; does nothing when it does. CaptureError changes nothing.

        Other rules replace the table in one transaction: no connection sees a host without rules.
        """
        rules = self.rules if rules is None else rules
        if self._netfilter is not None and rules == self._loaded:
            return
        try:
            netfilter = self._netfilter or Netfilter()
        except NetfilterError as error:
            raise CaptureError(str(error)) from error
        try:
            load(netfilter, rules, replaces=self._netfilter is not None)
        except NetfilterError as error:
            if netfilter is not self._netfilter:
                netfilter.close()
            raise CaptureError(_explain(str(error))) from error
        self._netfilter, self._loaded = netfilter, rules

    def down(self) -> None:
        """Close the context, with which the kernel removes the table; does nothing when it is down."""
        netfilter, self._netfilter, self._loaded = self._netfilter, None, None
        if netfilter is not None:
            netfilter.close()


def load(netfilter: Netfilter, rules: Rules, *, replaces: bool = False) -> None:
    """Run the rules in a context, as far as this kernel has what they use; NetfilterError when it refuses."""
    before = f"delete table inet {TABLE}\n" if replaces else ""
    try:
        netfilter.run(before + render(rules))
    except NetfilterError as error:
        if "zone" not in str(error) or "not supported" not in str(error).lower():
            raise
        netfilter.run(before + render(replace(rules, zones=False)))


def show() -> str:
    """The table as the kernel has it, with its counters; CaptureError when there is none, or no right."""
    try:
        with Netfilter() as netfilter:
            return netfilter.run(f"list table inet {TABLE}")
    except NetfilterError as error:
        if "No such file" in str(error):
            raise CaptureError("capture is down: there is no table inet hostmesh") from error
        raise CaptureError(_explain(str(error))) from error


def _explain(message: str) -> str:
    first = message.splitlines()[0] if message else "nft failed"
    if "Operation not permitted" in message:
        if _table_exists():
            return f"table inet {TABLE} is held by another process (is an agent or `capture up` running?)"
        return "the right CAP_NET_ADMIN is missing: run as root or through the hostmesh-agent service"
    if "File exists" in message or "not supported" in message.lower():
        if _table_exists():
            return f"a table inet {TABLE} exists that is not ours; remove it: nft delete table inet {TABLE}"
        return f"this kernel lacks a feature of the rules: {first}"
    return message


def _table_exists() -> bool:
    try:
        with Netfilter() as netfilter:
            return f"table inet {TABLE}\n" in netfilter.run("list tables")
    except NetfilterError:
        return False
