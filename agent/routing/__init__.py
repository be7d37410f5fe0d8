"""Which route a request takes and what that route changes; pure."""
