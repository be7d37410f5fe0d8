"""The ADS server: who is connected, what each may see, what was pushed and acknowledged."""
