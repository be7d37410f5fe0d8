"""How a text becomes values: YAML with the lines of its parts, metadata, and the words for structural errors."""
