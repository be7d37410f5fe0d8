"""The admin pages of the agent, as Envoy's: what runs here, what it was told, what it counts.

`AdminPages(Sources(...)).respond(method, path, body)` answers a request on the agent's 0600 socket, `respond_reading` on
127.0.0.1:15000, `respond_to_istiod` on istiod's Debug stream (`agent.host.control.debug_channel`); `MetricsPages` is 15020.
Everything that is shown comes from the callables in `Sources`, so that `hostmesh-agent run` and `hostmesh-agent proxy`
serve the same pages.
"""

from agent.host.admin.metrics import MetricsPages
from agent.host.admin.respond import AdminPages
from agent.host.admin.sources import Certificates, Resource, Sources

__all__ = ["AdminPages", "Certificates", "MetricsPages", "Resource", "Sources"]
