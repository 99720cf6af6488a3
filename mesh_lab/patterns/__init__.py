"""Reusable client patterns over a plain nats-py client."""
