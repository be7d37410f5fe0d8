"""Capture: the nftables table that brings a host's traffic to its proxy, and the check beforehand."""
