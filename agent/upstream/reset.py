"""Why an upstream stream ended before its time: Envoy's reset reasons, as it prints them, with their response flags.

Not for: what is done about it (retry.py, exchange.py).
"""

from __future__ import annotations

from typing import Final

CONNECT_FAILURE: Final = "remote connection failure"
LOCAL_CONNECT_FAILURE: Final = "local connection failure"
CONNECT_TIMEOUT: Final = "connection timeout"
TERMINATION: Final = "connection termination"
OVERFLOW: Final = "overflow"
PROTOCOL: Final = "protocol error"
REMOTE_RESET: Final = "remote reset"
LOCAL_RESET: Final = "local reset"

FLAGS: Final = {
    CONNECT_FAILURE: "UF",
    LOCAL_CONNECT_FAILURE: "UF",
    CONNECT_TIMEOUT: "UF",
    TERMINATION: "UC",
    OVERFLOW: "UO",
    PROTOCOL: "UPE",
    REMOTE_RESET: "UR",
    LOCAL_RESET: "LR",
}
CONNECT_REASONS: Final = frozenset((CONNECT_FAILURE, LOCAL_CONNECT_FAILURE, CONNECT_TIMEOUT))


def status_for(reason: str) -> int:
    """What the client is answered when there is no retry (Envoy Filter::onUpstreamReset)."""
    return 502 if reason == PROTOCOL else 503
