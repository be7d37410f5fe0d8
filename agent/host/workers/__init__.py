"""The worker processes of `hostmesh-agent run`: start, supervision, configuration, privileges."""
