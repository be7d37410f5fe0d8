"""`hostmesh-agent proxy`: the data plane alone, on a static bootstrap."""
