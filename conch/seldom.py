"""For the log: a shortage that lasts is told of now and then, not each time that something meets it."""

#: between two lines about the same shortage
QUIET_S = 60.0


class Seldom:
    """Of one shortage. For one thread."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = float("-inf")

    def is_told(self, now: float) -> bool:
        """To be called each time. Whether it belongs in the log. ``now``: monotonic, in seconds."""
        if now < self._next:
            return False
        self._next = now + QUIET_S
        return True
