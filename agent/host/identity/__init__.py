"""Identity of a workload: key, certificate, join token, and the secrets made of them."""
