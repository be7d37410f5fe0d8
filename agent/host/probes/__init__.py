"""Readiness probes of the applications."""
