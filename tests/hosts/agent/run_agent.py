"""The agent's service with the worker program that a test names: `run_agent.py CONFIG PROGRAM…`."""

from __future__ import annotations

import sys
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parents[3]))

from agent.host import config, log
from agent.host.service import AgentService

if __name__ == "__main__":
    log.configure("info")
    trio.run(AgentService(config.load(Path(sys.argv[1])), sys.argv[2:]).run)
