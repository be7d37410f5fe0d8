"""The nftables rules that bring a host's traffic to its proxy, as text (pure).

Rule: only validated numbers, networks and uids are written into the text, never a string from the
configuration, so nothing that an operator writes can become another nft statement. Port 22 is never captured.
Not for: loading the rules (`agent/host/capture/table.py`) or finding uids (`agent/host/node.py`).

The order in the output chain is the whole point; each rule's comment says why it stands where it does.
Priorities are numbers since `dstnat` is not accepted for the output hook by nftables 1.0.6. Our nat chains stand one
before `dstnat` (-100): among chains of one priority the order of loading decides, and with docker's, libvirt's or
kube-proxy's chains at -100 that would be chance. The first nat chain that maps a connection wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

TABLE = "hostmesh"
MARK = 0x539
"""SO_MARK of the proxy's own connections (1337, Istio's number)."""
SSH = 22
NAT_PRIORITY = -101
RAW_PRIORITY = -300
"""Before connection tracking (-200), which looks a packet up in the zone that it was given here."""
DNS_ZONE = MARK
"""The conntrack zone of redirected questions, in their original direction (see `_zones`)."""
_NOT_BEGINNING = "tcp flags & (fin | syn | rst | ack) != syn return"
HOST_MARK = 0x53A
"""SO_MARK of the host process's own sockets (control plane, DNS, probes): never touched at all."""
_APPLICATION_SOURCE_V4 = "127.0.0.6"
_APPLICATION_SOURCE_V6 = "::1"
"""The source of proxy-to-application connections (Istio's 127.0.0.6; Envoy upstream_bind_config)."""

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class WorkloadRules:
    """One workload's part: which ports of the proxy serve it."""

    outbound: int
    inbound: int
    dns: int
    uid: int | None = None
    """Whose outbound traffic it is; None: everybody's who has no workload of their own."""
    ports: tuple[int, ...] = ()
    """The application's ports, for inbound traffic."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything that the ruleset depends on."""

    workloads: tuple[WorkloadRules, ...]
    agent_uids: tuple[int, ...] = ()
    """Users whose traffic is the agent's own (not 0: root's traffic is the host's)."""
    agent_ports: tuple[int, ...] = ()
    """Ports that the agent itself serves to the world: readiness, metrics, admin."""
    include_inbound_ports: tuple[int, ...] | None = None
    exclude_inbound_ports: tuple[int, ...] = ()
    include_outbound: tuple[Network, ...] | None = None
    exclude_outbound: tuple[Network, ...] = ()
    exclude_outbound_ports: tuple[int, ...] = ()
    exclude_outbound_uids: tuple[int, ...] = ()
    dns: bool = True
    dns_shared: int | None = None
    """Where the questions of users without a workload go: resolver daemons ask for all; None: they are left alone."""
    zones: bool = True
    """False where the kernel lacks conntrack zones."""
    owned: bool = True
    """False only to show the rules, for example in a test without a holder."""

    @property
    def proxy_ports(self) -> frozenset[int]:
        """The ports that connections are redirected to: nothing but the proxy may listen on them."""
        return frozenset(port for work in self.workloads for port in (work.outbound, work.inbound))


def render(rules: Rules) -> str:
    """The whole table as nft text, ready for libnftables."""
    lines = [f"table inet {TABLE} {{"]
    if rules.owned:
        lines.append("  flags owner")
    lines += _sets(rules)
    for name, hook, body in (
        (
            "prerouting",
            f"type nat hook prerouting priority {NAT_PRIORITY}; policy accept;",
            _prerouting(rules),
        ),
        ("zones", f"type filter hook output priority {RAW_PRIORITY}; policy accept;", _zones(rules)),
        ("output", f"type nat hook output priority {NAT_PRIORITY}; policy accept;", _output(rules)),
        ("input", "type filter hook input priority 0; policy accept;", _input(rules)),
    ):
        lines += [f"  chain {name} {{", f"    {hook}", *(f"    {line}" for line in body), "  }"]
    lines.append("}")
    return "\n".join(lines) + "\n"


def own_ports(rules: Rules) -> tuple[int, ...]:
    """The ports of the agent and of ssh: never redirected on their way in."""
    proxy = (port for work in rules.workloads for port in (work.outbound, work.inbound, work.dns))
    return tuple(sorted({SSH, *proxy, *rules.agent_ports}))


def _sets(rules: Rules) -> Iterator[str]:
    for name, networks in (("excluded", rules.exclude_outbound), ("included", rules.include_outbound or ())):
        for family, kind in (("4", IPv4Network), ("6", IPv6Network)):
            elements = [str(network) for network in networks if isinstance(network, kind)]
            if elements:
                yield f"  set {name}{family} {{"
                yield f"    type ipv{family}_addr; flags interval; auto-merge"
                yield f"    elements = {{ {', '.join(elements)} }}"
                yield "  }"


def _prerouting(rules: Rules) -> Iterator[str]:
    yield f'{_NOT_BEGINNING} comment "connections that stood before the rules"'
    yield 'iifname "lo" return comment "loopback was decided on its way out"'
    yield 'fib daddr type != local return comment "forwarded traffic is not this host\'s"'
    excluded = tuple(sorted({*own_ports(rules), *rules.exclude_inbound_ports}))
    yield f"tcp dport {_set(excluded)} return"
    # Every workload's declared ports go to its own listener; the first workload takes what else is included.
    for work in rules.workloads:
        if ports := _inbound_ports(rules, work):
            yield f"tcp dport {_set(ports)} counter redirect to :{int(work.inbound)}"
    included = rules.include_inbound_ports
    rest = f"counter redirect to :{int(rules.workloads[0].inbound)}"
    if included is None:
        yield f"meta l4proto tcp {rest}"
    elif others := sorted(set(included) - {port for work in rules.workloads for port in work.ports}):
        yield f"tcp dport {_set(others)} {rest}"


