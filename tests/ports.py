"""Ports for servers that a test starts."""

import random
import socket
from pathlib import Path

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
#: that a test got: its server may not listen yet, or be between two lives
_given: set[int] = set()
#: its own, because others seed the usual one
_random = random.SystemRandom()


def free_port() -> int:
    """Not one of those that clients' connections get from the system, so it stays free until the server listens."""
    lowest = int(_EPHEMERAL.read_text().split()[0]) if _EPHEMERAL.exists() else 0
    candidates = range(lowest // 2, lowest) if lowest > 8192 else range(1024, 65536)
    while True:
        port = _random.choice(candidates)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
