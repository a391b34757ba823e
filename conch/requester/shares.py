"""How much of a requester one model version may take up, so that a slow one's backlog leaves room for the others."""

from conch.errors import Overloaded
from conch.requester.models import ReadyModel


class Share:
    """Of one model version: ``requests`` whose inputs lie in the arena, or are about to, and their ``nbytes``."""

    __slots__ = ("_most_nbytes", "_most_requests", "_whose", "nbytes", "requests")

    def __init__(self, whose: str, most_requests: int, most_nbytes: int) -> None:
        self._whose = whose
        self._most_requests = most_requests
        self._most_nbytes = most_nbytes
        self.requests = 0
        self.nbytes = 0

    def check(self, nbytes: int) -> None:
        """Raises ``Overloaded`` when a request with ``nbytes`` of inputs would be too much. A lone one never is: what
        the arena can hold can be served."""
        if self.requests >= self._most_requests:
            raise Overloaded(
                f"{self.requests} requests wait for {self._whose}, which is the most that may; try again later"
            )
        if self.nbytes + nbytes > self._most_nbytes and self.requests:
            raise Overloaded(
                f"the inputs that wait for {self._whose} take up {self.nbytes} of at most {self._most_nbytes} bytes, "
                f"and {nbytes} more are too many; try again later"
            )

    def add(self, nbytes: int) -> None:
        self.requests += 1
        self.nbytes += nbytes

    def remove(self, nbytes: int) -> None:
        self.requests -= 1
        self.nbytes -= nbytes


class Shares:
    """By model and version, so that a model that is loaded anew goes on with what it had."""

    def __init__(self, most_requests: int, most_nbytes: int) -> None:
        self._most_requests = most_requests
        self._most_nbytes = most_nbytes
        self._shares: dict[tuple[str, int], Share] = {}

    def of(self, model: ReadyModel) -> Share:
        """Kept in ``model.share``, where the next request finds it."""
        key = (model.name, model.version)
        share = self._shares.get(key)
        if share is None:
            whose = f"version {model.version} of model '{model.name}'"
            share = self._shares[key] = Share(whose, self._most_requests, self._most_nbytes)
        model.share = share
        return share