def _zones(rules: Rules) -> Iterator[str]:
    # The kernel decides about redirects once for each flow, and a resolver that keeps one UDP socket has one flow for
    # life: without more it would not get the mesh's names after `up`, and ask a port that is gone after `down`. The
    # flow of a redirected question is tracked in a zone of its own, which exists as long as this rule does.
    if not rules.dns or not rules.zones:
        return
    yield f"meta mark {{ {MARK:#x}, {HOST_MARK:#x} }} return"
    if uids := sorted({*rules.agent_uids, *rules.exclude_outbound_uids}):
        yield f"meta skuid {_set(uids)} return"
    for who, _ in _dns_by_user(rules):
        yield f"{who}udp dport 53 ct original zone set {DNS_ZONE}"


def _output(rules: Rules) -> Iterator[str]:
    yield f'{_NOT_BEGINNING} comment "connections that stood before the rules"'
    agents = [f"meta mark {MARK:#x}"]
    if rules.agent_uids:
        agents.append(f"meta skuid {_set(rules.agent_uids)}")
    yield f'meta mark {HOST_MARK:#x} return comment "the host process"'
    # The proxy calling an own address of this host (a service calling itself, or a neighbour workload) must
    # arrive at the inbound listener; loopback and the proxy's hop to the application must not: circles.
    for agent in agents:
        yield f'{agent} oifname != "lo" return comment "the agent\'s own traffic"'
        yield f"{agent} ip saddr {_APPLICATION_SOURCE_V4} return"
        yield f"{agent} ip6 saddr {_APPLICATION_SOURCE_V6} return"
        yield f"{agent} ip daddr 127.0.0.0/8 return"
        yield f"{agent} ip6 daddr ::1 return"
        for work in rules.workloads:
            excluded = {*rules.exclude_inbound_ports, SSH}
            if ports := [port for port in _inbound_ports(rules, work) if port not in excluded]:
                yield f"{agent} tcp dport {_set(ports)} counter redirect to :{int(work.inbound)}"
        yield f"{agent} return"
    if rules.exclude_outbound_uids:
        yield f"meta skuid {_set(rules.exclude_outbound_uids)} return"
    if rules.dns:
        # Before loopback passes: a stub resolver on 127.0.0.53 would otherwise escape.
        for who, dns_port in _dns_by_user(rules):
            for protocol in ("udp", "tcp"):
                yield f"{who}{protocol} dport 53 counter redirect to :{int(dns_port)}"
    if len(rules.workloads) > 1:
        # Workloads of one host calling each other by the host's address are as strict as between hosts.
        for who, work in _by_user(rules):
            others = [port for other in rules.workloads if other is not work for port in other.ports]
            others = [port for port in others if port != SSH and port not in rules.exclude_outbound_ports]
            if others:
                target = f"tcp dport {_set(others)} counter redirect to :{int(work.outbound)}"
                for elsewhere in ("ip daddr != 127.0.0.0/8", "ip6 daddr != ::1"):
                    yield f'{who}oifname "lo" {elsewhere} {target}'
    yield 'oifname "lo" return comment "own addresses and loopback stay on the host"'
    yield f"tcp dport {_set(sorted({SSH, *rules.exclude_outbound_ports}))} return"
    yield 'ip6 daddr fe80::/10 return comment "such an address means something on its link only"'
    for family, kind in (("ip", IPv4Network), ("ip6", IPv6Network)):
        number = "4" if family == "ip" else "6"
        if any(isinstance(network, kind) for network in rules.exclude_outbound):
            yield f"{family} daddr @excluded{number} return"
        if rules.include_outbound is not None:
            inside = any(isinstance(network, kind) for network in rules.include_outbound)
            match = f"{family} daddr != @included{number}" if inside else f"meta nfproto ipv{number}"
            yield f"{match} return"
    for who, work in _by_user(rules):
        yield f"{who}meta l4proto tcp counter redirect to :{int(work.outbound)}"


def _input(rules: Rules) -> Iterator[str]:
    # A connection that nobody redirected has no original destination: the proxy would call itself.
    ports = sorted(rules.proxy_ports)
    yield f"tcp dport {_set(ports)} ct status & dnat == 0 reject with tcp reset"


def _inbound_ports(rules: Rules, work: WorkloadRules) -> list[int]:
    """The workload's ports that are captured on their way in, if they are not excluded."""
    included = rules.include_inbound_ports
    return [port for port in work.ports if included is None or port in included]


def _dns_by_user(rules: Rules) -> Iterator[tuple[str, int]]:
    """Whose questions go to which port: as `_by_user`, then everybody else's."""
    for who, work in _by_user(rules):
        yield who, work.dns
    if rules.dns_shared is not None and all(work.uid is not None for work in rules.workloads):
        yield "", rules.dns_shared


def _by_user(rules: Rules) -> Iterator[tuple[str, WorkloadRules]]:
    """Workloads with a user first, the one that takes the rest last."""
    for work in rules.workloads:
        if work.uid is not None:
            yield f"meta skuid {int(work.uid)} ", work
    for work in rules.workloads:
        if work.uid is None:
            yield "", work


def _set(numbers: Iterable[int]) -> str:
    return "{ " + ", ".join(str(int(number)) for number in numbers) + " }"
