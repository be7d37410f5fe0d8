"""What all workers of a host count together, so that a limit is the host's and not each worker's."""
