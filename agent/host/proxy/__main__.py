"""`python -m agent.host.proxy CONFIG WORKERS FLUSH_MSEC`: see agent.host.proxy.command."""

from agent.host.proxy.command import main

main()
