"""The parts of a VirtualService: destinations, matches, header operations, actions, HTTP, TLS and TCP rules."""
