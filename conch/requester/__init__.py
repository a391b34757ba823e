"""Whoever sends requests to models: a frontend, or a model that asks other models.

``Requester`` is the shell, driven by an asyncio loop; what it decides with are pure machines. Free of any protocol.
"""
