"""Clusters, endpoints, load balancing, health, retries and pools: decisions only."""
