"""Runs models: the launcher that starts worker processes, and the worker, one process per model instance."""
