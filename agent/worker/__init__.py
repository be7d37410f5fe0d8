"""The only I/O of the data plane: reactor, accept, TLS, connections."""
