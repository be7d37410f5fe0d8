"""Istio's resource kinds: schema, validation and defaults."""
