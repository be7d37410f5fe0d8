"""What a host's own filter chains do to redirected connections, from nft's JSON (pure).

Rule: the redirect comes before the filter chains, so they see a declared port's connections at the proxy's port: a firewall
that allows 9080 and drops the rest drops them. Each chain that may do so is named, with the rule that it needs.
Not for: changing anybody's firewall, or reading the ruleset (`preflight`).
Source: libnftables-json(5).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from agent.host.capture.finding import Finding
from agent.host.capture.rules import TABLE, Rules

_HOOKS = ("input", "output")
_CLOSING = frozenset({"drop", "reject"})


def findings(objects: Iterable[dict[str, Any]], rules: Rules) -> list[Finding]:
    """One finding a filter chain on the way in or out that can drop; `ok` when there is none."""
    ruleset = list(objects)
    found = [
        finding
        for item in ruleset
        if (chain := item.get("chain")) is not None
        and chain.get("type") == "filter"
        and chain.get("hook") in _HOOKS
        and chain["table"] != TABLE
        and (finding := _judge(chain, ruleset, rules)) is not None
    ]
    return found or [Finding("firewall", "ok", "no filter chain drops what is redirected")]


def unreadable(tables: str) -> Finding | None:
    """For /proc/net/ip_tables_names: iptables-legacy has rules of its own, which nft does not show."""
    if "filter" not in tables.split():
        return None
    return Finding("firewall", "note", "iptables-legacy has filter rules, which cannot be read here")


def _judge(chain: dict[str, Any], ruleset: list[dict[str, Any]], rules: Rules) -> Finding | None:
    inside = [
        rule["expr"]
        for item in ruleset
        if (rule := item.get("rule")) is not None
        and (rule["family"], rule["table"]) == (chain["family"], chain["table"])
    ]
    drops = chain.get("policy") == "drop"
    if not drops and not any(_CLOSING & set(statement) for rule in inside for statement in rule):
        return None
    incoming = chain["hook"] == "input"
    if not incoming and any(_accepts_loopback(rule) for rule in inside):
        return None
    wanted = {work.inbound if incoming else work.outbound for work in rules.workloads}
    missing = sorted(wanted - _accepted_ports(inside))
    if not missing:
        return None
    where = f"{chain['family']} {chain['table']} {chain['name']}"
    ports = str(missing[0]) if len(missing) == 1 else "{ " + ", ".join(map(str, missing)) + " }"
    rule = f"tcp dport {ports} ct status dnat accept" if incoming else 'oifname "lo" accept'
    why = "declared ports are seen there as" if incoming else "redirected calls leave as"
    # Rules of another kind (xt, named sets) may allow it all the same.
    certain = drops and not any("xt" in statement for rule_ in inside for statement in rule_)
    verb = "drops redirected connections" if certain else "may drop redirected connections"
    return Finding(
        "firewall", "problem" if certain else "note", f"{where} {verb} ({why} {ports}): add `{rule}`"
    )


def _accepted_ports(inside: list[list[dict[str, Any]]]) -> set[int]:
    """The ports that rules of a table accept, wherever they stand."""
    return {
        port
        for rule in inside
        if any("accept" in statement for statement in rule)
        for statement in rule
        if (match := statement.get("match")) is not None and _is_port(match.get("left"))
        for port in _numbers(match.get("right"))
    }


def _accepts_loopback(rule: list[dict[str, Any]]) -> bool:
    accepts = any("accept" in statement for statement in rule)
    return accepts and any(statement.get("match", {}).get("right") == "lo" for statement in rule)


def _is_port(left: Any) -> bool:
    payload = left.get("payload", {}) if isinstance(left, dict) else {}
    return payload.get("protocol") in ("tcp", "th") and payload.get("field") == "dport"


def _numbers(right: Any) -> Iterator[int]:
    if isinstance(right, int):
        yield right
    elif isinstance(right, dict):
        if "range" in right:
            first, last = right["range"]
            yield from range(int(first), int(last) + 1)
        for each in right.get("set", ()):
            yield from _numbers(each)
