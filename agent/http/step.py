"""What an HTTP filter is at run time: two functions, made from its configuration once.

Here and not in agent/filters, because routing carries steps without knowing filters. A filter module offers
`compile(config) -> Steps | None`. The request function looks at the context and either returns None (go on),
a `LocalReply` (answer now), a `Delay` (wait, then go on) or a `WholeBody` (go on when the body is complete). The response
function changes the response head in place. Neither waits, reads a clock or throws dice: time is
`context.started_at` (or the argument), chance is `context.random`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from agent.http.request import Delay, LocalReply, RequestContext, ResponseHead, WholeBody

RequestStep: TypeAlias = Callable[[RequestContext], LocalReply | Delay | WholeBody | None]
ResponseStep: TypeAlias = Callable[[RequestContext, ResponseHead], None]


class Steps(NamedTuple):
    """Flat tuples that the exchange runs in order (response steps are already reversed)."""

    request: tuple[RequestStep, ...] = ()
    response: tuple[ResponseStep, ...] = ()


NO_STEPS: Final = Steps()
