"""meshctl, the admin CLI."""
