"""Message classes generated from the .proto files beside them; their headers say how to regenerate."""
