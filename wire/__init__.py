"""What agent and istiod say to each other: gRPC over HTTP/2, xDS sessions, identities."""
