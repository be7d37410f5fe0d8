"""Where the mesh's facts are kept: service catalog and config store, on SQLite or Consul."""
