"""Envoy protobuf and bootstrap YAML to frozen runtime values; nothing here does I/O."""
