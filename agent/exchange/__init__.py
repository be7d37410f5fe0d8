"""The life of one request (exchange.py), and what it needs: its setting, its streams, its own answers."""
