"""Hands a worker's response to whoever asked."""

import logging
from functools import partial

from conch.descriptors import are_left
from conch.errors import ConchError, Internal, Overloaded, from_fault
from conch.messages import Response
from conch.requester.asked import Asked, Stream
from conch.requester.inference import Outcome
from conch.requester.links import WorkerLink
from conch.requester.pending import Entry
from conch.requester.results import make_result
from shm.base import BadReference

logger = logging.getLogger("conch.requester.delivery")

#: descriptors that a new connection of a worker takes at least
_FOR_A_CONNECTION = 8


def deliver(entry: Entry, response: Response, link: WorkerLink) -> None:
    """``response``, which came on ``link``, to the owner of ``entry``. Raises nothing."""
    asked: Asked = entry.owner
    if isinstance(asked, Stream):
        _deliver_to_stream(asked, entry, response, link)
        return
    outcome: Outcome
    if not response.final or response.error is not None or asked.on_answer is None:
        # None: cancelled a moment ago. Only streams read what is not final.
        if response.lease is not None:
            link.mappings.give_back(response.lease)
        if not response.final or response.error is None:
            return
        outcome = from_fault(response.error)
    else:
        try:
            outcome = make_result(entry.request, response, link.mappings, asked.targets)
        except BadReference as error:
            outcome = _unusable(entry, response, link, error)
    asked.answer(outcome)


def _deliver_to_stream(stream: Stream, entry: Entry, response: Response, link: WorkerLink) -> None:
    empty = response.final and stream.decoupled and not response.outputs and not response.parameters
    if response.error is not None or empty or stream.on_answer is None:
        if response.lease is not None:
            link.mappings.give_back(response.lease)
        if not response.final:
            stream.has_read(link, 0)  # there is nothing of it that could be released
        stream.respond(None if response.error is None else from_fault(response.error), response.final)
        return
    outcome: Outcome
    try:
        outcome = make_result(entry.request, response, link.mappings, stream.targets, partial(stream.has_read, link))
    except BadReference as error:
        outcome = _unusable(entry, response, link, error)
        if not response.final:
            stream.has_read(link, 0)
    stream.respond(outcome, response.final)


def _unusable(entry: Entry, response: Response, link: WorkerLink, error: BadReference) -> ConchError:
    if response.lease is not None:
        link.mappings.give_back(response.lease)
    if link.is_short:
        if are_left(_FOR_A_CONNECTION):
            link.channel.hang_up()
        return Overloaded("the server has no descriptor left to read the answer with; try again later")
    logger.error("model '%s' answered with memory it does not have: %s", entry.request.model, str(error))
    return Internal(f"model '{entry.request.model}' gave an unusable answer")
