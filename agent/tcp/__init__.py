"""Opaque streams."""
