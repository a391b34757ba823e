"""Where the scheduling world's decisions come from."""


class Choices:
    """Draws from a string of bytes, so that Hypothesis can shorten and simplify what led to a failure."""

    def __init__(self, source: bytes) -> None:
        self._source = source
        self._next = 0

    @property
    def left(self) -> bool:
        return self._next < len(self._source)

    def below(self, bound: int) -> int:
        """A number from 0 to ``bound`` - 1; 0 when there is nothing left."""
        if not self.left:
            return 0
        byte = self._source[self._next]
        self._next += 1
        return byte % bound

    def one_in(self, bound: int) -> bool:
        return self.below(bound) == bound - 1
