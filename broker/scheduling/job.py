"""A request as the broker keeps it."""

from collections import deque
from math import inf
from typing import TYPE_CHECKING

from conch.messages import ClientRegion, Request
from conch.messages.requests import Parent

if TYPE_CHECKING:
    from broker.scheduling.workers import WorkerSlot

QUEUED, RUNNING, GONE = range(3)


class Job:
    """States: QUEUED (lies in ``source``) → RUNNING (in a batch of ``worker``) → GONE; an adopted job starts as
    RUNNING.

    A job that leaves its queue out of turn is only marked GONE; the queue throws it away when it comes to it.
    ``request`` is None for an adopted job: only its former broker had it; ``asked_by`` is its parent then. ``enqueued``
    and ``expires`` are seconds on the monotonic clock.
    """

    __slots__ = (
        "requester",
        "request",
        "id",
        "attempt",
        "size",
        "shape_key",
        "enqueued",
        "expires",
        "state",
        "cancelled",
        "source",
        "worker",
        "asked_by",
    )

    def __init__(self, requester: str, request: Request | None, id: int, attempt: int, now: float) -> None:
        self.requester = requester
        self.request = request
        self.id = id
        self.attempt = attempt
        if request is None:
            self.size = 1
            self.shape_key = ""
            self.expires = inf
            self.asked_by: Parent | None = None
        else:
            self.size = request.batch_size
            self.shape_key = request.shape_key
            self.expires = inf if request.deadline is None else request.deadline
        self.enqueued = now
        self.state = QUEUED
        self.cancelled = False
        self.source: deque[Job] | None = None
        self.worker: WorkerSlot | None = None

    @property
    def parent(self) -> Parent | None:
        return self.asked_by if self.request is None else self.request.parent

    @property
    def uses_client_memory(self) -> bool:
        """Whether a client can end the worker with SIGBUS, by cutting what it registered."""
        request = self.request
        return request is not None and (
            bool(request.targets) or any(type(tensor.reference) is ClientRegion for tensor in request.inputs)
        )
