"""Statistics, access logs and their exposition."""
