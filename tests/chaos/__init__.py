"""Kills a server's processes under load, for minutes: ``scripts/chaos``."""
