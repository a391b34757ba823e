"""Which requests are still accepted while the server exits: those that accepted work needs."""

from broker.scheduling.requesters import Requesters
from conch.messages import Fault, Request

EXITING = Fault("NotReady", "Server exiting")


def may_come(requesters: Requesters, requester: str, request: Request) -> bool:
    """A request that was accepted before may run again. A model may ask others for a request that still waits or runs,
    and without naming one as long as anybody outside of the workers awaits something: later nobody would hear of it,
    and a model that asks by itself, again and again, would keep the server from exiting.
    """
    if request.attempt > 1:
        return True
    if requester not in requesters.inside:
        return False
    parent = request.parent
    if parent is not None and requesters.find(parent.requester, parent.id) is not None:
        return True
    return any(jobs for other, jobs in requesters.jobs.items() if other not in requesters.inside)
