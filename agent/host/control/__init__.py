"""The host's streams to istiod: configuration (ADS) and the admin pages' debug channel."""
