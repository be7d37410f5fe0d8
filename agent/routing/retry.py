"""Retry policies made ready for the exchange."""

from __future__ import annotations

from agent.http.matching import RequestPredicate, compile_request_header, compile_response_headers
from agent.http.request import RequestContext
from agent.http.retry_plan import RetryPlan
from agent.table.matchers import HeaderMatch
from agent.table.route import RetryPolicy


def compile_retry(policy: RetryPolicy | None) -> RetryPlan | None:
    """The plan of a policy; None for none."""
    if policy is None:
        return None
    return RetryPlan(
        on=policy.on,
        attempts=policy.attempts,
        per_try_timeout=policy.per_try_timeout,
        statuses=policy.statuses,
        retriable_headers=compile_response_headers(policy.retriable_headers),
        retriable_request=_any_of(policy.retriable_request_headers),
        base_interval=policy.base_interval,
        max_interval=policy.max_interval,
        previous_hosts=policy.previous_hosts,
        host_selection_attempts=policy.host_selection_attempts,
    )


def _any_of(matches: tuple[HeaderMatch, ...]) -> RequestPredicate | None:
    if not matches:
        return None
    tests = tuple(compile_request_header(match) for match in matches)

    def retriable(ctx: RequestContext) -> bool:
        return any(test(ctx) for test in tests)

    return retriable
