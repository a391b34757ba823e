"""Ids of requests, which nobody can guess."""

import os
import struct
from collections.abc import Iterator

#: drawn at a time, which makes one as cheap as counting
_DRAWN = 512
_DRAW = struct.Struct(f"={_DRAWN}Q")


def unguessable_ids() -> Iterator[int]:
    """Random, 64 bits, never 0.

    A response is matched by its request's id alone. A worker knows the ids of the requests that it was given; if it
    could tell others from them, a model gone wrong could answer requests that other workers run.
    """
    while True:
        yield from filter(None, _DRAW.unpack(os.urandom(_DRAW.size)))
