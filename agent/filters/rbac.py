"""Role-based access control (envoy.filters.http.rbac).

Rule: shadow rules are judged and noted in dynamic metadata, enforced rules answer 403. Neither reads the body.
"""

from __future__ import annotations

import re
from typing import Final

from agent.filters.chain import Placed, most_specific
from agent.filters.rbac_rules import compile_rules
from agent.filters.step import RequestStep, Steps
from agent.http.request import LocalReply, RequestContext
from agent.table.filter_config import Rbac

NAMESPACE: Final = "envoy.filters.http.rbac"
_SPACE: Final = re.compile(r"\s")


def compile(placed: Placed) -> Steps | None:
    """Steps for a place in a chain; None without rules."""
    config = most_specific(placed, Rbac)
    steps: list[RequestStep] = []
    if config.shadow is not None:
        steps.append(_shadow(config, placed))
    if config.rules is not None:
        steps.append(_enforce(config, placed))
    return Steps(tuple(steps)) if steps else None


def denial(policy: str) -> LocalReply:
    """The answer to a request that is not allowed, with the policy that decided."""
    details = f"rbac_access_denied_matched_policy[{_SPACE.sub('_', policy) or 'none'}]"
    return LocalReply(403, b"RBAC: access denied", details=details)


def _enforce(config: Rbac, placed: Placed) -> RequestStep:
    assert config.rules is not None
    verdict = compile_rules(config.rules)
    logs = config.rules.action == "log"
    denials: dict[str, LocalReply] = {}
    prefix = f"{placed.stats}rbac.{config.rules_stat_prefix}"
    count_allowed, count_denied = placed.count(f"{prefix}allowed"), placed.count(f"{prefix}denied")

    def enforce(ctx: RequestContext) -> LocalReply | None:
        allowed, policy = verdict(ctx)
        if logs:
            ctx.note("envoy.common", {"access_log_hint": bool(policy)})
        if allowed:
            count_allowed()
            return None
        count_denied()
        reply = denials.get(policy)
        if reply is None:
            reply = denials[policy] = denial(policy)
        return reply

    return enforce


def _shadow(config: Rbac, placed: Placed) -> RequestStep:
    assert config.shadow is not None
    verdict = compile_rules(config.shadow)
    prefix = config.shadow_stat_prefix
    stat = f"{placed.stats}rbac.{prefix}shadow_"
    count_allowed, count_denied = placed.count(f"{stat}allowed"), placed.count(f"{stat}denied")

    def judge(ctx: RequestContext) -> None:
        allowed, policy = verdict(ctx)
        (count_allowed if allowed else count_denied)()
        noted: dict[str, object] = {f"{prefix}shadow_engine_result": "allowed" if allowed else "denied"}
        if policy:
            noted[f"{prefix}shadow_effective_policy_id"] = policy
        ctx.note(NAMESPACE, noted)

    return judge
