"""Environments of a model's own: what it needs, making it, and starting a worker in it."""
