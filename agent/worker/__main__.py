"""`python -m agent.worker FD`: a worker process of `hostmesh-agent run`."""

from agent.worker.remote import main

main()
