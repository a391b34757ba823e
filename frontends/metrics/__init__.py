"""The metrics frontend: Prometheus text on a port of its own."""
