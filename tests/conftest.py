"""What all tests share: this process runs the sources, the processes that tests start run what is shipped.

Fakes stand in for transports and sockets here, which compiled modules, being strict about types, would refuse; every
proxy, agent and istiod of a test is a process of its own and runs the compiled modules where they were built.
"""

from __future__ import annotations

import os

os.environ["HOSTMESH_INTERPRETED"] = "1"

import agent  # noqa: F401

del os.environ["HOSTMESH_INTERPRETED"]
