"""How many bytes of tensors this worker has copied, and what for: the proof that none are copied needlessly.

Plain integers, added to where a copy is made; ``workers.metrics_reports`` tells the broker of them when it asks.
"""

from conch.messages import MetricFamily, MetricSample

NAME = "conch_copied_bytes_total"
_DESCRIPTION = "Bytes of tensors that workers have copied, by purpose"


class Copies:
    """``as_numpy``: tensors that a model asked for as arrays of its own. ``kept``: those that it keeps for longer than
    the memory that they lie in. ``output``: results, written where they are read from. ``request``: inputs of requests
    that a model sends to other models."""

    __slots__ = ("as_numpy", "kept", "output", "request")

    def __init__(self) -> None:
        self.as_numpy = 0
        self.kept = 0
        self.output = 0
        self.request = 0

    def families(self, model: str, version: int) -> tuple[MetricFamily, ...]:
        """Nothing of a purpose that there were no copies for."""
        samples = tuple(
            [
                MetricSample({"model": model, "version": str(version), "purpose": purpose}, float(nbytes))
                for purpose in self.__slots__
                if (nbytes := getattr(self, purpose))
            ]
        )
        return (MetricFamily(NAME, _DESCRIPTION, "counter", samples),) if samples else ()


#: one process runs one model
COPIES = Copies()
