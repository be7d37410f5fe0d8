"""One per host: the data plane (worker and below) and the host's services (host)."""

from agent import compiled

compiled.install()
