"""The keeper: a table that redirects nothing and keeps redirected connections alive after the rules are gone.

Rule: the kernel translates the addresses of a redirected connection only while its network namespace has a nat chain and
something that uses connection tracking. When ours are the last ones, taking capture down cuts every redirected
connection. The keeper has one of each. Its netlink socket owns it and is inherited by every worker, so the table ends
with the last of them: workers that drain, or outlive a killed host process, keep their connections.
A worker cannot use the socket: changing anything through it takes CAP_NET_ADMIN.
Not for: redirecting (`rules`).
"""

from __future__ import annotations

import secrets

from agent.host.capture.netfilter import Netfilter

PREFIX = "hm-keeper-"
"""Unlike the name of the table that redirects: who looks whether traffic is redirected looks for that one."""


class Keeper:
    """One table. Invariant: it is there while this object, or a process that inherited `descriptors`, is."""

    def __init__(self) -> None:
        """NetfilterError when the table cannot be made."""
        # A name of its own: workers of an agent that was killed may still hold theirs.
        self.table = PREFIX + secrets.token_hex(4)
        self._netfilter = Netfilter()
        try:
            self._netfilter.run(_render(self.table))
        except BaseException:
            self._netfilter.close()
            raise

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What a process inherits to keep the table; close-on-exec in this one."""
        return self._netfilter.descriptors

    def close(self) -> None:
        """Let go of it here; it stays while another process has inherited it."""
        self._netfilter.close()


def _render(table: str) -> str:
    # The chain `tracking` is reached from nowhere: a rule with a ct expression is what switches tracking on.
    return f"""table inet {table} {{
  flags owner
  chain output {{
    type nat hook output priority 300; policy accept;
  }}
  chain tracking {{
    ct state new
  }}
}}
"""
