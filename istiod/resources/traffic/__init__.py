"""The parts of a DestinationRule: connection pool, load balancing by host and locality."""
