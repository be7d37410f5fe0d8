"""The host process: xDS, identity, DNS, capture, probes, supervision and the local admin port."""
