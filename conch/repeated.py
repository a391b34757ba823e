"""For the log: what a peer can cause again and again must not fill it."""

_TOLD_AT_FIRST = 10
_TOLD_EVERY = 1000


class Repeated:
    """Counts one kind of event. For one thread."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def is_told(self) -> bool:
        """To be called at each event. Whether it belongs in the log: one of the first ten, or every thousandth."""
        self.count += 1
        return self.count <= _TOLD_AT_FIRST or self.count % _TOLD_EVERY == 0
