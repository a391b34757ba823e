"""Checks a client's request against a model's configuration, in Python integers, before anything is allocated."""

from typing import NamedTuple

from frontends.inference import InferenceCall
from frontends.models import ReadyModel


class Checked(NamedTuple):
    """``batch_size`` is at least 1; ``shape_key`` is equal for requests that may share a batch."""

    batch_size: int
    shape_key: str


def validate(model: ReadyModel, call: InferenceCall) -> Checked:
    """Raises ``ClientError`` (mostly ``InvalidArgument``) with Triton's text, prefixed by the request id. The requester
    calls this inside ``submit``; a protocol does not have to."""
    raise NotImplementedError
