"""One per host: the data plane (worker and below) and the host's services (host)."""
