"""The host process: `service` starts and stops everything, in order; the folders do one job each.

capture/ (nftables) · dns/ · identity/ (keys and certificates) · control/ (streams to istiod) · probes/ · workers/ (the
data plane's processes) · admin/ (pages, status, local socket) · proxy/ (the data plane alone, on a bootstrap).
"""
