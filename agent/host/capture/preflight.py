"""`hostmesh-agent capture check`: can this host be captured, before anything is changed?

Rule: nothing is changed: the kernel is asked with a dry run of the very rules that would be loaded.
"""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

from agent.host import ports
from agent.host.capture import firewall
from agent.host.capture.finding import Finding
from agent.host.capture.keeper import PREFIX as KEEPER
from agent.host.capture.netfilter import Netfilter, NetfilterError
from agent.host.capture.rules import NAT_PRIORITY, TABLE, Rules
from agent.host.capture.table import load, rules_for
from agent.host.config import AgentConfig, AgentConfigError
from agent.host.dns.resolv_conf import Resolvers
from agent.host.node import all_users
from agent.host.workers import privileges

_OWNED = re.compile(r"^\s*flags .*\bowner\b", re.MULTILINE)
_VIRTUAL_NETWORK, _VIRTUAL_ADDRESS = "240.240.0.0/16", "240.240.0.1"
"""Where istiod's virtual addresses come from."""
_LEGACY = Path("/proc/net/ip_tables_names")


def check(config: AgentConfig, *, agent_running: bool) -> list[Finding]:
    """All findings. With the agent running, its own table and ports are as they should be."""
    findings = [_rights(), _library()]
    try:
        users = all_users(config)
        run_as = privileges.workers_run_as(config)
    except AgentConfigError as error:
        return [*findings, Finding("users", "problem", "; ".join(error.problems))]
    own = (run_as.uid if run_as is not None else 0, privileges.own_uid())
    names = ", ".join(f"{user}={uid}" for user, uid in users.items())
    findings.append(Finding("users", "ok", names or "no workload has a user of its own"))
    fallback = privileges.fallback_user(config, run_as)
    findings += [Finding("users", "note", fallback)] if fallback is not None else []
    refused = privileges.why_not_started(run_as)
    findings += [Finding("users", "problem", refused)] if refused is not None else []
    if all(finding.state != "problem" for finding in findings):
        rules = rules_for(config, users, own)
        objects, unread = _ruleset()
        tables = [*unread, *_tables(objects, agent_running)]
        findings += tables
        # With a table of somebody else's in the way the kernel would refuse for that reason alone.
        if not agent_running and all(finding.state != "problem" for finding in tables):
            findings.append(_kernel(rules))
        findings += firewall.findings(objects, rules)
        if (legacy := firewall.unreadable(_read(_LEGACY))) is not None:
            findings.append(legacy)
    findings.append(_ports(config, agent_running))
    if config.capture.enabled and config.capture.dns:
        findings.append(_route())
    servers = Resolvers().current()
    findings.append(
        Finding(
            "resolvers", "ok" if servers else "note", ", ".join(servers) or "none: only mesh names resolve"
        )
    )
    return findings


def _rights() -> Finding:
    if privileges.may_administer_network():
        return Finding("rights", "ok", "CAP_NET_ADMIN")
    return Finding("rights", "problem", "CAP_NET_ADMIN is missing: run as root or as the service's user")


def _library() -> Finding:
    try:
        with Netfilter() as netfilter:
            return Finding("libnftables", "ok", netfilter.library_path())
    except NetfilterError as error:
        return Finding("libnftables", "problem", str(error))


def _kernel(rules: Rules) -> Finding:
    try:
        with Netfilter(dry_run=True) as netfilter:
            load(netfilter, rules)
    except NetfilterError as error:
        return Finding("kernel", "problem", f"refuses the rules: {str(error).splitlines()[0]}")
    return Finding("kernel", "ok", "accepts the rules (owned table, inet nat, fib, skuid, ct status)")


def unreachable_names() -> str | None:
    """Why mesh names cannot be called from this host, if so: the kernel looks for a route before it redirects."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((_VIRTUAL_ADDRESS, 9))
        except OSError as error:
            return (
                f"mesh names cannot be called, there is no route to their addresses ({error.strerror}): "
                f"ip route add {_VIRTUAL_NETWORK} dev INTERFACE"
            )
    return None


def _route() -> Finding:
    reason = unreachable_names()
    if reason is not None:
        return Finding("route", "problem", reason)
    return Finding("route", "ok", f"mesh names' addresses ({_VIRTUAL_NETWORK}) have a route")


def _ruleset() -> tuple[list[dict[str, Any]], list[Finding]]:
    """What nft shows of others' tables, and what could not be read."""
    objects: list[dict[str, Any]] = []
    findings: list[Finding] = []
    try:
        with Netfilter() as text, Netfilter(json=True) as structured:
            for line in text.run("list tables").splitlines():
                _, family, name = line.split()
                where = f"{family} {name}"
                if name.startswith(KEEPER):
                    continue
                # libnftables 1.0.6 corrupts its memory when it prints an owned table as JSON, ours among them.
                if _OWNED.search(text.run(f"list table {where}")):
                    objects.append({"table": {"family": family, "name": name}})
                    if name != TABLE:
                        findings.append(Finding("tables", "note", f"{where} is owned by a program: not read"))
                    continue
                try:
                    objects += json.loads(structured.run(f"list table {where}"))["nftables"]
                except (ValueError, KeyError, TypeError):
                    findings.append(Finding("tables", "note", f"{where} cannot be read"))
    except NetfilterError as error:
        findings.append(Finding("tables", "problem", str(error)))
    return objects, findings


def _tables(objects: list[dict[str, Any]], agent_running: bool) -> list[Finding]:
    tables = {
        item["table"]["name"] for item in objects if "table" in item and item["table"]["family"] == "inet"
    }
    findings = []
    if TABLE in tables and not agent_running:
        findings.append(Finding("tables", "problem", f"table inet {TABLE} exists and is not this agent's"))
    for item in objects:
        chain = item.get("chain", {})
        if (
            chain.get("type") == "nat"
            and chain.get("hook") in ("output", "prerouting")
            and chain["table"] != TABLE
        ):
            where = f"{chain['family']} {chain['table']} {chain['name']} (priority {chain['prio']})"
            earlier = chain["prio"] <= NAT_PRIORITY
            note = "may decide before us" if earlier else "comes after us"
            findings.append(Finding("tables", "note", f"also redirects {chain['hook']}: {where}: {note}"))
    return findings or [Finding("tables", "ok", "no other nat chains")]


def _ports(config: AgentConfig, agent_running: bool) -> Finding:
    if agent_running:
        return Finding("ports", "ok", "served by the running agent")
    taken = ports.taken(config)
    return Finding("ports", "problem", "; ".join(taken)) if taken else Finding("ports", "ok", "all are free")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""  # no such tables, or not for us to see
